"""Shared memory without MPI: the steps of all ranks in one process, in any order they allow."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives import ALGORITHMS, find
from collectives.dataflow import program
from collectives.schedule import ADD, COPY, Algorithm, Combine, Exchange, Round, recv, send
from collectives.transports.base import CHUNK_BYTES, Layout, Step
from collectives.transports.memory import Binding, Progress, ShmStep
from collectives.verify import ScheduleError, check_round
from test_schedules import made_of

NAMES = [*ALGORITHMS, "tree:3", "hierarchical:tree,recursive-doubling"]


class World:
    """Ranks that share the memory of this process."""

    def __init__(self, algorithm: Algorithm, world_size: int, length: int, dtype: str) -> None:
        counters = {rank: memoryview(bytearray(8)).cast("q") for rank in range(world_size)}
        layout = Layout(algorithm, world_size, length)
        rounds = {rank: layout.rounds(rank) for rank in range(world_size)}
        self.buffers = {rank: np.zeros(length, dtype) for rank in range(world_size)}
        self.scratch_bytes = 0
        self.steps: dict[int, list[Step]] = {}
        for rank in range(world_size):
            progress = Progress(counters, rank, fence=lambda: None)
            binding = Binding(layout, rank, self.buffers, progress)
            self.steps[rank], scratch_bytes = binding.steps(program(rounds, rank))
            self.scratch_bytes = max(self.scratch_bytes, scratch_bytes)

    def call(self, contributions: list[np.ndarray], order: random.Random) -> list[np.ndarray]:
        """One all-reduce, ranks taking steps in a random order; what each rank gets.

        As a caller may, a rank writes its contribution only when it begins, and fills its buffer
        with something else as soon as it is through.
        """
        current = dict.fromkeys(self.steps, 0)
        results: list[np.ndarray] = [np.empty(0)] * len(current)
        worked: set[int] = set()
        while current:
            able = [r for r in current if r in worked or self.steps[r][current[r]].test()]
            assert able, f"waiting for ever: {current}"
            rank = order.choice(able)
            step = self.steps[rank][current[rank]]
            assert isinstance(step, ShmStep)
            if rank not in worked:  # what others can see of it comes later
                if current[rank] == 0:
                    self.buffers[rank][:] = contributions[rank]
                step.work()
                worked.add(rank)
                continue
            worked.remove(rank)
            step.tell()
            current[rank] += 1
            if current[rank] == len(self.steps[rank]):
                results[rank] = self.buffers[rank].copy()
                self.buffers[rank][:] = -1
                del current[rank]
        return results


def summed(
    algorithm: Algorithm,
    world_size: int,
    length: int,
    dtype: str = "int64",
    seed: int = 0,
    order_seed: int = 0,
) -> list[bytes]:
    """What the ranks get, over three calls in a row; integers are compared with the exact sum."""
    world = World(algorithm, world_size, length, dtype)
    generator, order = np.random.default_rng(seed), random.Random(order_seed)
    contributions = [generator.integers(-(2**40), 2**40, length) for _ in range(world_size)]
    if dtype == "float64":
        contributions = [one / 3.0 ** generator.integers(0, 60, length) for one in contributions]
    found = set()
    for _ in range(3):
        results = world.call(contributions, order)
        if dtype == "int64":
            expected = sum(contributions, np.zeros(length, np.int64))
            assert all(np.array_equal(one, expected) for one in results)
        found |= {one.tobytes() for one in results}
    return sorted(found)


@given(
    name=st.sampled_from(NAMES),
    world_size=st.integers(1, 9),
    length=st.integers(0, 40),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None, max_examples=300)
def test_the_sum_is_exact_in_every_order_of_events(
    name: str, world_size: int, length: int, seed: int
) -> None:
    assert len(summed(find(name), world_size, length, seed=seed, order_seed=seed)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_floating_point_bits_do_not_depend_on_the_order_of_events(name: str) -> None:
    found = {
        bits
        for order_seed in range(5)
        for bits in summed(find(name), 7, 50, "float64", order_seed=order_seed)
    }
    assert len(found) == 1


Message = tuple[int, int, tuple[int, int], Combine]
"""From, to, parts, what happens to them."""


def random_times(draw: random.Random, world_size: int, num_parts: int) -> list[list[Message]]:
    """Messages that may travel at the same time, for several times; no all-reduce, just moves."""
    times = []
    for _ in range(draw.randint(1, 6)):
        messages: list[Message] = []
        for _ in range(draw.randint(1, 2 * world_size)):
            source, dest = draw.sample(range(world_size), 2)
            first = draw.randrange(num_parts)
            parts = first, draw.randint(first + 1, num_parts)
            more = [*messages, (source, dest, parts, draw.choice([ADD, COPY]))]
            with contextlib.suppress(ScheduleError):
                for rank in range(world_size):
                    check_round(exchanges_of(rank, more), "", num_parts, world_size)
                messages = more
        times.append(messages)
    return times


def exchanges_of(rank: int, messages: list[Message]) -> Round:
    """What a rank does at one time."""
    found: Round = []
    for source, dest, parts, combine in messages:
        if source == rank:
            found.append(send(dest, parts))
        if dest == rank:
            found.append(recv(source, parts, combine))
    return found


def moved(values: np.ndarray, times: list[list[Message]]) -> np.ndarray:
    """The meaning of rounds, in the words of collectives.schedule: [rank, part]."""
    for messages in times:
        begun = values.copy()
        for source, dest, (first, last), combine in messages:
            if combine is COPY:
                values[dest, first:last] = begun[source, first:last]
            else:
                values[dest, first:last] += begun[source, first:last]
    return values


@given(seed=st.integers(0, 2**32), world_size=st.integers(2, 4), num_parts=st.integers(1, 4))
@settings(deadline=None, max_examples=400)
def test_any_rounds_mean_the_same_in_memory_as_in_words(
    seed: int, world_size: int, num_parts: int
) -> None:
    draw = random.Random(seed)
    times = random_times(draw, world_size, num_parts)

    def rounds(rank: int, size: int) -> Iterator[Round]:
        yield from (exchanges_of(rank, messages) for messages in times)

    world = World(made_of(rounds, lambda p: num_parts), world_size, num_parts, "int64")
    values = np.array([[10**r + part for part in range(num_parts)] for r in range(world_size)])
    expected = moved(values.copy(), times)
    for _ in range(3):
        found = world.call(list(values), draw)
        assert np.array_equal(np.array(found), expected)


@pytest.mark.parametrize("name", ["alltoall", "butterfly"])
def test_long_parts_are_summed_in_pieces(name: str) -> None:
    length = 3 * CHUNK_BYTES // 8 + 5
    assert len(summed(find(name), 3, length)) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [12, 17, 32])
def test_nothing_waits_for_ever_in_larger_worlds(name: str, world_size: int) -> None:
    summed(find(name), world_size, 2 * world_size)


@pytest.mark.parametrize(
    ("name", "buffers"),
    [("ring", 0), ("round-robin", 0), ("halving-doubling", 0), ("butterfly", 0), ("tree", 0),
     ("alltoall", 1), ("recursive-doubling", 1)],
)  # fmt: skip
def test_only_ranks_that_swap_the_same_parts_put_sums_aside(name: str, buffers: int) -> None:
    length = 2**18
    world = World(find(name), 4, length, "int64")
    assert world.scratch_bytes == buffers * length * 8
    floats = World(find(name), 4, length, "float64")
    assert floats.scratch_bytes == buffers * length * 8 + CHUNK_BYTES  # their order is kept


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", range(4))
def test_a_rank_that_does_not_wait_is_noticed(name: str, rank: int) -> None:
    generator = np.random.default_rng(1)
    contributions = [generator.integers(1, 2**40, 8) for _ in range(4)]
    expected = sum(contributions, np.zeros(8, np.int64))

    def goes_wrong(seed: int) -> bool:
        world, order = World(find(name), 4, 8, "int64"), random.Random(seed)
        for step in world.steps[rank]:
            step._waits = []  # type: ignore[attr-defined]
        results = [one for _ in range(2) for one in world.call(contributions, order)]
        return not all(np.array_equal(one, expected) for one in results)

    assert any(goes_wrong(seed) for seed in range(50))


def test_a_round_with_peers_near_and_far_is_refused() -> None:
    def both(rank: int, world_size: int) -> Iterator[Round]:
        yield [Exchange(p, (0, 1), p, (0, 1), ADD) for p in range(world_size) if p != rank]

    layout = Layout(made_of(both), 3, 4)
    with pytest.raises(ValueError, match="round 0 of rank 0 talks to ranks \\[1, 2\\]"):
        program({0: layout.rounds(0), 1: layout.rounds(1)}, 0)


def test_progress_in_one_call_says_nothing_about_the_next() -> None:
    world = World(find("ring"), 3, 9, "int64")
    order = random.Random(0)
    first = [np.full(9, rank) for rank in range(3)]
    second = [np.full(9, 10 * rank) for rank in range(3)]
    assert all((one == 3).all() for one in world.call(first, order))
    assert all((one == 30).all() for one in world.call(second, order))
