"""Sums a flat buffer over ranks, by a schedule that you choose and can prove.

    schedule      the language: exchanges, rounds, parts of a buffer
    algorithms/   alltoall, ring, tree, ...: one file each, pure functions of (rank, world_size)
    verify        runs all ranks of a schedule in one process and checks every promise
    all_reduce    what every all-reduce can do, ours or another's
    plan          a schedule bound to a buffer and a transport
    transports/   who moves the bytes: MPI messages, shared memory
    dataflow      who waits for whom in shared memory
    vendor        MPI's own all-reduce and gloo behind the same interface
    select        `auto`: by what was measured here, or by the cost model
    price         what a schedule costs          cost   python -m collectives.cost
    exposure      what a message reveals         draw   python -m collectives.draw
    guard         agreement between ranks, waiting without spinning
    calls         for debugging: are all ranks about to do the same?
    ddp_hook      the same inside PyTorch's DistributedDataParallel
    bench         python -m collectives.bench    measure  its measurements

Nothing here knows about learning or privacy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from launch.python import require_python

require_python()

from collectives.algorithms import ALGORITHMS, find  # noqa: E402
from collectives.all_reduce import AllReduce  # noqa: E402
from collectives.vendor import VENDORS  # noqa: E402

if TYPE_CHECKING:
    from typing import Any

    from mpi4py import MPI
    from numpy.typing import DTypeLike, NDArray


NAMES: tuple[str, ...] = (*ALGORITHMS, *VENDORS)
"""Every all-reduce by name: our schedules, then the vendors'."""
AUTO = "auto"
TRANSPORTS: tuple[str, ...] = ("mpi", "shm")
DTYPES: tuple[str, ...] = ("int32", "int64", "uint32", "uint64", "float32", "float64")
"""What can be summed. Integers wrap around modulo the word size."""
DEBUG_VARIABLE = "COLLECTIVES_DEBUG"

__all__ = [
    "ALGORITHMS", "AUTO", "DTYPES", "NAMES", "TRANSPORTS", "VENDORS", "AllReduce", "check_halves",
    "check_name", "find", "has_halves", "make_plan", "no_halves",
]  # fmt: skip


def check_name(name: str, transport: str = AUTO) -> None:
    """Raise ValueError unless `name` is `auto` or an all-reduce that can be had here.

    Vendors move the bytes by themselves, so that no `transport` can be named for them.
    """
    word, colon, _ = name.partition(":")
    if word in ALGORITHMS:
        find(name)
    elif colon or word not in (*VENDORS, AUTO):
        raise ValueError(f"allreduce must be one of {', '.join((*NAMES, AUTO))}, got {name!r}")
    elif word in VENDORS and (missing := VENDORS[word].missing()):
        raise ValueError(missing)
    elif word in VENDORS and transport != AUTO:
        raise ValueError(f"transport must be auto for {name}, which has its own, got {transport!r}")


def has_halves(name: str) -> bool:
    """Whether the all-reduce `name` can be run in two halves; `auto` chooses one that can."""
    return name == AUTO or (name.partition(":")[0] in ALGORITHMS and find(name).has_halves)


def no_halves(name: str) -> str:
    """Says that an all-reduce cannot be run in two halves, and which can."""
    able = ", ".join(word for word in (*ALGORITHMS, AUTO) if has_halves(word))
    return f"{name} cannot be run in two halves, as {able} can"


def check_halves(name: str) -> None:
    """Raise ValueError unless the all-reduce `name` can be run in two halves."""
    if not has_halves(name):
        raise ValueError(no_halves(name))


def make_plan(
    name: str,
    comm: MPI.Intracomm,
    length: int,
    dtype: DTypeLike,
    *,
    transport: str = AUTO,
    buffer: NDArray[Any] | None = None,
    halves: bool = False,
    debug: bool | None = None,
) -> AllReduce:
    """An all-reduce (sum) of `length` elements over the ranks of `comm`, ready to run.

    `name` is one of NAMES, with arguments such as `butterfly:4,2`, or `auto`. `transport` is `mpi`,
    `shm`, or `auto`: shared memory where all ranks share a node, messages otherwise. The plan
    allocates its buffer, or sums in `buffer`, a flat array of yours, which only messages and
    vendors can. With `halves` it can be run in two of them, which are prepared at once: what has
    none is refused, and `auto` chooses among the others. With `debug` (or COLLECTIVES_DEBUG=1) the
    schedule is verified, and before every call the ranks compare what they are about to do.

    Every rank must call it with the same arguments; otherwise, and for arguments that do not fit,
    all ranks raise ValueError, which names the rank.
    """
    from collectives.assembly import assemble  # numpy and MPI only for those who run something

    if debug is None:
        debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    return assemble(name, comm, length, dtype, transport, buffer, halves, debug)
