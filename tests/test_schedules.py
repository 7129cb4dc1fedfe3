"""Every algorithm in the table is proven for many world sizes, without MPI."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives import ALGORITHMS, find
from collectives.algorithms.butterfly import default_degrees
from collectives.schedule import (
    ADD,
    COPY,
    Algorithm,
    Exchange,
    Round,
    Rounds,
    Setting,
    Traffic,
    part_bounds,
    recv,
    send,
)
from collectives.verify import ScheduleError, verify

WORLD_SIZES = range(1, 33)
LARGE = (48, 63, 64, 65, 100, 127, 128)
REMAINING = [size for size in range(33, 129) if size not in LARGE]


def holds(algorithm: Algorithm, world_size: int) -> None:
    """The schedule is right, and its busiest rank does what is documented."""
    found, told = verify(algorithm, world_size), algorithm.traffic(world_size)
    for name in ("rounds", "messages", "sent", "scratch"):
        real, limit = getattr(found, name), getattr(told, name)
        assert real <= limit + 1e-9, f"{algorithm.name}, {world_size} ranks: {name}"
        if not told.bound:
            assert real == pytest.approx(float(limit)), (
                f"{algorithm.name}, {world_size} ranks: {name}"
            )


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_rank_ends_with_one_contribution_of_each_as_documented(
    name: str, world_size: int
) -> None:
    holds(ALGORITHMS[name], world_size)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_large_worlds_are_right_too(name: str) -> None:
    for world_size in LARGE:
        holds(ALGORITHMS[name], world_size)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_world_up_to_128_ranks_is_right(name: str) -> None:
    for world_size in REMAINING:
        holds(ALGORITHMS[name], world_size)


@given(
    degrees=st.lists(st.integers(2, 5), min_size=1, max_size=3).filter(
        lambda d: math.prod(d) <= 24
    ),
    more=st.integers(0, 30),
)
@settings(deadline=None, max_examples=60)
def test_a_butterfly_of_any_degrees_works_for_any_world_that_is_large_enough(
    degrees: list[int], more: int
) -> None:
    holds(find("butterfly:" + ",".join(map(str, degrees))), math.prod(degrees) + more)


@given(segments=st.integers(1, 12), world_size=st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_a_tree_of_any_number_of_segments_is_right(segments: int, world_size: int) -> None:
    holds(find(f"tree:{segments}"), world_size)


@given(
    nodes=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    inner=st.sampled_from([name for name, one in ALGORITHMS.items()
                           if one.has_halves and name != "hierarchical"]),
    outer=st.sampled_from([name for name in ALGORITHMS if name != "hierarchical"]),
    num_bytes=st.sampled_from([0, 100, 10**7]),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_a_hierarchy_of_any_two_fits_any_nodes(
    nodes: list[int], inner: str, outer: str, num_bytes: int
) -> None:
    """Ranks of a node need not be in a row, and nodes need not have the same number of them."""
    setting = Setting(num_bytes=num_bytes, nodes=tuple(nodes))
    holds(find(f"hierarchical:{inner},{outer}").adapted(setting), len(nodes))


def test_long_buffers_are_cut_into_segments_by_the_tree() -> None:
    def segments(num_bytes: int) -> int:
        setting = Setting(num_bytes=num_bytes, nodes=(0, 0, 0, 0))
        return ALGORITHMS["tree"].adapted(setting).num_parts(4)

    assert [segments(size) for size in (0, 1, 1024**2, 1024**2 + 1, 64 * 1024**2, 2**40)] == [
        1, 1, 1, 2, 64, 64,
    ]  # fmt: skip


def test_pipelining_the_tree_lets_segments_meet_on_their_way() -> None:
    """With many segments almost as many rounds as segments, not twice as many."""
    assert verify(find("tree:32"), 8).rounds == 32 + 2 * 3 - 1


def test_default_degrees_multiply_to_the_world_and_begin_with_the_largest() -> None:
    for world_size in range(1, 200):
        degrees = default_degrees(world_size)
        assert math.prod(degrees) == world_size
        assert list(degrees) == sorted(degrees, reverse=True)
    assert [default_degrees(size) for size in (4, 6, 7, 8, 12, 16, 24)] == [
        (4,), (3, 2), (7,), (4, 2), (4, 3), (4, 4), (4, 3, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("rnig", "algorithm must be one of .*, got 'rnig'"),
        ("ring:3", "ring takes no arguments .*butterfly.*, got 'ring:3'"),
        ("butterfly:", "integers of at least 2, such as butterfly:4,2, got 'butterfly:'"),
        ("butterfly:4,1", "got 'butterfly:4,1'"),
        ("butterfly:4;2", "got 'butterfly:4;2'"),
        ("tree:0", "at least 1, such as tree:8, got 'tree:0'"),
        ("hierarchical:ring", "must be two of .*, got 'hierarchical:ring'"),
        ("hierarchical:recursive-doubling,ring", "must have two halves .*recursive-doubling,ring"),
        ("hierarchical:ring,hierarchical", "must be two of"),
    ],
)
def test_wrong_arguments_are_named_and_cured(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        find(name)


def test_more_degrees_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="butterfly:4,2 needs at least 8 ranks, got 4"):
        verify(find("butterfly:4,2"), 4)


def made_of(
    rounds: Rounds, num_parts: Callable[[int], int] = lambda p: 1, name: str = "x"
) -> Algorithm:
    """An algorithm that promises nothing about its traffic."""
    nothing = Traffic(rounds=0, messages=0, sent=0, scratch=0)
    return Algorithm(name=name, num_parts=num_parts, traffic=lambda p: nothing, all_reduce=rounds)


Change = Callable[[Exchange, int], list[Exchange]]
"""An exchange of a world of that many ranks -> what stands in its place."""


def dropped(exchange: Exchange, world_size: int) -> list[Exchange]:
    return []


def doubled(exchange: Exchange, world_size: int) -> list[Exchange]:
    return [exchange, exchange]


def misdirected(exchange: Exchange, world_size: int) -> list[Exchange]:
    if exchange.send_to is None:
        return heard_from_another(exchange, world_size)
    return [replace(exchange, send_to=(exchange.send_to + 1) % world_size)]


def heard_from_another(exchange: Exchange, world_size: int) -> list[Exchange]:
    if exchange.recv_from is None:
        return misdirected(exchange, world_size)
    return [replace(exchange, recv_from=(exchange.recv_from + 1) % world_size)]


def other_parts(exchange: Exchange, world_size: int) -> list[Exchange]:
    def next_to(parts: tuple[int, int]) -> tuple[int, int]:
        return parts[0] + 1, parts[1] + 1

    if exchange.send_to is None:
        return [replace(exchange, recv_parts=next_to(exchange.recv_parts))]
    return [replace(exchange, send_parts=next_to(exchange.send_parts))]


def combined_otherwise(exchange: Exchange, world_size: int) -> list[Exchange]:
    if exchange.recv_from is None:
        return dropped(exchange, world_size)
    return [replace(exchange, combine=COPY if exchange.combine is ADD else ADD)]


CHANGES = [dropped, doubled, misdirected, heard_from_another, other_parts, combined_otherwise]


def mutants(algorithm: Algorithm, world_size: int, change: Change) -> Iterator[Algorithm]:
    """The algorithm with `change` made in one place, for every place there is."""
    whole = [[list(one) for one in algorithm.rounds(r, world_size)] for r in range(world_size)]
    for rank, rounds in enumerate(whole):
        for number, exchanges in enumerate(rounds):
            for index, exchange in enumerate(exchanges):
                changed = [*exchanges]
                changed[index : index + 1] = change(exchange, world_size)
                mine = [*rounds[:number], changed, *rounds[number + 1 :]]

                def all_rounds(
                    one: int, size: int, rank: int = rank, mine: list[Round] = mine
                ) -> Iterator[Round]:
                    return iter(mine if one == rank else whole[one])

                yield made_of(all_rounds, algorithm.num_parts, f"{rank}, {number}, {index}")


@pytest.mark.parametrize("world_size", [3, 4, 6])
@pytest.mark.parametrize("name", [*ALGORITHMS, "tree:3", "hierarchical:tree,ring"])
@pytest.mark.parametrize("change", CHANGES)
def test_one_changed_exchange_is_caught_wherever_it_is(
    name: str, change: Change, world_size: int
) -> None:
    for mutant in mutants(find(name), world_size, change):
        with pytest.raises(ScheduleError):
            verify(mutant, world_size)
            pytest.fail(f"{change.__name__} at rank, round, exchange {mutant.name}")


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
