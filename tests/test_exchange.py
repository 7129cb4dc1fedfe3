"""From finished parts to pieces on their way: order, completeness, and what may be overlapped."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from dpsgd import exchange, streams
from dpsgd.exchange import Exchange, Piece, cut
from dpsgd.phases import PhaseTimer
from dpsgd.release import Release, private_grid

LENGTH = 1000
GRID = private_grid(
    wire="int64", noise="split", max_grad_norm=1.0, rho=0.002, noise_multiplier=2.0,
    num_params=LENGTH, expected_batch_size=100.0, world_size=2,
)  # fmt: skip


class Alone:
    """The all-reduce of one rank, which takes note of every call."""

    name, transport, choice = "alone", "none", None

    def __init__(self, length: int, calls: list[str], label: str) -> None:
        self.buffer = np.zeros(length, np.int64)
        self._calls, self._label = calls, label

    def start(self) -> None:
        self._calls.append(f"start {self._label}")

    def test(self) -> bool:
        self._calls.append(f"look {self._label}")
        return False

    def wait(self) -> None:
        self._calls.append(f"wait {self._label}")


def made(pieces: list[slice], calls: list[str] | None = None) -> Exchange:
    calls = [] if calls is None else calls
    alone: list[Any] = [Alone(one.stop - one.start, calls, str(i)) for i, one in enumerate(pieces)]
    release = Release(GRID, streams.insecure(3, 0).noise)
    return Exchange(
        release, [Piece(*pair) for pair in zip(pieces, alone, strict=True)], PhaseTimer()
    )


def total(pieces: list[slice], parts: list[slice], event: int = 5) -> Any:
    one = made(pieces)
    one.begin(event)
    one.sum[:] = np.random.default_rng(1).normal(size=LENGTH)
    one.take(parts)
    one.finish(event + 1)
    return one.decode(1.0, np.empty(LENGTH))


WHOLE = [slice(0, LENGTH)]


@pytest.mark.parametrize(
    ("pieces", "parts"),
    [
        (WHOLE, [slice(500, LENGTH), slice(0, 500)]),
        ([slice(700, LENGTH), slice(0, 700)], [slice(901, LENGTH), slice(333, 901), slice(0, 333)]),
        ([slice(i, i + 1) for i in range(0, LENGTH)], WHOLE),
    ],
)
def test_pieces_and_parts_do_not_change_the_sum(pieces: list[slice], parts: list[slice]) -> None:
    """Noise belongs to an element, not to the moment when it is drawn."""
    assert np.array_equal(total(pieces, parts), total(WHOLE, WHOLE))


def test_the_noise_of_an_event_is_the_same_ahead_and_in_time() -> None:
    one = made(WHOLE)
    one.begin(4)
    one.take(WHOLE)
    one.finish(5)  # draws the noise of event 5
    one.begin(5)
    one.sum[:] = np.random.default_rng(1).normal(size=LENGTH)
    one.take(WHOLE)
    one.finish(None)
    assert np.array_equal(one.decode(1.0, np.empty(LENGTH)), total(WHOLE, WHOLE))


def test_the_noise_has_the_size_that_was_planned() -> None:
    """One share of two; false alarm below 1e-9: six standard errors."""
    one = made(WHOLE)
    values = []
    for event in range(50):
        one.begin(event)
        one.sum[:] = 0
        one.take(WHOLE)
        one.finish(None)
        values.append(one.decode(1.0, np.empty(LENGTH)))
    found = np.std(values) * math.sqrt(2) / GRID.sensitivity
    assert abs(found / 2.0 - 1) < 6 / math.sqrt(2 * 50 * LENGTH)


def test_a_piece_starts_when_its_last_part_is_there_and_is_looked_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "DRAWN_AT_ONCE", LENGTH // 2)
    calls: list[str] = []
    one = made([slice(600, LENGTH), slice(0, 600)], calls)
    one.begin(0)
    calls.clear()
    one.ready(slice(800, LENGTH))
    assert calls == []
    one.ready(slice(600, 800))
    assert calls == ["start 0", "look 0"]
    one.ready(slice(0, 600))
    assert calls[2:] == ["start 1", "look 0", "look 1"]
    calls.clear()
    one.finish(1)
    assert calls == ["look 0", "look 1"] * 2 + ["wait 0", "wait 1"]


def test_a_part_that_never_came_is_noticed() -> None:
    one = made(WHOLE)
    one.begin(0)
    one.ready(slice(1, LENGTH))
    with pytest.raises(RuntimeError, match="never finished"):
        one.finish(None)


def test_long_vectors_are_cut_between_parts_in_the_order_in_which_they_are_finished() -> None:
    sizes = [40_000, 70_000, 64, 200_000, 10]
    stops = np.cumsum(sizes)[::-1]
    parts = [
        slice(int(stop - size), int(stop)) for stop, size in zip(stops, sizes[::-1], strict=True)
    ]
    pieces = cut(parts, itemsize=4)
    assert [one.stop - one.start for one in pieces] == [200_010, 70_064, 40_000]
    covered = sorted((one.start, one.stop) for one in pieces)
    assert covered[0][0] == 0 and covered[-1][1] == sum(sizes)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))
    assert cut([slice(0, 10)], 8) == [slice(0, 10)]
    assert len(cut([slice(i, i + 10**6) for i in range(0, 10**8, 10**6)], 4)) <= exchange.MAX_PIECES
