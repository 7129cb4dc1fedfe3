"""All-reduces in two halves over shared memory, without MPI: any order of events is safe."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collectives
from collectives import ALGORITHMS, find
from collectives.dataflow import program
from collectives.schedule import Algorithm
from collectives.transports.base import Layout, Step
from collectives.transports.memory import Binding, Progress, ShmStep
from test_dataflow import World

NAMES = [*(name for name in ALGORITHMS if collectives.has_halves(name)), "tree:3"]
WITHOUT = [name for name in collectives.NAMES if not collectives.has_halves(name)]


class Between(ShmStep):
    """What a caller does between the halves: add to what it owns, and spoil all the rest."""

    def __init__(self, progress: Progress, buffer: np.ndarray, owned: slice) -> None:
        super().__init__(progress, [], [])
        self._buffer, self._owned = buffer, owned

    def work(self) -> None:
        """Every element that is not owned is meaningless here."""
        finished = self._buffer[self._owned].copy()
        self._buffer[:] = -7
        self._buffer[self._owned] = finished + 1


class Halves(World):
    """Ranks that run in two halves, and now and then as a whole."""

    def __init__(self, algorithm: Algorithm, world_size: int, length: int, dtype: str) -> None:
        super().__init__(algorithm, world_size, length, dtype)
        assert algorithm.owned is not None
        self.whole, self.halves = self.steps, {}
        first, second = (Layout(half, world_size, length) for half in algorithm.halves)
        for rank in range(world_size):
            (start, *_) = self.whole[rank]
            assert isinstance(start, ShmStep)
            binding = Binding(first, rank, self.buffers, start._progress)
            steps: list[Step] = []
            owned = first.elements(algorithm.owned(rank, world_size))
            for layout in (first, second):
                rounds = {one: layout.rounds(one) for one in range(world_size)}
                steps += binding.steps(program(rounds, rank))[0]
                if layout is first:
                    steps.append(Between(start._progress, self.buffers[rank], owned))
            self.halves[rank] = steps


def is_right(world: Halves, contributions: list[np.ndarray], order: random.Random) -> bool:
    """Whether all ranks get the sum plus one, over calls of both kinds in turn."""
    expected = sum(contributions, np.zeros_like(contributions[0]))
    right = []
    for steps, added in ((world.halves, 1), (world.halves, 1), (world.whole, 0), (world.halves, 1)):
        world.steps = steps
        right += [np.array_equal(one, expected + added) for one in world.call(contributions, order)]
    return all(right)


@given(
    name=st.sampled_from(NAMES),
    world_size=st.integers(1, 9),
    length=st.integers(0, 40),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None, max_examples=200)
def test_what_owners_add_is_in_every_result_in_every_order_of_events(
    name: str, world_size: int, length: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    contributions = [generator.integers(-(2**40), 2**40, length) for _ in range(world_size)]
    world = Halves(find(name), world_size, length, "int64")
    assert is_right(world, contributions, random.Random(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", range(4))
def test_a_rank_that_does_not_wait_in_a_half_is_noticed(name: str, rank: int) -> None:
    contributions = list(np.random.default_rng(1).integers(1, 2**40, (4, 8)))

    def goes_wrong(seed: int) -> bool:
        world = Halves(find(name), 4, 8, "int64")
        for step in world.halves[rank]:
            step._waits = []  # type: ignore[attr-defined]
        return not is_right(world, contributions, random.Random(seed))

    assert any(goes_wrong(seed) for seed in range(50))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("length", [0, 1, 3, 100])
def test_every_element_has_one_owner(name: str, world_size: int, length: int) -> None:
    algorithm = find(name)
    assert algorithm.owned is not None
    layout = Layout(algorithm, world_size, length)
    owners = np.zeros(length, int)
    for rank in range(world_size):
        owners[layout.elements(algorithm.owned(rank, world_size))] += 1
    assert (owners == 1).all()


@pytest.mark.parametrize("name", [*WITHOUT, "hierarchical:tree,ring"])
def test_what_has_no_halves_says_so_before_MPI_starts(name: str) -> None:
    able = "butterfly, halving-doubling, ring, round-robin, tree, auto"
    with pytest.raises(ValueError, match=f"{name} cannot be run in two halves, as {able} can"):
        collectives.check_halves(name)


@pytest.mark.parametrize("name", [*NAMES, "butterfly:4,2", "auto"])
def test_what_has_halves_passes(name: str) -> None:
    collectives.check_halves(name)
