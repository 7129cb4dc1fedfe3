"""What a plan asks of a transport: memory for the buffer, and the steps of a schedule over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from collectives.schedule import ADD, Algorithm, Exchange, Parts, Round, part_bounds

CHUNK_BYTES = 512 * 1024
"""What several numbers are added in pieces of, so that the partial sums stay in the cache."""

Sum = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""One addition: left + right -> out."""


class Step(Protocol):
    """Something that can begin when the step before is over, and has to wait for others."""

    def start(self) -> None:
        """Do what can be done without waiting."""

    def test(self) -> bool:
        """Whether others have done what this step waits for. Never blocks."""

    def wait(self) -> None:
        """Return when `test` would be true."""

    def finish(self) -> None:
        """Do the rest."""

    def work(self) -> None:
        """Only the additions and copies, for measurements."""

    def waits_for(self) -> Sequence[int]:
        """The ranks that may be awaited, for messages to people."""

    def free(self) -> None:
        """Give the resources back; the step cannot be used any more."""


class Layout:
    """A schedule cut to a buffer of `length` elements. What has no elements is left out."""

    def __init__(self, algorithm: Algorithm, world_size: int, length: int) -> None:
        self._algorithm = algorithm
        self._bounds = part_bounds(length, algorithm.num_parts(world_size))
        self.world_size = world_size

    def elements(self, parts: Parts) -> slice:
        """Where these parts are in the buffer."""
        return slice(self._bounds[parts[0]], self._bounds[parts[1]])

    def num_elements(self, parts: Parts) -> int:
        """How many elements these parts have."""
        return self._bounds[parts[1]] - self._bounds[parts[0]]

    def rounds(self, rank: int) -> list[Round]:
        """What `rank` does; both ends of an exchange leave out the same ones."""
        kept = (self._kept(one) for one in self._algorithm.rounds(rank, self.world_size))
        return [one for one in kept if one]

    def _kept(self, exchanges: Round) -> Round:
        kept = []
        for e in exchanges:
            send_to = e.send_to if self.num_elements(e.send_parts) else None
            recv_from = e.recv_from if self.num_elements(e.recv_parts) else None
            if send_to is not None or recv_from is not None:
                kept.append(Exchange(send_to, e.send_parts, recv_from, e.recv_parts, e.combine))
        return kept


class Transport(Protocol):
    """Moves the parts of a buffer between the ranks of one group."""

    name: str
    rank: int
    world_size: int

    def allocate(self, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The buffer, zero, in memory that this transport can move. All ranks must call it."""

    def prepare(self, layout: Layout, buffer: NDArray[Any]) -> tuple[list[Step], int]:
        """The steps of this rank, and the bytes of scratch memory that they hold.

        May be called again for other schedules over the same buffer: what is prepared shares the
        scratch memory, and one is run after the other, in the same order on all ranks.
        """

    def detach(self, buffer: NDArray[Any]) -> NDArray[Any]:
        """The contents of the buffer in memory that outlives the transport."""

    def close(self) -> None:
        """Give the resources back, after all steps are freed. All ranks must call it."""


def sums_in_order(
    values: list[tuple[int, NDArray[Any]]], out: NDArray[Any], spare: NDArray[Any]
) -> list[Sum]:
    """Additions that put ((x_0 + x_1) + x_2) + ... in the order of the ranks into `out`.

    `values` has at least two contributions and their ranks; `out` may be the memory of one of them,
    which is not overwritten before it is used. Until then partial sums are in `spare`, at least
    one chunk. Integers need none: their sums do not depend on the order, and begin with what is in
    `out`.
    """
    if out.dtype.kind in "iu":
        values = sorted(values, key=lambda value: value[1] is not out)
    else:
        values = sorted(values, key=lambda value: value[0])
    arrays = [array for _, array in values]
    own = next((i for i, array in enumerate(arrays) if array is out), 0)
    chunk = len(out) if len(arrays) == 2 else CHUNK_BYTES // out.itemsize
    sums: list[Sum] = []
    for first in range(0, len(out), max(1, chunk)):
        piece = slice(first, min(first + chunk, len(out)))
        total = arrays[0][piece]
        for index, array in enumerate(arrays[1:], start=1):
            target = out[piece] if index >= own else spare[: piece.stop - first]
            sums.append((total, array[piece], target))
            total = target
    return sums


def spare_length(dtype: np.dtype[Any], length: int) -> int:
    """Elements of the spare memory of `sums_in_order` for parts of up to `length` elements."""
    if dtype.kind in "iu":
        return 0
    return min(length, CHUNK_BYTES // dtype.itemsize)


def incoming(layout: Layout, exchanges: Round) -> int:
    """Elements that come in a round to be added."""
    return sum(
        layout.num_elements(e.recv_parts)
        for e in exchanges
        if e.recv_from is not None and e.combine is ADD
    )
