"""Every algorithm in the table is proven for many world sizes, without MPI."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from collectives import ALGORITHMS
from collectives.schedule import (
    ADD,
    Algorithm,
    Exchange,
    Round,
    Rounds,
    Traffic,
    part_bounds,
    recv,
    send,
)
from collectives.verify import ScheduleError, verify

WORLD_SIZES = range(1, 33)
ROUNDS_ARE_A_BOUND = {"tree"}  # where the world size is no power of two


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_rank_ends_with_one_contribution_of_each(name: str, world_size: int) -> None:
    verify(ALGORITHMS[name], world_size)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_busiest_rank_does_what_is_documented(name: str, world_size: int) -> None:
    algorithm = ALGORITHMS[name]
    found, told = verify(algorithm, world_size), algorithm.traffic(world_size)
    assert (found.messages, found.sent) == (told.messages, told.sent)
    assert found.rounds <= told.rounds
    if name not in ROUNDS_ARE_A_BOUND or world_size & (world_size - 1) == 0:
        assert found == told


def made_of(
    rounds: Rounds, num_parts: Callable[[int], int] = lambda p: 1, name: str = "x"
) -> Algorithm:
    """An algorithm that promises nothing about its traffic."""
    nothing = Traffic(rounds=0, messages=0, sent=0)
    return Algorithm(name=name, num_parts=num_parts, traffic=lambda p: nothing, all_reduce=rounds)


def mutated(algorithm: Algorithm, change: Callable[[list[Round]], list[Round]]) -> Algorithm:
    """The algorithm with the rounds of rank 1 changed."""

    def rounds(rank: int, world_size: int) -> Iterator[Round]:
        whole = [list(one) for one in algorithm.rounds(rank, world_size)]
        yield from change(whole) if rank == 1 else whole

    return made_of(rounds, algorithm.num_parts, "mutant")


def drop_first(rounds: list[Round]) -> list[Round]:
    return [rounds[0][1:], *rounds[1:]]


def double_first(rounds: list[Round]) -> list[Round]:
    return [[rounds[0][0], *rounds[0]], *rounds[1:]]


def misdirect_first(rounds: list[Round]) -> list[Round]:
    first = rounds[0][0]
    wrong = replace(first, send_to=((first.send_to or 0) + 1) % 4)
    return [[wrong, *rounds[0][1:]], *rounds[1:]]


def other_parts(rounds: list[Round]) -> list[Round]:
    first = rounds[0][0]
    wrong = replace(first, send_parts=(first.send_parts[0] + 1, first.send_parts[1] + 1))
    return [[wrong, *rounds[0][1:]], *rounds[1:]]


def copy_for_add(rounds: list[Round]) -> list[Round]:
    from collectives.schedule import COPY

    return [[replace(e, combine=COPY) for e in one] for one in rounds]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("change", [drop_first, double_first, misdirect_first, other_parts])
def test_a_changed_exchange_is_caught(
    name: str, change: Callable[[list[Round]], list[Round]]
) -> None:
    with pytest.raises(ScheduleError):
        verify(mutated(ALGORITHMS[name], change), 4)


@pytest.mark.parametrize("name", ["ring", "alltoall"])
def test_copying_where_one_must_add_is_caught(name: str) -> None:
    with pytest.raises(ScheduleError):
        verify(mutated(ALGORITHMS[name], copy_for_add), 4)


def test_a_deadlock_under_rendezvous_is_caught() -> None:
    def all_send_first(rank: int, world_size: int) -> Iterator[Round]:
        peer = 1 - rank
        yield [send(peer, (0, 1))]
        yield [recv(peer, (0, 1), ADD)]

    greedy = made_of(all_send_first)
    with pytest.raises(ScheduleError, match="waiting for ever"):
        verify(greedy, 2)


def test_sums_in_different_orders_are_caught() -> None:
    """Dissemination: right for integers, but (a+b)+(c+d) on one rank is (b+c)+(d+a) on another."""

    def dissemination(rank: int, world_size: int) -> Iterator[Round]:
        distance = 1
        while distance < world_size:
            yield [Exchange((rank + distance) % 4, (0, 1), (rank - distance) % 4, (0, 1))]
            distance *= 2

    with pytest.raises(ScheduleError, match="different orders"):
        verify(made_of(dissemination), 4)


def test_wrong_ownership_is_caught() -> None:
    wrong = replace(ALGORITHMS["ring"], owned=lambda rank, world_size: (rank, rank + 1))
    with pytest.raises(ScheduleError, match="unfinished"):
        verify(wrong, 4)


def test_ranges_that_overlap_without_being_equal_are_refused() -> None:
    def overlapping(rank: int, world_size: int) -> Iterator[Round]:
        peer = 1 - rank
        yield [Exchange(peer, (0, 2), peer, (0, 2)), Exchange(peer, (1, 2), peer, (1, 2))]

    with pytest.raises(ScheduleError, match="overlap"):
        verify(made_of(overlapping, lambda p: 2), 2)


def test_an_algorithm_needs_all_of_it() -> None:
    with pytest.raises(TypeError, match="both halves"):
        Algorithm(name="half", num_parts=lambda p: 1, traffic=ALGORITHMS["ring"].traffic)


@pytest.mark.parametrize("length", [0, 1, 7, 100])
@pytest.mark.parametrize("num_parts", [1, 3, 8])
def test_parts_cover_the_buffer_and_differ_by_at_most_one(length: int, num_parts: int) -> None:
    bounds = part_bounds(length, num_parts)
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    assert (bounds[0], bounds[-1]) == (0, length)
    assert max(sizes) - min(sizes) <= 1
