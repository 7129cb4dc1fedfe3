"""Ring: parts travel once around to be added up, and once more to be handed out.

The buffer has p parts. Every rank always sends to the next rank and receives from the one before.
Part j starts on rank j and collects one contribution on every rank it passes; after p - 1 steps it
is finished on rank j - 1, which owns it. Another p - 1 steps carry the finished parts around.

Four ranks, the part that each rank sends in each round (add in rounds 1-3, copy in rounds 4-6):

    round     |  1  2  3 |  4  5  6
    ----------+----------+---------
    rank 0    |  0  3  2 |  1  0  3
    rank 1    |  1  0  3 |  2  1  0
    rank 2    |  2  1  0 |  3  2  1
    rank 3    |  3  2  1 |  0  3  2

Cost: 2 (p - 1) rounds, every rank sends 2 (p - 1) / p n bytes, the least possible:
2 (p - 1) alpha + 2 (p - 1) / p n beta + (p - 1) / p n gamma. Best for long buffers, slow to start.

Reference: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations" (2009).
"""

from __future__ import annotations

from collections.abc import Iterator

from collectives.schedule import (
    ADD,
    COPY,
    Algorithm,
    Combine,
    Exchange,
    Parts,
    Price,
    Round,
    Traffic,
)


def _travel(rank: int, world_size: int, first: int, combine: Combine) -> Iterator[Round]:
    """p - 1 rounds in which this rank sends part `first`, then the one before, and so on."""
    after, before = (rank + 1) % world_size, (rank - 1) % world_size
    for step in range(world_size - 1):
        sent = (first - step) % world_size
        received = (first - step - 1) % world_size
        yield [Exchange(after, (sent, sent + 1), before, (received, received + 1), combine)]


def reduce_scatter(rank: int, world_size: int) -> Iterator[Round]:
    """Every part goes once around and is added up."""
    return _travel(rank, world_size, rank, ADD)


def all_gather(rank: int, world_size: int) -> Iterator[Round]:
    """Every finished part goes once around."""
    return _travel(rank, world_size, rank + 1, COPY)


def owned(rank: int, world_size: int) -> Parts:
    """The part that ended its first journey here."""
    part = (rank + 1) % world_size
    return part, part + 1


ALGORITHM = Algorithm(
    name="ring",
    num_parts=lambda p: p,
    traffic=lambda p: Traffic(
        rounds=2 * (p - 1), messages=2 * (p - 1), sent=2 * (p - 1) / p, scratch=(p > 1) / p
    ),
    reduce_scatter=reduce_scatter,
    all_gather=all_gather,
    owned=owned,
    price=lambda p: Price(alpha=2 * (p - 1), beta=2 * (p - 1) / p, gamma=(p - 1) / p),
)
