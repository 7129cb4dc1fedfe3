"""Tree: reduce along a binomial tree to rank 0, then broadcast down the same tree.

In round k a rank whose k lowest bits are zero either receives from the rank 2^k above it and adds,
or, if bit k is set, sends what it has to the rank 2^k below it and is done. The broadcast plays the
same film backwards.

Four ranks, one part:

    round | messages       | then
    ------+----------------+----------------------------
      1   | 1 -> 0, 3 -> 2 | 0 has x0+x1, 2 has x2+x3
      2   | 2 -> 0         | 0 has the sum
      3   | 0 -> 2         |
      4   | 0 -> 1, 2 -> 3 | all have it

Cost: 2 ceil(lg p) rounds; rank 0 sends ceil(lg p) n bytes and receives as many:
2 lg p (alpha + n beta) + lg p n gamma. Few messages, so good for short buffers over slow links.

Reference: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
MPICH" (2005), on broadcast and reduce.
"""

from __future__ import annotations

from collections.abc import Iterator

from collectives.schedule import ADD, COPY, Algorithm, Parts, Round, Traffic, recv, send

WHOLE: Parts = (0, 1)


def reduce_scatter(rank: int, world_size: int) -> Iterator[Round]:
    """Reduce to rank 0, which then owns the only part."""
    mask = 1
    while mask < world_size:
        if rank & mask:
            yield [send(rank ^ mask, WHOLE)]
            return
        if rank | mask < world_size:
            yield [recv(rank | mask, WHOLE, ADD)]
        mask <<= 1


def all_gather(rank: int, world_size: int) -> Iterator[Round]:
    """Broadcast from rank 0, the widest step first."""
    mask = 1
    while mask < world_size and not rank & mask:
        mask <<= 1
    if rank:
        yield [recv(rank ^ mask, WHOLE, COPY)]
    while mask := mask >> 1:
        if rank | mask < world_size:
            yield [send(rank | mask, WHOLE)]


def owned(rank: int, world_size: int) -> Parts:
    """Rank 0 owns everything between the halves."""
    return WHOLE if rank == 0 else (0, 0)


def ceil_lg(number: int) -> int:
    """The least k for which 2^k is at least `number`."""
    return (number - 1).bit_length()


ALGORITHM = Algorithm(
    name="tree",
    num_parts=lambda p: 1,
    traffic=lambda p: Traffic(rounds=2 * ceil_lg(p), messages=ceil_lg(p), sent=ceil_lg(p)),
    reduce_scatter=reduce_scatter,
    all_gather=all_gather,
    owned=owned,
)
