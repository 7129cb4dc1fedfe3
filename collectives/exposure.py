"""What a schedule reveals: how many honest ranks hide behind each other in what somebody sees.

A *view* is what a party can see of one part: sums of the ranks' contributions, each a vector of how
often every rank's contribution is in it. Whoever sees a + b + c and a + b knows c: every linear
combination of what is seen can be formed. So

    exposure(view) = the fewest honest contributions in any non-zero combination of what is seen

1 means that some rank's contribution stands bare, p that only the sum of all p can be had. Noise of
p ranks protects such a view as if only `exposure` of them had added theirs.

Three ranks, a is colluding; messages a+b and b+c, final sum a+b+c:

    seen          a  b  c         honest columns  b  c
    message       1  1  0                         1  0   <- b stands bare: exposure 1
    message       0  1  1                         1  1
    final sum     1  1  1                         1  1

A view of colluding ranks has all that they send and receive, the final sum, and their own
contributions, whose columns therefore fall away. A tapped link shows the messages in both its
directions, and the final sum, which is public.

Finding the combination is finding the lightest word of a linear code, here over the rationals.
Columns that are multiples of each other vanish together and are merged. A lightest vector cannot
vanish on one more column without vanishing altogether; so it is found by letting the space vanish
on one column after the other until one dimension is left, in all different ways.

The very first message of a schedule can be nothing but somebody's bare contribution. So the worst
link and the worst rank of every schedule have exposure 1, as long as contributions are not masked;
what differs is how many ranks and links see so much.

Opaque collectives show what their authors chose, and shared memory can be read by every rank of the
node at any time: both count as OPAQUE.

Reference: Oxley, "Matroid Theory" (2011), section 2.1: supports of lightest vectors are cocircuits.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from fractions import Fraction
from functools import lru_cache

from collectives.schedule import Algorithm, Parts
from collectives.verify import contributors, verify

MESSAGES = "mpi"
"""The transport whose schedules can be analysed."""
OPAQUE = 1
"""The exposure of what cannot be analysed, or can be read by others: the worst that there is."""

Vector = tuple[Fraction, ...]
Seen = dict[int, set[int]]
"""For each part, the counters (see `verify`) of every message that has it."""


def public(world_size: int) -> int:
    """Of the final sum, which all may know."""
    return world_size


def ranks(
    algorithm: Algorithm | None, world_size: int, colluding: int = 1, transport: str = MESSAGES
) -> int:
    """Of the worst choice of `colluding` ranks, which share all that they see.

    OPAQUE without an algorithm to look at, or over another transport than messages.
    """
    if not 1 <= colluding < world_size:
        raise ValueError(
            f"colluding must be from 1 to {world_size - 1} of {world_size} ranks, got {colluding}"
        )
    if algorithm is None or transport != MESSAGES:
        return OPAQUE
    choices = itertools.combinations(range(world_size), colluding)
    return _least(
        (of_ranks(algorithm, world_size, some) for some in choices), world_size - colluding
    )


def link(algorithm: Algorithm | None, world_size: int, transport: str = MESSAGES) -> int:
    """Of the worst link between two ranks; without links of the final sum. OPAQUE as for `ranks`:
    whoever reads the shared memory of a node reads all of it.
    """
    if algorithm is None or transport != MESSAGES:
        return OPAQUE
    pairs = map(sorted, _messages(algorithm, world_size))
    return _least((of_link(algorithm, world_size, a, b) for a, b in pairs), public(world_size))


def of_ranks(algorithm: Algorithm, world_size: int, colluding: Collection[int]) -> int:
    """Of these ranks together; there must be others."""
    links = _messages(algorithm, world_size)
    seen = [those for pair, those in links.items() if not pair.isdisjoint(colluding)]
    honest = [rank for rank in range(world_size) if rank not in colluding]
    return _exposure(seen, honest, world_size)


def of_link(algorithm: Algorithm, world_size: int, one: int, other: int) -> int:
    """Of the link between two ranks, tapped in both directions."""
    seen = _messages(algorithm, world_size).get(frozenset((one, other)), {})
    return _exposure([seen], list(range(world_size)), world_size)


def _least(exposures: Iterable[int], most: int) -> int:
    """The minimum, found early if it is 1."""
    for one in exposures:
        most = min(most, one)
        if most == 1:
            break
    return most


@lru_cache(maxsize=1)  # one question after the other about the same schedule
def _messages(algorithm: Algorithm, world_size: int) -> dict[frozenset[int], Seen]:
    """What travels on each link, in either direction, during the whole all-reduce."""
    links: dict[frozenset[int], Seen] = {}

    def observe(source: int, dest: int, parts: Parts, counts: list[int]) -> None:
        seen = links.setdefault(frozenset((source, dest)), {})
        for part, count in zip(range(*parts), counts, strict=True):
            seen.setdefault(part, set()).add(count)

    verify(algorithm, world_size, observe)
    return links


def _exposure(seen: Iterable[Seen], honest: list[int], world_size: int) -> int:
    """The worst part of a view."""
    by_part: dict[int, set[int]] = {}
    for one in seen:
        for part, counts in one.items():
            by_part.setdefault(part, set()).update(counts)
    views = []
    for same in set(map(frozenset, by_part.values())):
        vectors = (contributors(count, world_size) for count in same)
        views.append({tuple(vector[rank] for rank in honest) for vector in vectors})
    if any(sum(map(bool, vector)) == 1 for view in views for vector in view):
        return 1  # somebody's contribution stands bare, most often so
    everybody = (1,) * len(honest)
    return min((fewest(view | {everybody}) for view in views), default=len(honest))


def fewest(vectors: Iterable[Iterable[int]]) -> int:
    """The least number of non-zero entries of a non-zero linear combination. One must exist."""
    rows = _independent([tuple(map(Fraction, vector)) for vector in vectors])
    weights: dict[Vector, int] = {}
    for column in zip(*rows, strict=True):
        if any(column):
            pivot = next(filter(None, column))
            multiple = tuple(entry / pivot for entry in column)
            weights[multiple] = weights.get(multiple, 0) + 1
    return _lightest(list(zip(*weights, strict=True)), list(weights.values()), {})


def _lightest(rows: list[Vector], weights: list[int], known: dict[frozenset[int], int]) -> int:
    """The same, of independent `rows` whose columns count `weights` each.

    `known` has the answer for the subspaces that were looked at, by the columns where they vanish.
    """
    alive = [column for column in range(len(weights)) if any(row[column] for row in rows)]
    if len(rows) == 1:
        return sum(weights[column] for column in alive)
    if len(rows) == len(alive):  # every single column can be had
        return min(weights[column] for column in alive)
    key = frozenset(alive)
    if key not in known:
        known[key] = min(_lightest(_vanishing(rows, one), weights, known) for one in alive)
    return known[key]


def _vanishing(rows: list[Vector], column: int) -> list[Vector]:
    """The combinations that vanish in `column`, where some row does not."""
    pivot = next(row for row in rows if row[column])
    return [
        tuple(a - b * (row[column] / pivot[column]) for a, b in zip(row, pivot, strict=True))
        for row in rows
        if row is not pivot
    ]


def _independent(rows: list[Vector]) -> list[Vector]:
    """Rows that are independent and span the same space."""
    basis: list[Vector] = []
    while rows := [row for row in rows if any(row)]:
        pivot = rows[0]
        basis.append(pivot)
        rows = _vanishing(rows, next(column for column, entry in enumerate(pivot) if entry))
    return basis
