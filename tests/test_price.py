"""The price of a schedule, walked through and in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives import ALGORITHMS, find
from collectives.clocks import Message
from collectives.price import (
    WALKED_MESSAGES,
    Link,
    Path,
    UnpricedError,
    adapted,
    critical_path,
    nodes_of,
    predict,
    walk,
)
from collectives.schedule import ADD, Algorithm, Round, Setting, Traffic, recv, send

NAMES = [*ALGORITHMS, "tree:3", "tree:16", "hierarchical:ring,recursive-doubling"]
ETHERNET = Link(alpha=20e-6, beta=1 / 1.25e9, gamma=1 / 4e9)
LATENCY = Link(alpha=1, beta=0, gamma=0)
BANDWIDTH = Link(alpha=0, beta=1, gamma=0)
LINKS = [
    ETHERNET,
    LATENCY,
    BANDWIDTH,
    Link(alpha=1, beta=1, gamma=3),
    Link(alpha=0, beta=1, gamma=1),
    Link(alpha=20e-6, overhead=1e-6, beta=1 / 1.25e9, gamma=1 / 4e9),
    Link(alpha=1, overhead=0, beta=1, gamma=3),
    Link(alpha=1, overhead=0, beta=0, gamma=0),
]
MB = 1024**2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16, 32, 64])
def test_closed_form_is_the_walked_path_at_powers_of_two(name: str, world_size: int) -> None:
    algorithm = find(name)
    assert algorithm.price
    walked = critical_path(algorithm, world_size, MB, ETHERNET)
    assert walked == Path(outside=algorithm.price(world_size))
    quick = replace(ETHERNET, overhead=1e-6)
    assert critical_path(algorithm, world_size, MB, quick) == walked


@pytest.mark.parametrize("name", NAMES)
def test_closed_form_takes_as_long_as_the_walk_at_any_world_size(name: str) -> None:
    algorithm = find(name)
    assert algorithm.price
    for world_size in (3, 5, 6, 7, 9, 12, 13, 15, 17, 24):
        told = Path(outside=algorithm.price(world_size))
        for link in LINKS:
            walked = critical_path(algorithm, world_size, 1000, link).seconds(1000, link)
            assert told.seconds(1000, link) == pytest.approx(walked, rel=1e-12)


@pytest.mark.parametrize("name", ["butterfly:4", "butterfly:5", "butterfly:4,2", "butterfly:8"])
def test_closed_form_of_a_butterfly_of_given_degrees_is_at_most_a_sixth_too_low(name: str) -> None:
    """Where only some ranks of the core have others folded onto them, the others go ahead."""
    algorithm = find(name)
    assert algorithm.price
    for world_size in range(8, 24):
        told = Path(outside=algorithm.price(world_size))
        for link in LINKS:
            walked = critical_path(algorithm, world_size, 1000, link).seconds(1000, link)
            assert walked * 5 / 6 <= told.seconds(1000, link) <= walked * (1 + 1e-12)


@pytest.mark.parametrize("nodes", [(0, 0, 0, 1, 1), (0, 1, 1, 2, 2, 2), (0,) * 5 + (1, 2)])
def test_closed_form_of_nodes_of_different_sizes_is_not_too_low(nodes: tuple[int, ...]) -> None:
    world_size = len(nodes)
    algorithm = ALGORITHMS["hierarchical"].adapted(Setting(num_bytes=1000, nodes=nodes))
    assert algorithm.price
    told = Path(outside=algorithm.price(world_size)).seconds(1000, ETHERNET)
    assert walk(algorithm, world_size, 1000, ETHERNET, nodes=nodes) <= told * (1 + 1e-12)


def test_a_ring_of_four_costs_what_the_textbook_says() -> None:
    told = 6 * 20e-6 + 1.5 * MB / 1.25e9 + 0.75 * MB / 4e9
    assert predict(ALGORITHMS["ring"], 4, MB, ETHERNET) == pytest.approx(told, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 6, 8])
def test_doubling_beta_doubles_the_time_when_nothing_else_costs(name: str, world_size: int) -> None:
    once, twice = Link(alpha=0, beta=3e-9, gamma=0), Link(alpha=0, beta=6e-9, gamma=0)
    assert walk(find(name), world_size, MB, twice) == 2 * walk(find(name), world_size, MB, once)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(NAMES), st.integers(1, 12), st.integers(0, 1 << 22),
    st.tuples(*[st.sampled_from([0.0, 1e-9, 1e-6])] * 3), st.sampled_from([0, 0.25, 1]),
)  # fmt: skip
def test_the_counts_on_the_path_give_the_time_and_nobody_is_faster_than_the_busiest(
    name: str, world_size: int, num_bytes: int, costs: tuple[float, float, float], share: float
) -> None:
    alpha, beta, gamma = costs
    link = Link(alpha=alpha, beta=beta, gamma=gamma, overhead=alpha * share)
    algorithm = adapted(find(name), world_size, num_bytes)
    path = critical_path(algorithm, world_size, num_bytes, link)
    seconds = walk(find(name), world_size, num_bytes, link)
    out = path.outside
    parts = (
        out.alpha * link.alpha,
        out.overhead * link.overhead,
        out.beta * num_bytes * link.beta,
        out.gamma * num_bytes * link.gamma,
    )
    assert seconds == pytest.approx(sum(parts), rel=1e-12)
    busiest = algorithm.traffic(world_size)
    if not busiest.bound:
        alone = busiest.messages * link.overhead + busiest.sent * num_bytes * link.beta
        assert seconds >= alone * (1 - 1e-12)


def test_messages_of_a_round_are_on_their_way_together() -> None:
    link = Link(alpha=1, overhead=1 / 8, beta=1 / 1024, gamma=1 / 2048)
    assert walk(ALGORITHMS["alltoall"], 4, 64, link) == 1 + 2 / 8 + 3 * (64 / 1024 + 64 / 2048)
    assert walk(find("butterfly:4"), 4, 64, link) == 2 * (1 + 2 / 8 + 48 / 1024) + 48 / 2048
    assert walk(ALGORITHMS["ring"], 4, 64, link) == 6 * (1 + 16 / 1024) + 48 / 2048


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 4, 6, 8])
def test_without_a_given_overhead_messages_go_one_after_another(name: str, world_size: int) -> None:
    link = Link(alpha=1, beta=0, gamma=0)
    assert link == replace(link, overhead=1)
    path = critical_path(find(name), world_size, 1, link)
    assert path.seconds(1, link) == path.outside.alpha + path.outside.overhead
    at_once = walk(find(name), world_size, 1, replace(link, overhead=0))
    assert at_once <= path.seconds(1, link)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [2, 5, 8])
@pytest.mark.parametrize("overhead", [1 / 8, 1])
def test_every_rank_begins_one_message_at_a_time(
    name: str, world_size: int, overhead: float
) -> None:
    messages: list[Message] = []
    link = replace(LATENCY, overhead=overhead)
    critical_path(find(name), world_size, 1, link, observe=messages.append)
    for end in ("source", "dest"):
        for rank in range(world_size):
            begun = sorted(one.begins for one in messages if getattr(one, end) == rank)
            assert all(b - a >= overhead for a, b in pairwise(begun))


def test_messages_inside_a_node_take_what_they_take_there() -> None:
    """Two nodes of two: one message inside, two between, one inside; half a buffer each."""
    near = Link(alpha=1 / 8, beta=1 / 1024, gamma=99)
    link = Link(alpha=1, beta=1 / 16, gamma=1 / 64)
    algorithm = adapted(ALGORITHMS["hierarchical"], 4, 1024, nodes := nodes_of(4, 2))
    seen: list[Message] = []
    path = critical_path(algorithm, 4, 1024, link, nodes=nodes, inside=near, observe=seen.append)
    inside, outside, added = 1 / 8 + 512 / 1024, 1 + 256 / 16, 512 / 64
    begins = [0, inside + added, inside + outside + added * 1.5, inside + 2 * outside + added * 1.5]
    assert sorted({message.begins for message in seen}) == begins
    assert path.seconds(1024, link, near) == begins[-1] + inside


def test_further_messages_inside_a_node_cost_the_overhead_there() -> None:
    """All in one round: to the other rank of the node, and to both of the other node."""
    near = Link(alpha=1 / 2, overhead=1 / 16, beta=0, gamma=0)
    link = Link(alpha=1, overhead=1 / 4, beta=0, gamma=0)
    seen: list[Message] = []
    alltoall, nodes = ALGORITHMS["alltoall"], nodes_of(4, 2)
    path = critical_path(alltoall, 4, 1024, link, nodes=nodes, inside=near, observe=seen.append)
    assert sorted({message.begins for message in seen}) == [0, 1 / 16, 1 / 4, 1 / 16 + 1 / 4]
    assert path.seconds(1024, link, near) == 1 / 16 + 1 / 4 + 1
    alone = walk(ALGORITHMS["alltoall"], 4, 1024, link, nodes=(0,) * 4, inside=near)
    assert alone == 1 / 2 + 2 / 16


def test_a_schedule_that_waits_for_ever_is_refused() -> None:
    def all_send_first(rank: int, world_size: int) -> Iterator[Round]:
        yield [send(1 - rank, (0, 1))]
        yield [recv(1 - rank, (0, 1), ADD)]

    greedy = Algorithm(
        name="greedy", num_parts=lambda p: 1, all_reduce=all_send_first,
        traffic=lambda p: Traffic(rounds=2, messages=1, sent=1, scratch=1),
    )  # fmt: skip
    with pytest.raises(ValueError, match="waits for ever"):
        walk(greedy, 2, 1, ETHERNET)


def test_a_large_world_is_priced_in_closed_form_or_not_at_all() -> None:
    ring, p = ALGORITHMS["ring"], 65536
    told = 2 * (p - 1) * 20e-6 + 2 * (p - 1) / p * MB / 1.25e9 + (p - 1) / p * MB / 4e9
    assert predict(ring, p, MB, ETHERNET) == pytest.approx(told, rel=1e-12)
    without = Algorithm(
        name="x", num_parts=ring.num_parts, traffic=ring.traffic, all_reduce=ring.rounds
    )
    assert p * ring.traffic(p).messages > WALKED_MESSAGES
    with pytest.raises(UnpricedError, match=r"x on 65536 ranks .* no closed form"):
        predict(without, p, MB, ETHERNET)
    with pytest.raises(UnpricedError, match="one kind of link"):
        predict(ring, p, MB, ETHERNET, nodes=nodes_of(p, 8), inside=ETHERNET)


def test_a_place_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be 0 or more seconds, got -1"):
        Link(alpha=-1, beta=0, gamma=0)
    with pytest.raises(ValueError, match="overhead must be 0 or more seconds, got -1"):
        Link(alpha=1, beta=0, gamma=0, overhead=-1)
    with pytest.raises(ValueError, match="overhead must be at most alpha, 1 seconds, got 2"):
        Link(alpha=1, beta=0, gamma=0, overhead=2)
    with pytest.raises(ValueError, match="world_size must be at least 1, got 0"):
        predict(ALGORITHMS["ring"], 0, 1, ETHERNET)
    with pytest.raises(ValueError, match="nodes must name one node for each of 4 ranks, got 3"):
        predict(ALGORITHMS["ring"], 4, 1, ETHERNET, nodes=(0, 0, 1))
