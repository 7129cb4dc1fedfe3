"""Ranks that agree before they go on, and that wait without burning the cores of the others.

A rank inside a blocking MPI call spins. With more ranks than cores that slows down the one all are
waiting for: a calibration on rank 0 took 2.3 times as long beside three ranks in `bcast`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from launch.world import under_launcher

if TYPE_CHECKING:
    from mpi4py import MPI


class WorldError(RuntimeError):
    """MPI is missing, or its world is not the one that the launcher meant."""


T = TypeVar("T")
E = TypeVar("E", bound=Exception)

POLL_SECONDS = 0.002
LISTEN_SECONDS = 1.0
SECONDS_TO_SPEAK = 2.0
FAILED_TAG = 32_000  # MPI guarantees tags up to 32,767


def start() -> MPI.Intracomm:
    """Start MPI and give the world of all ranks. Raises WorldError if that cannot be had.

    Until all ranks have met, Ctrl-C ends a rank at once: one that waits for another inside MPI
    would never get to hear of it.
    """
    with _deadly_interrupts(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mpi4py's suspicion is checked, and said better, in world
        try:
            from collectives.transports import mpi
        except WorldError:
            raise
        except ModuleNotFoundError as error:
            raise WorldError(
                f"{error.name} is not installed for this Python, {sys.executable}; make install "
                f"makes an environment, then start .venv/bin/python"
            ) from None
        except (ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise WorldError(
                f"MPI cannot be loaded ({reason}); install one: pip install 'dpsgd[mpich]'; "
                f"python -m launch doctor says what is here"
            ) from None
    return mpi.world()


@contextlib.contextmanager
def _deadly_interrupts() -> Iterator[None]:
    if not under_launcher() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for_all(comm: MPI.Intracomm) -> None:
    """A barrier that sleeps between looks. Costs up to 2 ms; for start and end, not for steps."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(POLL_SECONDS)


def together(comm: MPI.Intracomm, errors: type[E], work: Callable[[], T]) -> T:
    """Do `work` on every rank; if it raises one of `errors` anywhere, raise that on every rank.

    The error of the lowest failing rank wins, so that all ranks end with one code and one message.
    Other exceptions are not caught: they are bugs, and the caller ends the job.
    """
    result: T | None = None
    error: E | None = None
    try:
        result = work()
    except errors as caught:
        error = caught
    wait_for_all(comm)
    first = next((e for e in comm.allgather(error) if e is not None), None)
    if first is not None:
        raise first
    return cast(T, result)  # no error, so this is what work returned


def on_root(comm: MPI.Intracomm, errors: type[E], work: Callable[[], T]) -> T:
    """Do `work` on rank 0 while the others sleep; everyone gets its result, or raises its error."""
    result: T | None = None
    error: E | None = None
    if comm.rank == 0:
        try:
            result = work()
        except errors as caught:
            error = caught
    wait_for_all(comm)
    result, error = comm.bcast((result, error))
    if error is not None:
        raise error
    return cast(T, result)


def agree(comm: MPI.Intracomm, facts: Callable[[], dict[str, Any]]) -> None:
    """Compare what `facts` gives on all ranks; every rank must call it.

    Raises ValueError on all ranks if it raised one anywhere, or if a fact differs: the message
    names the rank and both values.
    """
    mine: dict[str, Any] = {}
    error: str | None = None
    try:
        mine = facts()
    except ValueError as caught:
        error = str(caught)
    everyone = comm.allgather((error, mine))
    for rank, (theirs, _) in enumerate(everyone):
        if theirs is not None:
            alone = any(other is None for other, _ in everyone)
            raise ValueError(f"{theirs} on rank {rank}" if alone else theirs)
    for name, value in everyone[0][1].items():
        for rank, (_, others) in enumerate(everyone):
            if others[name] != value:
                raise ValueError(
                    f"{name} must be the same on all ranks, got {value!r} on rank 0 and "
                    f"{others[name]!r} on rank {rank}"
                )


def interrupted(comm: MPI.Intracomm, message: str, code: int) -> int:
    """End the job after Ctrl-C: rank 0 says so, then all ranks end. One rank alone just returns."""
    if comm.rank == 0:
        print(message, file=sys.stderr, flush=True)
    if comm.size == 1:  # perhaps a notebook, which lives on
        return code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
    if comm.rank == 0:
        comm.Abort(code)
    time.sleep(SECONDS_TO_SPEAK)  # to end now could silence, or kill, the one that speaks
    os._exit(code)  # without MPI_Finalize, which would wait for the other ranks


def crash(comm: MPI.Intracomm, program: str, code: int) -> NoReturn:
    """End the job with the traceback of the exception at hand, shown once, and exit code `code`."""
    text = traceback.format_exc()
    if not speaks_for_the_failed(comm):
        time.sleep(10)  # the rank that speaks ends this one
    else:
        with contextlib.suppress(OSError, AttributeError):  # nobody listens to standard output
            sys.stdout.flush()
        message = f"{program}: rank {comm.rank} crashed\n{text}"
        print(message, file=sys.stderr, end="", flush=True)
        time.sleep(0.3)  # Open MPI drops what it has not forwarded when the job is aborted
    comm.Abort(code)
    os._exit(code)  # MPICH's Abort can return before the launcher has ended this process


def speaks_for_the_failed(comm: MPI.Intracomm) -> bool:
    """For a rank that is about to end the job: whether it is the lowest of those that fail now.

    It tells all higher ranks that it failed, then listens for a while for lower ones. Nothing here
    blocks, whatever state the other ranks are in.
    """
    for higher in range(comm.rank + 1, comm.size):
        comm.isend(None, higher, FAILED_TAG)
    deadline = time.monotonic() + LISTEN_SECONDS
    while comm.rank > 0 and time.monotonic() < deadline:
        if comm.iprobe(tag=FAILED_TAG):
            return False
        time.sleep(POLL_SECONDS)
    return True
