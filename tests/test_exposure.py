"""What can be formed from what is seen."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectives import ALGORITHMS, exposure
from collectives.schedule import ADD, COPY, Algorithm, Round, Traffic, recv, send

WHOLE = (0, 1)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_without_masks_the_worst_rank_and_the_worst_link_see_a_bare_contribution(
    name: str, world_size: int
) -> None:
    assert exposure.ranks(ALGORITHMS[name], world_size) == 1
    assert exposure.link(ALGORITHMS[name], world_size) == 1


def test_the_public_sees_only_the_sum_of_all() -> None:
    assert exposure.public(8) == 8


def test_what_cannot_be_analysed_counts_as_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor's all-reduce has no schedule; shared memory shows more than its messages."""
    assert exposure.OPAQUE == 1
    monkeypatch.setattr(exposure, "OPAQUE", 77)  # no schedule has it, so it can be told apart
    tree = ALGORITHMS["tree"]
    assert exposure.ranks(tree, 4, 3, "shm") == exposure.link(tree, 4, "shm") == 77
    assert exposure.ranks(None, 4, 3) == exposure.link(None, 4) == 77
    assert exposure.ranks(tree, 4, 3) == exposure.link(tree, 4) == 1


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_a_leaf_of_the_tree_sees_only_the_sum_of_all_others(world_size: int) -> None:
    tree = ALGORITHMS["tree"]
    assert [exposure.of_ranks(tree, world_size, [rank]) for rank in range(world_size)] == [
        1 if rank % 2 == 0 else world_size - 1 for rank in range(world_size)
    ]


def test_a_link_high_in_the_tree_shows_sums_of_many() -> None:
    tree = ALGORITHMS["tree"]
    assert exposure.of_link(tree, 8, 0, 1) == 1
    assert exposure.of_link(tree, 8, 0, 2) == 2
    assert exposure.of_link(tree, 8, 0, 4) == 4


def test_a_link_that_is_not_used_shows_what_the_public_sees() -> None:
    assert exposure.of_link(ALGORITHMS["ring"], 6, 0, 3) == 6


def chain(rank: int, world_size: int) -> Iterator[Round]:
    """Sum up from rank 0 to the last rank, and send the sum back."""
    if rank > 0:
        yield [recv(rank - 1, WHOLE, ADD)]
    if rank < world_size - 1:
        yield [send(rank + 1, WHOLE)]
        yield [recv(rank + 1, WHOLE, COPY)]
    if rank > 0:
        yield [send(rank - 1, WHOLE)]


CHAIN = Algorithm(
    name="chain", num_parts=lambda p: 1, all_reduce=chain,
    traffic=lambda p: Traffic(rounds=4, messages=2, sent=2, scratch=1),
)  # fmt: skip


def test_differences_of_what_is_seen_count() -> None:
    """Rank r of the chain knows x0 + ... + x(r-1), and from the final sum what comes after it."""
    for world_size in range(2, 9):
        for rank in range(world_size):
            before, after = rank, world_size - 1 - rank
            expected = min(number for number in (before, after) if number)
            assert exposure.of_ranks(CHAIN, world_size, [rank]) == expected


def test_a_link_of_the_chain_splits_the_sum_in_two() -> None:
    for rank in range(7):
        assert exposure.of_link(CHAIN, 8, rank, rank + 1) == min(rank + 1, 7 - rank)


def test_colluding_ranks_take_their_own_contributions_off() -> None:
    """Ranks 2 and 5 of 8 know x0 + x1, x3 + x4 and x6 + x7; ranks 1 and 7 know x0."""
    assert exposure.of_ranks(CHAIN, 8, [2, 5]) == 2
    assert exposure.of_ranks(CHAIN, 8, [3, 4]) == 3
    assert exposure.of_ranks(CHAIN, 8, [1, 7]) == 1
    assert exposure.ranks(CHAIN, 8, colluding=2) == 1
    assert exposure.ranks(CHAIN, 8, colluding=7) == 1


def test_the_bare_contribution_of_an_accomplice_is_no_leak() -> None:
    assert exposure.of_ranks(CHAIN, 6, [1]) == 1
    assert exposure.of_ranks(CHAIN, 6, [0, 1]) == 4


@pytest.mark.parametrize("colluding", [0, 4, 5])
def test_somebody_must_be_honest_and_somebody_curious(colluding: int) -> None:
    with pytest.raises(ValueError, match=f"colluding must be from 1 to 3 of 4 .* got {colluding}"):
        exposure.ranks(CHAIN, 4, colluding)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[1, 1, 1, 1]], 4),
        ([[1, 1, 0, 0], [1, 1, 1, 1]], 2),
        ([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], 2),
        ([[1, 1, 0], [0, 1, 1]], 2),  # x0 - x2, but no bare contribution
        ([[1, 1, 0], [0, 1, 1], [1, 0, 1]], 1),  # half of x0+x1 + x0+x2 - (x1+x2)
        ([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], 1),
        ([[1, 2, 0], [1, 1, 1]], 2),
        ([[2, 2, 0], [1, 1, 0]], 2),
    ],
)
def test_the_fewest_contributions_are_found_exactly(
    vectors: list[list[int]], expected: int
) -> None:
    assert exposure.fewest(vectors) == expected


MATRICES = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 2), min_size=width, max_size=width), min_size=1, max_size=4
    ).filter(lambda rows: any(map(any, rows)))
)


def rank_of(rows: list[list[int]], columns: list[int]) -> int:
    """By fractions of integers: eliminate without dividing."""
    left = [[row[column] for column in columns] for row in rows]
    rank = 0
    for column in range(len(columns)):
        pivot = next((row for row in left[rank:] if row[column]), None)
        if pivot is None:
            continue
        left.remove(pivot)
        left.insert(rank, pivot)
        for number, row in enumerate(left):
            if number > rank:
                left[number] = [
                    a * pivot[column] - b * row[column] for a, b in zip(row, pivot, strict=True)
                ]
        rank += 1
    return rank


@given(MATRICES)
def test_it_is_what_trying_all_supports_finds(rows: list[list[int]]) -> None:
    """Some combination lives on a set of columns if the others do not have the full rank."""
    width = len(rows[0])
    full = rank_of(rows, list(range(width)))
    for size in range(1, width + 1):
        for support in itertools.combinations(range(width), size):
            others = [column for column in range(width) if column not in support]
            if rank_of(rows, others) < full:
                assert exposure.fewest(rows) == size
                return
    raise AssertionError("a non-zero row lives somewhere")


def test_the_order_of_what_is_seen_does_not_matter() -> None:
    dice = random.Random(11)
    rows = [[dice.randint(0, 1) for _ in range(9)] for _ in range(4)]
    expected = exposure.fewest(rows)
    for _ in range(5):
        dice.shuffle(rows)
        assert exposure.fewest(rows) == expected
