"""Steps over memory that the ranks of a node can look into: wait, add, copy, publish.

`collectives.dataflow` says who waits for whose progress; here its tasks are bound to the buffers.
The memory itself may come from anywhere, so all of this can be tested in one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from collectives.dataflow import STARTED, Program, Task, Waits, has_read, has_written
from collectives.schedule import COPY, Exchange, Parts
from collectives.transports.base import Layout, Step, Sum, incoming, spare_length, sums_in_order

if TYPE_CHECKING:
    from collectives.transports.mpi import MpiTransport

Copy = tuple[NDArray[Any], NDArray[Any]]


class Progress:
    """The progress of all ranks of a node, counted on from call to call.

    `counters` has an integer of 64 bits for each rank. `fence` orders what this rank reads and
    writes before it against what it reads and writes afterwards.
    """

    def __init__(
        self, counters: dict[int, memoryview], mine: int, fence: Callable[[], None]
    ) -> None:
        self._fence = fence
        self._counters = counters
        self._mine = counters[mine]
        self.base = 0

    def publish(self, value: int) -> None:
        """Everything written so far can be seen by whoever sees this value."""
        self._fence()
        self._mine[0] = self.base + value

    def reached(self, waits: Waits) -> bool:
        """Whether all of them are as far as that."""
        if any(self._counters[rank][0] < self.base + value for rank, value in waits):
            return False
        self._fence()
        return True

    def wait(self, waits: Waits) -> None:
        """Return when they are."""
        base = self.base
        for rank, value in waits:
            counter, value = self._counters[rank], base + value
            while counter[0] < value:
                os.sched_yield()
        self._fence()

    def late(self, waits: Waits) -> list[int]:
        """Those who are not."""
        return [rank for rank, value in waits if self._counters[rank][0] < self.base + value]


class ShmStep:
    """Wait for others, add, copy, publish. Any of them may be nothing."""

    def __init__(
        self,
        progress: Progress,
        waits: Waits,
        sums: list[Sum],
        copies: list[Copy],
        publish: int = 0,
        next_call: int = 0,
    ) -> None:
        self._progress = progress
        self._waits = waits
        self._sums = sums
        self._copies = copies
        self._publish = publish
        self._next_call = next_call

    def start(self) -> None:
        """Nothing is posted."""

    def test(self) -> bool:
        """Whether the others have come far enough."""
        return self._progress.reached(self._waits)

    def wait(self) -> None:
        """Return when they have."""
        if self._waits:
            self._progress.wait(self._waits)

    def finish(self) -> None:
        """Add, copy, publish."""
        self.work()
        if self._publish:
            self._progress.publish(self._publish)
        self._progress.base += self._next_call

    def work(self) -> None:
        """The additions and copies."""
        for left, right, out in self._sums:
            np.add(left, right, out=out)
        for target, source in self._copies:
            np.copyto(target, source)

    def waits_for(self) -> list[int]:
        """The ranks that are not far enough."""
        return self._progress.late(self._waits)

    def free(self) -> None:
        """Forget the memory."""
        self._sums, self._copies, self._waits = [], [], []
        del self._progress


class Binding:
    """Turns tasks into steps over memory."""

    def __init__(
        self,
        layout: Layout,
        rank: int,
        buffers: dict[int, NDArray[Any]],
        progress: Progress,
        messages: MpiTransport | None = None,
    ) -> None:
        self._layout = layout
        self._rank = rank
        self._buffers = buffers
        self._own = buffers[rank]
        self._progress = progress
        self._messages = messages
        self._scratch = self._own[:0]
        self._spare = np.empty(spare_length(self._own.dtype, len(self._own)), self._own.dtype)

    def steps(self, program: Program) -> tuple[list[Step], int]:
        """The steps of one call, and the bytes of memory beside the buffer."""
        sizes = [self._put_aside(task) for task in program.tasks]
        self._scratch = np.empty(max(sizes, default=0), self._own.dtype)
        steps: list[Step] = [ShmStep(self._progress, [], [], [], publish=STARTED)]
        for task in program.tasks:
            steps += self._remote(task) if task.remote else self._local(task)
        end = ShmStep(self._progress, program.at_the_end, [], [], next_call=program.stride)
        return [*steps, end], self._scratch.nbytes + self._spare.nbytes

    def _put_aside(self, task: Task) -> int:
        """Elements that a task keeps beside the buffer for a while."""
        if task.remote:
            return incoming(self._layout, task.remote)
        parts = {e.recv_parts for e in task.reads} if task.staged else set()
        return sum(map(self._layout.num_elements, parts))

    def _remote(self, task: Task) -> list[Step]:
        """A round by messages."""
        assert self._messages is not None  # there are other nodes
        round_ = self._messages.step(
            self._layout, task.remote, self._own, self._scratch, self._spare
        )
        before = [ShmStep(self._progress, task.before, [], [])] if task.before else []
        return [*before, round_, ShmStep(self._progress, [], [], [], has_written(task.number))]

    def _local(self, task: Task) -> list[Step]:
        """A round by looking into the memory of the others."""
        sums: list[Sum] = []
        copies: list[Copy] = []
        back: list[Copy] = []
        used = 0
        for parts, exchanges in _by_parts(task.reads).items():
            own = target = self._own[self._layout.elements(parts)]
            if task.staged:
                target = self._scratch[used : used + len(own)]
                used += len(own)
                back.append((own, target))
            seen = [
                (e.recv_from, self._buffers[e.recv_from][self._layout.elements(parts)])
                for e in exchanges
                if e.recv_from is not None
            ]
            if exchanges[0].combine is COPY:
                copies += [(target, array) for _, array in seen]
            else:
                sums += sums_in_order([*seen, (self._rank, own)], target, self._spare)
        written = has_written(task.number)
        if not task.staged:
            return [ShmStep(self._progress, task.before, sums, copies, written)]
        return [
            ShmStep(self._progress, task.before, sums, copies, has_read(task.number)),
            ShmStep(self._progress, task.before_writing, [], back, written),
        ]


def _by_parts(exchanges: list[Exchange]) -> dict[Parts, list[Exchange]]:
    """Receives of the same parts, which end up in one place."""
    grouped: dict[Parts, list[Exchange]] = {}
    for exchange in exchanges:
        grouped.setdefault(exchange.recv_parts, []).append(exchange)
    return grouped
