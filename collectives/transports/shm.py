"""Shared memory: the buffers lie in a window that all ranks of a node can read, in place.

Nothing is sent. Parts that are added are read where they are, in the sender's buffer; parts that
are copied are written by the sender where they are wanted. Every rank publishes how far it has
come, one number in front of its buffer; `collectives.dataflow` says who waits for whose progress.

Waiting gives the processor away at every look, so that more ranks than cores do no harm; a rank
that MPI would let wait inside a barrier spins.

Ranks on other nodes get MPI messages, from and to the same memory, in schedules that keep the two
apart round by round, as `hierarchical` does.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from collectives.dataflow import program
from collectives.transports.base import Layout, Step
from collectives.transports.memory import Binding, Progress
from collectives.transports.mpi import MpiTransport

# isort: split
from mpi4py import MPI  # after the line above, which starts it

HEADER_BYTES = 128
"""In front of each buffer: the progress of its rank, on a cache line of its own."""
PAGE_BYTES = 4096
SHARED_MEMORY = "/dev/shm"


@dataclass
class _Kept:
    """A window into which somebody still looks; freed together, on all ranks of its node, later."""

    window: MPI.Win
    node: MPI.Intracomm
    looks: list[weakref.ref[NDArray[Any]]]

    @property
    def is_held(self) -> bool:
        """Whether this process still has one of the arrays, or a part of one."""
        return any(look() is not None for look in self.looks)


_KEPT: list[_Kept] = []


def _free_kept(node: MPI.Intracomm) -> None:
    """Free the windows of these ranks that nobody looks into any more. All of them must call it."""
    same = (MPI.IDENT, MPI.CONGRUENT)
    mine = [one for one in _KEPT if MPI.Comm.Compare(one.node, node) in same]
    if not mine:  # as on all these ranks: they have closed the same plans
        return
    held = node.allgather([one.is_held for one in mine])
    for one, *anywhere in zip(mine, *held, strict=True):
        if not any(anywhere):
            one.window.Free()
            one.node.Free()
            _KEPT.remove(one)


class ShmTransport:
    """The ranks of a node share memory; there is one buffer for each transport."""

    name = "shm"

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.rank: int = comm.rank
        self.world_size: int = comm.size
        self._node = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED))
        self._messages = MpiTransport(comm) if self._node.size < comm.size else None
        self._local: list[int] = self._node.allgather(comm.rank)
        self._window: MPI.Win | None = None
        self._memory: dict[int, memoryview] = {}
        self._buffers: dict[int, NDArray[Any]] = {}
        self._binding: Binding | None = None

    def allocate(self, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The buffer, in the shared window."""
        _free_kept(self._node)
        num_bytes = -(-(HEADER_BYTES + length * dtype.itemsize) // PAGE_BYTES) * PAGE_BYTES
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})
        self._window = MPI.Win.Allocate_shared(num_bytes, 1, info, self._node)
        info.Free()
        for index, rank in enumerate(self._local):
            memory = memoryview(cast(Any, self._window.Shared_query(index)[0])).cast("B")
            self._memory[rank] = memory
            self._buffers[rank] = np.frombuffer(memory, dtype, length, HEADER_BYTES)
        self._memory[self.rank][:HEADER_BYTES] = bytes(HEADER_BYTES)
        self._buffers[self.rank][:] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        self._node.Barrier()
        return self._buffers[self.rank]

    def prepare(self, layout: Layout, buffer: NDArray[Any]) -> tuple[list[Step], int]:
        """The program of this rank. Scratch is needed only where a round reads what it writes."""
        assert self._window is not None  # allocate comes first
        if self._binding is None:
            counters = {rank: memory[:8].cast("q") for rank, memory in self._memory.items()}
            progress = Progress(counters, self.rank, self._window.Sync)
            self._binding = Binding(layout, self.rank, self._buffers, progress, self._messages)
        rounds = {rank: layout.rounds(rank) for rank in self._local}
        return self._binding.steps(program(rounds, self.rank))

    def detach(self, buffer: NDArray[Any]) -> NDArray[Any]:
        """A copy: the window ends with the transport."""
        return buffer.copy()

    def close(self) -> None:
        """Free the window; later, if somebody on any rank still holds the buffer or a part."""
        looks = [weakref.ref(array) for array in self._buffers.values()]
        self._buffers.clear()
        self._binding = None
        if self._messages is not None:
            self._messages.close()
        if self._window is not None:
            self._window.Unlock_all()
            _KEPT.append(_Kept(self._window, self._node, looks))
            _free_kept(self._node)
        else:
            self._node.Free()
