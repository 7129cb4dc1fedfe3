"""Recursive doubling: in round k everyone swaps its sum with the rank 2^k away, and both add.

After round k a rank has the sum over a block of 2^(k + 1) ranks; after lg p rounds over all.

Four ranks, one part:

    round | who swaps        | everyone has
    ------+------------------+--------------
      1   | 0 - 1,  2 - 3    | x0+x1 or x2+x3
      2   | 0 - 2,  1 - 3    | the sum

If p is no power of two, the ranks beyond the largest one, c, fold: they hand in their buffers
before, and get the sum afterwards.

Cost: lg c rounds of whole buffers, lg c (alpha + n beta + n gamma), and 2 alpha + 2 n beta +
n gamma for the fold. The fewest rounds there can be, so it wins for short buffers. There are no
halves: every rank holds every part all the time.

Reference: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
MPICH" (2005).
"""

from __future__ import annotations

from collections.abc import Iterator

from collectives.schedule import (
    ADD,
    Algorithm,
    Exchange,
    Parts,
    Price,
    Round,
    Traffic,
    fold,
    unfold,
)

WHOLE: Parts = (0, 1)


def core_of(world_size: int) -> int:
    """The largest power of two that is not above `world_size`."""
    return 1 << (world_size.bit_length() - 1)


def all_reduce(rank: int, world_size: int) -> Iterator[Round]:
    """Swap and add, over distances 1, 2, 4, ..."""
    core = core_of(world_size)
    yield from fold(rank, world_size, core, WHOLE)
    mask = 1
    while mask < core and rank < core:
        yield [Exchange(rank ^ mask, WHOLE, rank ^ mask, WHOLE, ADD)]
        mask <<= 1
    yield from unfold(rank, world_size, core, WHOLE)


def traffic(world_size: int) -> Traffic:
    """A rank that another one is folded onto is the busiest."""
    core = core_of(world_size)
    steps, folded = core.bit_length() - 1, world_size > core
    sent = steps + folded
    return Traffic(rounds=steps + 2 * folded, messages=sent, sent=sent, scratch=world_size > 1)


def price(world_size: int) -> Price:
    """As in the docstring of this file."""
    core = core_of(world_size)
    steps, folded = core.bit_length() - 1, world_size > core
    return Price(alpha=steps + 2 * folded, beta=steps + 2 * folded, gamma=steps + folded)


ALGORITHM = Algorithm(
    name="recursive-doubling",
    num_parts=lambda p: 1,
    traffic=traffic,
    all_reduce=all_reduce,
    price=price,
)
