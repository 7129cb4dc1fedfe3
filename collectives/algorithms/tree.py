"""Tree: reduce along a binomial tree to rank 0, then broadcast down the same tree.

On level k a rank whose k lowest bits are zero either receives from the rank 2^k above it and adds,
or, if bit k is set, sends what it has to the rank 2^k below it and is done. The broadcast plays the
same film backwards.

Four ranks, one part:

    round | messages       | then
    ------+----------------+----------------------------
      1   | 1 -> 0, 3 -> 2 | 0 has x0+x1, 2 has x2+x3
      2   | 2 -> 0         | 0 has the sum
      3   | 0 -> 2         |
      4   | 0 -> 1, 2 -> 3 | all have it

Long buffers are cut into segments that follow each other through the tree, one round apart, so that
a segment climbs while the one before it comes down: the busiest rank sends and receives at the
same time. `tree:8` has eight segments, `tree` alone one for every SEGMENT_BYTES.

Cost with S segments: S + 2 lg p - 1 rounds; rank 0 sends lg p n bytes and receives as many. With
one segment 2 lg p (alpha + n beta) + lg p n gamma; with many, lg p (S alpha + n beta + n gamma) and
the time to fill and drain the tree. Few messages, so good for short buffers over slow links.

Reference: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
MPICH" (2005), on broadcast and reduce.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from collectives.schedule import (
    ADD,
    COPY,
    Algorithm,
    Exchange,
    Parts,
    Price,
    Round,
    Setting,
    Traffic,
    ceil_lg,
    recv,
    send,
)

SEGMENT_BYTES = 1024**2
MAX_SEGMENTS = 64


def _links(rank: int, world_size: int) -> Iterator[tuple[int, int, bool]]:
    """Level, peer, and whether the peer is the parent, from the leaves to the root."""
    for level in range(ceil_lg(world_size)):
        mask = 1 << level
        if rank & mask:
            yield level, rank ^ mask, True
            return
        if rank | mask < world_size:
            yield level, rank | mask, False


def _climb(rank: int, world_size: int, num_segments: int, time: int) -> Round:
    """What a rank does at one time of the reduction: segment s is on level k at time s + k."""
    exchanges: list[Exchange] = []
    for level, peer, is_parent in _links(rank, world_size):
        segment = time - level
        if 0 <= segment < num_segments:
            part = segment, segment + 1
            exchanges.append(send(peer, part) if is_parent else recv(peer, part, ADD))
    return exchanges


def _descend(rank: int, world_size: int, num_segments: int, time: int) -> Round:
    """The same of the broadcast, which begins on the highest level."""
    exchanges: list[Exchange] = []
    for level, peer, is_parent in _links(rank, world_size):
        segment = time - (ceil_lg(world_size) - 1 - level)
        if 0 <= segment < num_segments:
            part = segment, segment + 1
            exchanges.append(recv(peer, part, COPY) if is_parent else send(peer, part))
    return exchanges


def with_segments(name: str, num_segments: int) -> Algorithm:
    """The tree for a buffer of that many segments."""

    def climbing(world_size: int) -> range:
        return range(num_segments + ceil_lg(world_size) - 1 if world_size > 1 else 0)

    def reduce_scatter(rank: int, world_size: int) -> Iterator[Round]:
        for time in climbing(world_size):
            if exchanges := _climb(rank, world_size, num_segments, time):
                yield exchanges

    def all_gather(rank: int, world_size: int) -> Iterator[Round]:
        for time in climbing(world_size):
            if exchanges := _descend(rank, world_size, num_segments, time):
                yield exchanges

    def all_reduce(rank: int, world_size: int) -> Iterator[Round]:
        height = ceil_lg(world_size)
        for time in range(len(climbing(world_size)) + height):
            exchanges = _climb(rank, world_size, num_segments, time)
            exchanges += _descend(rank, world_size, num_segments, time - height)
            if exchanges:
                yield exchanges

    def owned(rank: int, world_size: int) -> Parts:
        return (0, num_segments) if rank == 0 else (0, 0)

    def traffic(world_size: int) -> Traffic:
        height = ceil_lg(world_size)
        return Traffic(
            rounds=num_segments + 2 * height - 1 if height else 0,
            messages=num_segments * height,
            sent=height,
            scratch=min(num_segments, height) / num_segments,
            bound=num_segments > 1,
        )

    def price(world_size: int) -> Price:
        """What rank 0 does, one round after the other; nobody has more to do."""
        alpha, messages, gamma = 0, 0, 0
        for exchanges in all_reduce(0, world_size):
            received = sum(e.recv_from is not None for e in exchanges)
            alpha += 1
            messages += max(received, len(exchanges) - received)
            gamma += received
        return Price(
            alpha=alpha, overhead=messages - alpha,
            beta=messages / num_segments, gamma=gamma / num_segments,
        )  # fmt: skip

    return Algorithm(
        name=name,
        num_parts=lambda p: num_segments,
        traffic=traffic,
        all_reduce=all_reduce,
        reduce_scatter=reduce_scatter,
        all_gather=all_gather,
        owned=owned,
        price=price,
    )


def configure(arguments: str) -> Algorithm:
    """`8`: eight segments."""
    name = f"tree:{arguments}"
    if not (arguments.isascii() and arguments.isdecimal() and int(arguments)):
        raise ValueError(f"the number of segments must be at least 1, such as tree:8, got {name!r}")
    return with_segments(name, int(arguments))


def adapt(setting: Setting) -> Algorithm:
    """One segment for every SEGMENT_BYTES."""
    segments = -(-setting.num_bytes // SEGMENT_BYTES)
    return with_segments("tree", max(1, min(MAX_SEGMENTS, segments)))


ALGORITHM = replace(with_segments("tree", 1), configure=configure, adapt=adapt)
