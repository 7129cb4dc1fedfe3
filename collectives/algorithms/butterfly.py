"""Butterfly: groups of d1 ranks divide the buffer among themselves, then groups of d2, and so on.

A layer of degree d joins groups of d ranks that hold the same range of parts. Everyone sends each
of the others its piece of that range and adds up the pieces that come for its own, all at once; so
the range shrinks by d. When the degrees are used up, every rank owns one part; the layers are then
played backwards to hand the finished parts out. A rank's number, written with the degrees as bases
of its digits, says which piece it takes in each layer.

One layer of degree p is the direct exchange, `halving-doubling` has all degrees 2; degrees between
them trade messages for rounds. Without arguments the prime factors of p are used, pairs of twos
being joined to fours, the largest first: the first layer moves the most bytes, so it should take
the widest step.

Eight ranks, `butterfly:4,2`, eight parts:

    layer | groups                      | rank 5 (digits 1, 1) has the sum of its group for
    ------+-----------------------------+----------------------------------------------------
      1   | 0 1 2 3   4 5 6 7           | parts 2-3
      2   | 0 4   1 5   2 6   3 7       | part 3

Cost: sum of 2 (d - 1) messages, every rank sends 2 (p - 1) / p n bytes:
sum of 2 (alpha + (d - 2) overhead) + 2 (p - 1) / p n beta + (p - 1) / p n gamma. If the product c
of given degrees is below p, the other ranks are folded onto the first c.

Reference: Zhao and Canny, "Butterfly mixing: accelerating incremental-update algorithms on
clusters" (2013); nested butterflies of mixed degrees are in their later work on sparse all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

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
    fold,
    folds,
    unfold,
)

Degrees = tuple[int, ...]
DegreesOf = Callable[[int], Degrees]


def default_degrees(world_size: int) -> Degrees:
    """The prime factors of `world_size`, the largest first, pairs of twos as fours."""
    degrees, rest, factor = [], world_size, 4
    while rest > 1:
        while rest % factor == 0:
            degrees.append(factor)
            rest //= factor
        factor = {4: 2, 2: 3}.get(factor, factor + 2)
        if factor * factor > rest > 1 and factor > 2:
            factor = rest
    return tuple(sorted(degrees, reverse=True))


def _layers(rank: int, degrees: Degrees) -> list[tuple[list[int], int, Parts]]:
    """For each layer: the ranks of this rank's group, its own place there, and the range."""
    layers = []
    first, last, distance = 0, math.prod(degrees), 1
    for degree in degrees:
        place = rank // distance % degree
        group = [rank + (other - place) * distance for other in range(degree)]
        layers.append((group, place, (first, last)))
        width = (last - first) // degree
        first, last = first + place * width, first + (place + 1) * width
        distance *= degree
    return layers


def _swap(group: list[int], place: int, whole: Parts, combine: Combine) -> Round:
    """All exchanges of one layer: to bring the others their pieces, or to hand out one's own."""
    width = (whole[1] - whole[0]) // len(group)

    def piece(other: int) -> Parts:
        return whole[0] + other * width, whole[0] + (other + 1) * width

    exchanges = []
    for step in range(1, len(group)):
        to, source = (place + step) % len(group), (place - step) % len(group)
        sent, received = (to, place) if combine is ADD else (place, source)
        exchanges.append(Exchange(group[to], piece(sent), group[source], piece(received), combine))
    return exchanges


def butterfly(name: str, degrees_of: DegreesOf) -> Algorithm:
    """The butterfly whose layers have the degrees that `degrees_of` a world size gives."""

    def core_of(world_size: int) -> int:
        return math.prod(degrees_of(world_size))

    def reduce_scatter(rank: int, world_size: int) -> Iterator[Round]:
        core = core_of(world_size)
        yield from fold(rank, world_size, core, (0, core))
        if rank < core:
            for group, place, whole in _layers(rank, degrees_of(world_size)):
                yield _swap(group, place, whole, ADD)

    def all_gather(rank: int, world_size: int) -> Iterator[Round]:
        core = core_of(world_size)
        if rank < core:
            for group, place, whole in reversed(_layers(rank, degrees_of(world_size))):
                yield _swap(group, place, whole, COPY)
        yield from unfold(rank, world_size, core, (0, core))

    def owned(rank: int, world_size: int) -> Parts:
        degrees = degrees_of(world_size)
        if rank >= math.prod(degrees):
            return 0, 0
        if not degrees:
            return 0, 1
        (*_, (group, place, whole)) = _layers(rank, degrees)
        width = (whole[1] - whole[0]) // len(group)
        return whole[0] + place * width, whole[0] + (place + 1) * width

    def traffic(world_size: int) -> Traffic:
        degrees, core = degrees_of(world_size), core_of(world_size)
        extras = folds(world_size, core)
        return Traffic(
            rounds=2 * len(degrees) + 2 * (extras > 0),
            messages=sum(2 * (degree - 1) for degree in degrees) + extras,
            sent=2 * (core - 1) / core + extras,
            scratch=max(extras, 1 - 1 / degrees[0] if degrees else 0),
        )

    def price(world_size: int) -> Price:
        degrees, core = degrees_of(world_size), core_of(world_size)
        extras = folds(world_size, core)
        return Price(
            alpha=2 * len(degrees) + 2 * (extras > 0),
            overhead=sum(2 * (degree - 2) for degree in degrees) + 2 * max(0, extras - 1),
            beta=2 * (core - 1) / core + 2 * extras,
            gamma=(core - 1) / core + extras,
        )

    return Algorithm(
        name=name,
        num_parts=core_of,
        traffic=traffic,
        reduce_scatter=reduce_scatter,
        all_gather=all_gather,
        owned=owned,
        price=price,
    )


def configure(arguments: str) -> Algorithm:
    """`4,2`: a layer of degree 4, then one of degree 2."""
    name = f"butterfly:{arguments}"
    words = arguments.split(",")
    if not all(word.isascii() and word.isdecimal() and int(word) >= 2 for word in words):
        raise ValueError(
            f"degrees must be integers of at least 2, such as butterfly:4,2, got {name!r}"
        )
    degrees = tuple(map(int, words))

    def degrees_of(world_size: int) -> Degrees:
        if math.prod(degrees) > world_size:
            raise ValueError(f"{name} needs at least {math.prod(degrees)} ranks, got {world_size}")
        return degrees

    return butterfly(name, degrees_of)


ALGORITHM = replace(butterfly("butterfly", default_degrees), configure=configure)
