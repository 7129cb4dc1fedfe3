"""A schedule bound to a buffer and a transport: everything is prepared once, `run` only moves data.

    with make_plan("ring", comm, length=1000, dtype="int32") as all_reduce:
        all_reduce.buffer[:] = mine
        all_reduce.run()                      # now the sum over all ranks, the same on every rank

The plan owns its buffer, so that values are written where they are summed, unless it is given one.
Parts without elements are never sent.

In two halves, with something done to the finished parts between them:

    all_reduce.buffer[:] = mine
    all_reduce.reduce_scatter()
    all_reduce.buffer[all_reduce.owned] += 1  # by the one rank that holds these elements
    all_reduce.all_gather()                   # now the sum plus 1, the same on every rank

Each half is a schedule of its own, prepared and run like a whole one: it ends when no other rank
uses this rank's buffer any more, and the next one touches the buffer only after this rank has begun
it. So between them the whole buffer belongs to the caller.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collectives.all_reduce import AllReduce
from collectives.schedule import Algorithm
from collectives.transports.base import Layout, Transport


class Plan(AllReduce):
    """An algorithm, ready to run.

    Guarantees:
        integer sums are exact (modulo the word size);
        every rank ends with identical bits, floating point included, whatever the transport;
        the result does not depend on timing;
        the owned parts of all ranks cover the buffer once, and what their owners add to them is in
            the result of every rank;
        nothing is allocated by a call; without `halves`, the first call of a half prepares them.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        transport: Transport,
        length: int,
        dtype: np.dtype[Any],
        buffer: NDArray[Any] | None = None,
        halves: bool = False,
    ) -> None:
        self.name = algorithm.name
        self.transport = transport.name
        self._transport = transport
        self._buffer = transport.allocate(length, dtype) if buffer is None else buffer
        layout = Layout(algorithm, transport.world_size, length)
        self._algorithm = algorithm
        self._steps, self.scratch_bytes = transport.prepare(layout, self.buffer)
        self._prepared = {"run": self._steps}
        self._current = 0
        if algorithm.owned is not None:
            self._owned = layout.elements(algorithm.owned(transport.rank, transport.world_size))
        if halves:
            self._prepare_halves()

    def work_alone(self) -> None:
        """For measurements: all additions and copies of this rank, waiting for nobody.

        What the buffers of all ranks hold afterwards is meaningless.
        """
        for step in self._steps:
            step.work()

    def _prepare_halves(self) -> None:
        calls = "reduce_scatter", "all_gather"
        for call, half in zip(calls, self._algorithm.halves, strict=True):
            layout = Layout(half, self._transport.world_size, len(self.buffer))
            self._prepared[call], scratch_bytes = self._transport.prepare(layout, self.buffer)
            self.scratch_bytes = max(self.scratch_bytes, scratch_bytes)

    def _use(self, call: str) -> None:
        if call not in self._prepared:
            self._prepare_halves()
        self._steps = self._prepared[call]

    def _run(self) -> None:
        for step in self._steps:
            step.start()
            step.wait()
            step.finish()

    def _start(self) -> None:
        self._current = 0
        if self._steps:
            self._steps[0].start()
            self._test()  # what can be done at once; others may be waiting for it

    def _test(self) -> bool:
        while self._current < len(self._steps):
            step = self._steps[self._current]
            if not step.test():
                return False
            step.finish()
            self._current += 1
            if self._current < len(self._steps):
                self._steps[self._current].start()
        return True

    def _wait(self) -> None:
        while self._current < len(self._steps):
            step = self._steps[self._current]
            step.wait()
            step.finish()
            self._current += 1
            if self._current < len(self._steps):
                self._steps[self._current].start()

    def _awaited(self) -> str:
        ranks = ", ".join(map(str, self._steps[self._current].waits_for()))
        return (
            f"rank {self._transport.rank} is in step {self._current + 1} of {len(self._steps)} and "
            f"waits for rank {ranks}"
        )

    def _close(self) -> None:
        """Free the steps and the transport."""
        for step in itertools.chain.from_iterable(self._prepared.values()):
            step.free()
        self._steps, self._prepared = [], {}
        self._buffer = self._transport.detach(self.buffer)
        self._transport.close()
