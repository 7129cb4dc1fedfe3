"""Steps over memory that the ranks of a node share: wait, add, copy, publish.

`collectives.dataflow` says who waits for whose progress; here its tasks are bound to the buffers.
The memory itself may come from anywhere, so all of this can be tested in one process.

All work consists of *moves*: add up some arrays, in the order of the ranks, and write the sum to
some places. A long move goes piece by piece, so that what was just added is copied out of the
cache. A move that hands out what the move before it has added is joined to it: a direct exchange
reads and writes every byte of memory once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from collectives.dataflow import STARTED, Program, Task, Waits, has_read, has_written
from collectives.schedule import Parts
from collectives.transports.base import (
    CHUNK_BYTES,
    Layout,
    Step,
    Sum,
    incoming,
    spare_length,
    sums_in_order,
)

if TYPE_CHECKING:
    from collectives.transports.mpi import MpiTransport

Copy = tuple[memoryview, memoryview]
"""(target, source): faster than numpy's copy, which leaves the C library's aside."""


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
        return sorted({rank for rank, at in waits if self._counters[rank][0] < self.base + at})


@dataclass
class Move:
    """The sum of `values`, (rank, array), which are `parts` of the buffers, to `targets`."""

    parts: Parts
    values: list[tuple[int, NDArray[Any]]]
    targets: list[NDArray[Any]]

    @property
    def is_copy(self) -> bool:
        """Whether there is nothing to add."""
        return len(self.values) == 1

    def touches(self, other: Move) -> bool:
        """Whether any part is in both."""
        return self.parts[0] < other.parts[1] and other.parts[0] < self.parts[1]

    def has(self, later: Move) -> bool:
        """Whether `later` only hands out what this move has in its hands."""
        here = [*self.targets, *(array for _, array in self.values if self.is_copy)]
        return later.is_copy and any(_is_same(later.values[0][1], array) for array in here)

    def pieces(self, spare: NDArray[Any]) -> list[tuple[list[Sum], list[Copy]]]:
        """Additions and copies, in an order that uses what is in the cache."""
        first, *others = self.targets
        if self.is_copy:
            return [([], [(_view(target), _view(self.values[0][1])) for target in self.targets])]
        found: list[tuple[list[Sum], list[Copy]]] = []
        chunk = max(1, CHUNK_BYTES // first.itemsize)
        for begin in range(0, len(first), chunk):
            piece = slice(begin, begin + chunk)
            total = first[piece]
            values = [
                (rank, total if array is first else array[piece]) for rank, array in self.values
            ]
            copies = [(_view(target[piece]), _view(total)) for target in others]
            found.append((sums_in_order(values, total, spare), copies))
        return found


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays are the same memory."""
    return len(one) == len(other) and one.ctypes.data == other.ctypes.data


def _view(array: NDArray[Any]) -> memoryview:
    return memoryview(cast(Any, array))


class ShmStep:
    """Wait for others, move, publish. Any of them may be nothing."""

    def __init__(
        self,
        progress: Progress,
        waits: Waits,
        moves: list[Move],
        publish: int = 0,
        next_call: int = 0,
    ) -> None:
        self.moves = moves
        self.publish = publish
        self._progress = progress
        self._waits = waits
        self._next_call = next_call
        self._pieces: list[tuple[list[Sum], list[Copy]]] = []

    def join(self, later: ShmStep) -> bool:
        """Do `later` as a part of this step, if nothing has to be awaited between them."""
        if later._waits or later._next_call or not later.publish:
            return False
        for move in later.moves:
            before = next((one for one in reversed(self.moves) if one.touches(move)), None)
            if before is not None and before.has(move):
                before.targets += move.targets
            else:
                self.moves.append(move)
        self.publish = later.publish
        return True

    def bind(self, spare: NDArray[Any]) -> None:
        """Work out the pieces; no step is joined any more."""
        self._pieces = [piece for move in self.moves for piece in move.pieces(spare)]
        self.moves = []

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
        self.tell()

    def tell(self) -> None:
        """Publish what is done."""
        if self.publish:
            self._progress.publish(self.publish)
        self._progress.base += self._next_call

    def work(self) -> None:
        """The additions and copies."""
        for sums, copies in self._pieces:
            for left, right, out in sums:
                np.add(left, right, out)
            for target, source in copies:
                target[:] = source

    def waits_for(self) -> list[int]:
        """The ranks that are not far enough."""
        return self._progress.late(self._waits)

    def free(self) -> None:
        """Forget the memory."""
        self._pieces, self._waits = [], []
        del self._progress


def _joined(last: Step, step: Step) -> bool:
    return isinstance(last, ShmStep) and isinstance(step, ShmStep) and last.join(step)


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
        """The steps of one call, and the bytes of memory beside the buffer.

        Several programs may be bound to the same buffers: progress goes on from one to the next.
        """
        sizes = [self._put_aside(task) for task in program.tasks]
        if max(sizes, default=0) > len(self._scratch):
            self._scratch = np.empty(max(sizes), self._own.dtype)
        steps: list[Step] = [ShmStep(self._progress, [], [], publish=STARTED)]
        for task in program.tasks:
            for step in self._remote(task) if task.remote else self._local(task):
                if not _joined(steps[-1], step):
                    steps.append(step)
        steps.append(ShmStep(self._progress, program.at_the_end, [], next_call=program.stride))
        for step in steps:
            if isinstance(step, ShmStep):
                step.bind(self._spare)
        return steps, self._scratch.nbytes + self._spare.nbytes

    def _put_aside(self, task: Task) -> int:
        """Elements that a task keeps beside the buffer for a while."""
        if task.remote:
            return incoming(self._layout, task.remote)
        parts = {e.recv_parts for e in task.pulls} if task.staged else set()
        return sum(map(self._layout.num_elements, parts))

    def _remote(self, task: Task) -> list[Step]:
        """A round by messages."""
        assert self._messages is not None  # there are other nodes
        round_ = self._messages.step(
            self._layout, task.remote, self._own, self._scratch, self._spare
        )
        before = [ShmStep(self._progress, task.before, [])] if task.before else []
        return [*before, round_, ShmStep(self._progress, [], [], has_written(task.number))]

    def _local(self, task: Task) -> list[Step]:
        """A round in the memory of this node."""
        written = has_written(task.number)
        sums: list[Move] = []
        back: list[Move] = []
        used = 0
        for parts in dict.fromkeys(e.recv_parts for e in task.pulls):
            own = target = self._in(self._rank, parts)
            if task.staged:
                target = self._scratch[used : used + len(own)]
                used += len(own)
                back.append(Move(parts, [(self._rank, target)], [own]))
            sources = [e.recv_from for e in task.pulls if e.recv_parts == parts]
            seen = [(peer, self._in(peer, parts)) for peer in sources if peer is not None]
            sums.append(Move(parts, [*seen, (self._rank, own)], [target]))
        handed: dict[Parts, Move] = {}
        for peer, parts in task.pushes:
            first = Move(parts, [(self._rank, self._in(self._rank, parts))], [])
            handed.setdefault(parts, first).targets.append(self._in(peer, parts))
        moves = [*sums, *handed.values()]
        if not task.staged:
            return [ShmStep(self._progress, task.before, moves, written)]
        return [
            ShmStep(self._progress, task.before, moves, has_read(task.number)),
            ShmStep(self._progress, task.before_writing, back, written),
        ]

    def _in(self, rank: int, parts: Parts) -> NDArray[Any]:
        return self._buffers[rank][self._layout.elements(parts)]
