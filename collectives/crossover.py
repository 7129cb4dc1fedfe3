"""Time against size, and which all-reduce is the fastest from which size on.

The time of a fixed schedule is the longest of many paths, each of which is a straight line over
the size; so where the same path is the longest at two sizes, it is so between them, and nothing
has to be walked there. That makes a fine grid of sizes cheap. Between neighbours of the grid with
different winners, the change is found by halving the interval, to the byte.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from collectives.price import Link, Path, find_path
from collectives.schedule import Algorithm

LARGEST = 1024**3
STEPS_PER_DOUBLING = 4
GRID = sorted(
    {
        round(2 ** (step / STEPS_PER_DOUBLING))
        for step in range((LARGEST.bit_length() - 1) * STEPS_PER_DOUBLING + 1)
    }
)
"""Sizes in bytes, from 1 B to 1 GB."""


Found = tuple[Path, bool]
"""A path, and whether it was walked."""


@dataclass
class Curve:
    """Seconds of one algorithm in one place, for any size. Raises ValueError as `predict` does."""

    name: str
    algorithm: Algorithm
    world_size: int
    link: Link
    nodes: tuple[int, ...] | None = None
    inside: Link | None = None
    sizes: list[int] = field(default_factory=list)  # ascending, those of `found`
    found: list[Found] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._fill(0, self._find(GRID[0]), len(GRID) - 1, self._find(GRID[-1]))

    def seconds(self, num_bytes: int) -> float:
        """The predicted time."""
        return self._at(num_bytes)[0].seconds(num_bytes, self.link, self.inside)

    def is_walked(self, num_bytes: int) -> bool:
        """Whether the prediction is that of a walk."""
        return self._at(num_bytes)[1]

    def _at(self, num_bytes: int) -> Found:
        at = bisect_left(self.sizes, num_bytes)
        if at == len(self.sizes):
            return self._find(num_bytes)
        if self.sizes[at] == num_bytes or self.found[at - 1] == self.found[at]:
            return self.found[at]
        return self._find(num_bytes)

    def _fill(self, low: int, low_found: Found, high: int, high_found: Found) -> None:
        """Find the paths on the grid, by halves until they are the same."""
        if low_found != high_found and high - low > 1:
            middle = (low + high) // 2
            found = self._find(GRID[middle])
            self._fill(low, low_found, middle, found)
            self._fill(middle, found, high, high_found)

    def _find(self, num_bytes: int) -> Found:
        found = find_path(
            self.algorithm, self.world_size, num_bytes, self.link,
            nodes=self.nodes, inside=self.inside,
        )  # fmt: skip
        at = bisect_left(self.sizes, num_bytes)
        self.sizes.insert(at, num_bytes)
        self.found.insert(at, found)
        return found


def fastest(curves: Sequence[Curve], num_bytes: int) -> str:
    """The name of the fastest; of equal ones the first."""
    return min(curves, key=lambda curve: curve.seconds(num_bytes)).name


def crossovers(curves: Sequence[Curve]) -> list[tuple[int, str]]:
    """From which size on which one is the fastest: `[(1, name), (size, name), ...]`.

    An algorithm that wins only between two neighbours of GRID, a fifth apart, can be missed.
    """
    found = [(1, fastest(curves, 1))]
    for low, high in itertools.pairwise(GRID):
        found += _changes(curves, low, found[-1][1], high, fastest(curves, high))
    return found


def _changes(
    curves: Sequence[Curve], low: int, before: str, high: int, after: str
) -> list[tuple[int, str]]:
    """The changes above `low`, up to `high`, if these are the winners there."""
    if before == after:
        return []
    if high - low == 1:
        return [(high, after)]
    middle = (low + high) // 2
    winner = fastest(curves, middle)
    return [
        *_changes(curves, low, before, middle, winner),
        *_changes(curves, middle, winner, high, after),
    ]
