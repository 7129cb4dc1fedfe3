"""MPI point-to-point messages as persistent requests: matched and checked once, started often.

Here MPI starts: `mpi4py.MPI` is imported in this file and in `shm`. Others get what they need of it
from them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import mpi4py
import numpy as np
from numpy.typing import NDArray

from collectives.guard import WorldError
from collectives.schedule import ADD, Parts, Round
from collectives.transports.base import Layout, Step, Sum, incoming, spare_length, sums_in_order
from launch.world import foreign_launcher, world_mismatch

mpi4py.rc.initialize, mpi4py.rc.finalize = False, True  # not before its vendor is known

from mpi4py import MPI  # noqa: E402

if not MPI.Is_initialized():
    if reason := foreign_launcher(MPI.get_vendor()[0]):
        raise WorldError(reason)
    # Open MPI's UCX windows complain on stderr whenever memory is shared, which they cannot do.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    MPI.Init_thread()


def world() -> MPI.Intracomm:
    """All ranks that the launcher started together.

    Raises WorldError if the launcher meant another world: N ranks that do not find each other would
    train N models, each on all of the data.
    """
    if mismatch := world_mismatch(MPI.COMM_WORLD.size):
        raise WorldError(mismatch)
    return MPI.COMM_WORLD


class _Closable(Protocol):
    def close(self) -> None: ...


A = TypeVar("A", bound=_Closable)
_KEYS: dict[type, int] = {}


def attribute_of(comm: MPI.Intracomm, make: Callable[[MPI.Intracomm], A]) -> A:
    """What `make` gives for this communicator, made once and closed when it is freed."""
    kind = cast(type, make)
    if kind not in _KEYS:
        _KEYS[kind] = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, value: value.close())
    found = comm.Get_attr(_KEYS[kind])
    if found is None:
        found = make(comm)
        comm.Set_attr(_KEYS[kind], found)
    return cast(A, found)


def library_version() -> str:
    """Name and version of the MPI library, one line."""
    return MPI.Get_library_version().splitlines()[0].strip("\x00 ,")


def node_of(comm: MPI.Intracomm) -> int:
    """The lowest rank that this one shares memory with. Every rank must call it."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first: int = node.bcast(comm.rank)
    node.Free()
    return first


def all_reduce_in_place(comm: MPI.Intracomm, buffer: NDArray[Any]) -> None:
    """MPI's own all-reduce (sum)."""
    comm.Allreduce(MPI.IN_PLACE, buffer)


def all_reduce_between(comm: MPI.Intracomm, source: NDArray[Any], target: NDArray[Any]) -> None:
    """The same from one buffer into another."""
    comm.Allreduce(source, target)


def start_all_reduce(comm: MPI.Intracomm, buffer: NDArray[Any]) -> MPI.Request:
    """The same without waiting for it."""
    return comm.Iallreduce(MPI.IN_PLACE, buffer)


class MpiStep:
    """Persistent requests of one round, with their peers, then additions in a fixed order."""

    def __init__(self, requests: list[MPI.Prequest], sums: list[Sum], peers: list[int]) -> None:
        self._requests = requests
        self._sums = sums
        self._peers = peers

    def start(self) -> None:
        """Post all sends and receives."""
        MPI.Prequest.Startall(self._requests)

    def test(self) -> bool:
        """Whether all of them are complete."""
        return MPI.Request.Testall(self._requests)

    def wait(self) -> None:
        """Return when all of them are complete."""
        MPI.Request.Waitall(self._requests)

    def finish(self) -> None:
        """Add what has come."""
        self.work()

    def work(self) -> None:
        """The additions."""
        for left, right, out in self._sums:
            np.add(left, right, out=out)

    def waits_for(self) -> list[int]:
        """The peers of messages that are not complete."""
        late = [not request.Get_status() for request in self._requests]
        return sorted({peer for peer, is_late in zip(self._peers, late, strict=True) if is_late})

    def free(self) -> None:
        """Free the requests: MPICH prints a line for each that is forgotten."""
        for request in self._requests:
            request.Free()
        self._requests = []


class MpiTransport:
    """Messages over a duplicate of `comm`, so that they never meet the caller's own."""

    name = "mpi"

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm.Dup()
        self.rank: int = comm.rank
        self.world_size: int = comm.size
        self._scratch: NDArray[Any] = np.empty(0)
        self._spare: NDArray[Any] = np.empty(0)

    def allocate(self, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Ordinary memory."""
        return np.zeros(length, dtype)

    def prepare(self, layout: Layout, buffer: NDArray[Any]) -> tuple[list[Step], int]:
        """One step a round. The rounds share the scratch memory, so they cannot overlap."""
        rounds = layout.rounds(self.rank)
        size = max((incoming(layout, exchanges) for exchanges in rounds), default=0)
        if size > len(self._scratch):
            self._scratch = np.empty(size, buffer.dtype)
            self._spare = np.empty(spare_length(buffer.dtype, size), buffer.dtype)
        scratch, spare = self._scratch, self._spare
        steps: list[Step] = [self.step(layout, one, buffer, scratch, spare) for one in rounds]
        return steps, scratch.nbytes + spare.nbytes

    def step(
        self,
        layout: Layout,
        exchanges: Round,
        buffer: NDArray[Any],
        scratch: NDArray[Any],
        spare: NDArray[Any],
    ) -> MpiStep:
        """One round, bound to its memory; receives are posted first.

        Requests that are started together may start in any order: messages between the same two
        ranks are told apart by their tags, which count them.
        """
        sent: Counter[int] = Counter()
        received: Counter[int] = Counter()
        sends: list[MPI.Prequest] = []
        receives: list[MPI.Prequest] = []
        added: dict[Parts, list[tuple[int, NDArray[Any]]]] = {}
        used = 0
        for e in exchanges:
            if e.send_to is not None:
                array = buffer[layout.elements(e.send_parts)]
                sends.append(self._comm.Send_init(array, e.send_to, tag=sent[e.send_to]))
                sent[e.send_to] += 1
            if e.recv_from is None:
                continue
            if e.combine is ADD:
                size = layout.num_elements(e.recv_parts)
                array = scratch[used : used + size]
                used += size
                added.setdefault(e.recv_parts, []).append((e.recv_from, array))
            else:
                array = buffer[layout.elements(e.recv_parts)]
            receives.append(self._comm.Recv_init(array, e.recv_from, tag=received[e.recv_from]))
            received[e.recv_from] += 1
        sums: list[Sum] = []
        for parts, values in added.items():
            own = buffer[layout.elements(parts)]
            sums += sums_in_order([*values, (self.rank, own)], own, spare)
        sources = [e.recv_from for e in exchanges if e.recv_from is not None]
        targets = [e.send_to for e in exchanges if e.send_to is not None]
        return MpiStep(receives + sends, sums, sources + targets)

    def detach(self, buffer: NDArray[Any]) -> NDArray[Any]:
        """The buffer itself."""
        return buffer

    def close(self) -> None:
        """Free the communicator."""
        self._comm.Free()
