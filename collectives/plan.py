"""A schedule bound to a buffer and a transport: everything is prepared once, `run` only moves data.

    with make_plan("ring", comm, length=1000, dtype="int32") as all_reduce:
        all_reduce.buffer[:] = mine
        all_reduce.run()                      # now the sum over all ranks, the same on every rank

The plan owns its buffer, so that values are written where they are summed, and scratch memory for
the largest round. Parts without elements are never sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from collectives.all_reduce import AllReduce
from collectives.schedule import ADD, Algorithm, Exchange, Parts, Round, part_bounds
from collectives.transports.base import Batch, Message, Transport


class _Step:
    """One round: messages, then additions `left + right -> out` in a fixed order."""

    def __init__(self, batch: Batch, sums: list[tuple[NDArray[Any], ...]]) -> None:
        self.batch = batch
        self.sums = sums


class Plan(AllReduce):
    """An algorithm, ready to run.

    Guarantees:
        integer sums are exact (modulo the word size);
        every rank ends with identical bits, floating point included;
        the result does not depend on timing.
    """

    def __init__(
        self, algorithm: Algorithm, transport: Transport, length: int, dtype: DTypeLike
    ) -> None:
        self.name = algorithm.name
        self.transport = transport.name
        self.buffer: NDArray[Any] = np.zeros(length, dtype)
        self._transport = transport
        rank, world_size = transport.rank, transport.world_size
        self._rank = rank
        self._bounds = part_bounds(length, algorithm.num_parts(world_size))
        rounds = [self._with_elements(r) for r in algorithm.rounds(rank, world_size)]
        scratch_length = max((self._scratch_length(r) for r in rounds), default=0)
        self._scratch: NDArray[Any] = np.empty(scratch_length, dtype)
        self._steps = [self._prepare(exchanges) for exchanges in rounds if exchanges]

    def run(self) -> None:
        """Replace the buffer by the sum over all ranks. Every rank must call it."""
        for step in self._steps:
            step.batch.start()
            step.batch.wait()
            for left, right, out in step.sums:
                np.add(left, right, out=out)

    def close(self) -> None:
        """Free the requests and the transport; the buffer stays readable."""
        for step in self._steps:
            step.batch.free()
        self._steps = []
        self._transport.close()

    def _elements(self, parts: Parts) -> slice:
        return slice(self._bounds[parts[0]], self._bounds[parts[1]])

    def _num_elements(self, parts: Parts) -> int:
        return self._bounds[parts[1]] - self._bounds[parts[0]]

    def _with_elements(self, exchanges: Round) -> Round:
        """The exchanges that have anything to move; both ends leave out the same ones."""
        kept = []
        for e in exchanges:
            send_to = e.send_to if self._num_elements(e.send_parts) else None
            recv_from = e.recv_from if self._num_elements(e.recv_parts) else None
            if send_to is not None or recv_from is not None:
                kept.append(Exchange(send_to, e.send_parts, recv_from, e.recv_parts, e.combine))
        return kept

    def _scratch_length(self, exchanges: Round) -> int:
        return sum(
            self._num_elements(e.recv_parts)
            for e in exchanges
            if e.recv_from is not None and e.combine is ADD
        )

    def _prepare(self, exchanges: Round) -> _Step:
        sends: list[Message] = []
        receives: list[Message] = []
        added: dict[Parts, list[Message]] = {}
        used = 0
        for e in exchanges:
            if e.send_to is not None:
                sends.append((e.send_to, self.buffer[self._elements(e.send_parts)]))
            if e.recv_from is None:
                continue
            if e.combine is ADD:
                size = self._num_elements(e.recv_parts)
                message = (e.recv_from, self._scratch[used : used + size])
                used += size
                added.setdefault(e.recv_parts, []).append(message)
            else:
                message = (e.recv_from, self.buffer[self._elements(e.recv_parts)])
            receives.append(message)
        sums = [
            one
            for parts, incoming in added.items()
            for one in self._in_rank_order(self.buffer[self._elements(parts)], incoming)
        ]
        return _Step(self._transport.prepare(sends, receives), sums)

    def _in_rank_order(
        self, own: NDArray[Any], incoming: list[Message]
    ) -> list[tuple[NDArray[Any], ...]]:
        """Additions that give ((x_0 + x_1) + x_2) + ... on every rank, its own value among them."""
        values = sorted([*incoming, (self._rank, own)], key=lambda message: message[0])
        sums: list[tuple[NDArray[Any], ...]] = []
        total = values[0][1]
        for rank, value in values[1:]:
            out = own if total is own or rank == self._rank else total
            sums.append((total, value, out))
            total = out
        return sums
