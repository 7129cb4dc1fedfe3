"""Round-robin: in round k rank i sends to rank i + k and hears from rank i - k.

The buffer has p parts and rank j owns part j. In the first half everyone brings each owner its
contribution, in person; in the second half every owner brings everyone its finished part. As in a
ring nobody moves more than is needed, but a part is added up in one place, and no message has to
wait for another one to have been added.

Four ranks, whom rank i sends to, and which part (add in rounds 1-3, copy in rounds 4-6):

    round |   1    2    3  |   4    5    6
    ------+----------------+---------------
    to    | i+1  i+2  i+3  | i+1  i+2  i+3
    part  | i+1  i+2  i+3  |   i    i    i

Cost: 2 (p - 1) rounds, every rank sends 2 (p - 1) / p n bytes, the least possible:
2 (p - 1) alpha + 2 (p - 1) / p n beta + (p - 1) / p n gamma. `butterfly` with the one degree p is
the same with all rounds of a half at once.

Reference: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
MPICH" (2005), which uses this pairwise exchange to reduce and scatter long buffers.
"""

from __future__ import annotations

from collections.abc import Iterator

from collectives.schedule import ADD, COPY, Algorithm, Exchange, Parts, Price, Round, Traffic


def _part(index: int) -> Parts:
    return index, index + 1


def _meetings(rank: int, world_size: int) -> Iterator[tuple[int, int]]:
    """Whom to send to and whom to hear from, round by round."""
    for step in range(1, world_size):
        yield (rank + step) % world_size, (rank - step) % world_size


def reduce_scatter(rank: int, world_size: int) -> Iterator[Round]:
    """Bring everyone the part that it owns."""
    for after, before in _meetings(rank, world_size):
        yield [Exchange(after, _part(after), before, _part(rank), ADD)]


def all_gather(rank: int, world_size: int) -> Iterator[Round]:
    """Bring everyone the part that this rank owns."""
    for after, before in _meetings(rank, world_size):
        yield [Exchange(after, _part(rank), before, _part(before), COPY)]


ALGORITHM = Algorithm(
    name="round-robin",
    num_parts=lambda p: p,
    traffic=lambda p: Traffic(
        rounds=2 * (p - 1), messages=2 * (p - 1), sent=2 * (p - 1) / p, scratch=(p > 1) / p
    ),
    reduce_scatter=reduce_scatter,
    all_gather=all_gather,
    owned=lambda rank, world_size: _part(rank),
    price=lambda p: Price(alpha=2 * (p - 1), beta=2 * (p - 1) / p, gamma=(p - 1) / p),
)
