"""Epsilon against published numbers; calibration; the ledger."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpsgd import accounting
from dpsgd.accounting import LiveEpsilon, Steps, delta_left, epsilon
from dpsgd.calibration import calibrate
from dpsgd.errors import ConfigError, PrivacyError, UserError
from dpsgd.ledger import RESERVATION, Ledger, append, history, merged


def steps(rate: float, noise: float, count: int) -> Steps:
    return Steps(sample_rate=rate, noise_multiplier=noise, count=count)


@pytest.mark.parametrize(
    ("one", "delta", "tight", "rdp"),
    [
        (steps(0.01, 4.0, 10_000), 1e-5, 0.9469, 1.0355),
        (steps(1.0, 1.0, 1), 1e-5, 4.377178, None),
        (steps(256 / 1_220_000, 0.9, 47_660), 1e-6, 0.2853, 0.895),
    ],
)
def test_published_numbers_are_reproduced(
    one: Steps, delta: float, tight: float, rdp: float | None
) -> None:
    assert epsilon([one], delta) == pytest.approx(tight, rel=1.1e-3)
    assert epsilon([one], delta) >= tight * (1 - 5e-4)
    if rdp is not None:
        assert accounting.rdp_epsilon([one], delta) == pytest.approx(rdp, rel=2e-3)


def test_one_gaussian_release_equals_the_closed_form() -> None:
    """Balle and Wang, "Improving the Gaussian mechanism" (2018), theorem 8."""

    def delta_of(eps: float, sigma: float) -> float:
        def phi(x: float) -> float:
            return math.erfc(-x / math.sqrt(2)) / 2

        a, b = 1 / (2 * sigma), eps * sigma
        return phi(a - b) - math.exp(eps) * phi(-a - b)

    for sigma in (0.7, 1.0, 3.0):
        found = epsilon([steps(1.0, sigma, 1)], 1e-5)
        assert delta_of(found, sigma) <= 1e-5
        assert delta_of(found * (1 - 2e-3), sigma) > 1e-5


def test_nothing_released_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([steps(0.1, 1.0, 0)], 1e-5) == 0
    assert epsilon([steps(0.0, 1.0, 10)], 1e-5) == 0
    assert epsilon([steps(0.1, 0.0, 1)], 1e-5) == math.inf


@pytest.mark.parametrize("noise", [math.nan, math.inf, -1.0])
def test_nonsense_that_the_library_would_accept_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        steps(0.1, noise, 10)
    with pytest.raises(ValueError, match="delta"):
        epsilon([steps(0.1, 1.0, 1)], math.nan)


def test_an_answer_that_is_no_number_is_a_refusal() -> None:
    assert accounting._checked(math.nan) == math.inf
    assert accounting._checked(0.0) == math.inf
    assert accounting._checked(-1.0) == math.inf


def test_imprecision_of_the_noise_is_paid_from_delta() -> None:
    one = [steps(0.1, 3.5, 600)]
    exact, paid = epsilon(one, 1e-5), epsilon(one, 1e-5, imprecision=1e-7)
    assert paid > exact
    assert paid <= epsilon(one, 1e-5 - (1 + math.exp(paid)) * 1e-7) * (1 + 1e-2)
    assert epsilon(one, 1e-5, imprecision=1e-5) == math.inf
    assert delta_left(1e-5, 3.0, 1e-9) == pytest.approx(1e-5 - (1 + math.exp(3)) * 1e-9)


@pytest.mark.parametrize(
    ("target", "delta"), [(1e-4, 1e-5), (3.0, 1e-12), (3.0, 5e-12), (0.3, 1e-15)]
)
def test_calibration_holds_where_only_one_of_the_bounds_does(target: float, delta: float) -> None:
    """Tiny epsilon, and a delta so small that PLD is not asked (T 2^-52 is over 1% of it)."""
    sigma = calibrate(target, 0.1, 600, delta, 0.0)
    assert epsilon([steps(0.1, sigma, 600)], delta) <= target
    assert (accounting.bound([steps(0.1, 3.5, 600)], 1e-12)[0]) == accounting.rdp_epsilon(
        [steps(0.1, 3.5, 600)], 1e-12
    )


@pytest.mark.parametrize(
    ("target", "count", "delta"),
    [(3.1004065038406094e-06, 2, 5.285705262603101e-06), (8.67e-06, 1, 0.00676)],
)
def test_an_epsilon_below_what_any_interval_shows_is_reached_or_refused(
    target: float, count: int, delta: float
) -> None:
    try:
        sigma = calibrate(target, 1.0, count, delta, 0.0)
    except PrivacyError:
        return
    assert epsilon([steps(1.0, sigma, count)], delta, at_most=target) <= target


def test_a_tiny_epsilon_of_much_noise_is_found() -> None:
    assert 0 < epsilon([steps(0.1, 1e4, 3)], 1e-5, 1e-14) < 0.01


@pytest.mark.parametrize("target", [0.1, 1.0, 3.0, 8.0])
def test_calibration_reaches_the_target_and_never_passes_it(target: float) -> None:
    sigma = calibrate(target, 0.1, 600, 1e-5, 4e-12)
    found = epsilon([steps(0.1, sigma, 600)], 1e-5, 4e-12, target)
    assert 0.998 * target <= found <= target


def test_calibration_finds_the_noise_of_the_recipe() -> None:
    assert calibrate(3.0, 0.1, 600, 1e-5, 0.0) == pytest.approx(3.536, rel=2e-3)


def test_an_epsilon_that_cannot_be_reached_says_why() -> None:
    with pytest.raises(PrivacyError, match=r"epsilon 1e-09 cannot be reached at delta 1e-05"):
        calibrate(1e-9, 1.0, 10**6, 1e-5, 0.0)
    with pytest.raises(PrivacyError, match=r"epsilon 1e\+09 cannot be reached"):
        calibrate(1e9, 0.1, 600, 1e-5, 4e-12)


def test_more_steps_a_higher_rate_or_less_noise_never_cost_less() -> None:
    base = epsilon([steps(0.05, 2.0, 200)], 1e-5)
    assert epsilon([steps(0.05, 2.0, 400)], 1e-5) > base
    assert epsilon([steps(0.06, 2.0, 200)], 1e-5) > base
    assert epsilon([steps(0.05, 1.9, 200)], 1e-5) > base
    assert epsilon([steps(0.05, 2.0, 200), steps(0.01, 5.0, 10)], 1e-5) > base


def run(**changes: Any) -> Any:
    numbers: dict[str, Any] = {
        "id": "r1", "unit": "record", "private": True, "sample_rate": 0.1, "noise_multiplier": 3.5,
        "steps": 100, "delta": 1e-5, "imprecision_per_step": 1e-15, "epsilon": 3.0,
    }  # fmt: skip
    made = SimpleNamespace(**({"fitted": None} | numbers | changes))
    made.accounted = steps(made.sample_rate, made.noise_multiplier, made.steps)
    return made


def test_the_live_epsilon_grows_and_never_passes_that_of_the_run() -> None:
    whole = epsilon([steps(0.1, 3.5, 600)], 1e-5)
    live = LiveEpsilon(steps(0.1, 3.5, 600), whole, 1e-5, 1e-12)
    values = [live(count) for count in (1, 50, 300, 599, 600)]
    assert values == sorted(values)  # type: ignore[type-var]
    for count, value in ((1, values[0]), (300, values[2])):
        assert value is not None and value >= epsilon([steps(0.1, 3.5, count)], 1e-5)
    assert values[-1] == whole
    assert LiveEpsilon(steps(0.1, 0.0, 600), math.inf, 1e-5, 0.0)(5) is None


class Alone:
    """A communicator of one rank."""

    rank, size = 0, 1

    def bcast(self, value: Any) -> Any:
        return value

    def Barrier(self) -> None:
        return None


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_on_disk_before_they_are_used(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Alone(), run(steps=100))  # type: ignore[arg-type]
    for event in range(100):
        assert ledger.next() == event
        reserved = sum(e["events"] for e in entries(path) if e["entry"] == "reserve")
        assert reserved > event
    assert reserved == 100
    assert [e["entry"] for e in entries(path)] == ["run", "reserve", "reserve"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def spent(path: Path) -> list[Steps]:
    return merged([one.steps for one in history(path, "record")])


def test_a_run_that_stops_early_stays_charged_for_what_it_reserved(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Alone(), run(steps=100))  # type: ignore[arg-type]
    for _ in range(10):
        ledger.next()
    (found,) = history(path, "record")
    assert found.steps.count == RESERVATION
    assert found.imprecision == pytest.approx(RESERVATION * 1e-15)


def test_all_runs_compose_and_one_that_is_not_private_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for name in ("a", "b"):
        ledger = Ledger(path, Alone(), run(id=name, steps=5))  # type: ignore[arg-type]
        for _ in range(5):
            ledger.next()
    assert spent(path) == [steps(0.1, 3.5, 10)]
    assert all(one.private for one in history(path, "record"))
    Ledger(path, Alone(), run(id="c", private=False)).next()  # type: ignore[arg-type]
    assert not all(one.private for one in history(path, "record"))


def test_a_last_line_without_its_end_is_passed_over_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, Alone(), run(steps=5)).next()  # type: ignore[arg-type]
    whole = path.read_text()
    path.write_text(whole + '{"entry": "reser')
    assert spent(path) == [steps(0.1, 3.5, 5)]
    append(path, {"entry": "reserve", "run": "r1", "events": 2})
    assert spent(path) == [steps(0.1, 3.5, 7)]
    assert path.read_text().startswith(whole)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"entry": "reserve", "run": "?", "events": 1}',
        '{"entry": "reserve", "run": "r1", "events": -5}',
        '{"entry": "reserve", "run": "r1", "events": NaN}',
        '{"entry": "reserve", "run": "r1", "events": 1.5}',
        '{"entry": "return", "run": "r1", "events": 1}',
        '{"entry": "run", "run": "r2", "unit": "record"}',
        # a second header for the same run, with more noise
        '{"entry": "run", "run": "r1", "unit": "record", "private": true, "sample_rate": 0.1, '
        '"noise_multiplier": 100.0, "imprecision_per_step": 0.0}',
        '{"entry": "run", "run": "r2", "unit": "record", "private": "false", "sample_rate": 0.1, '
        '"noise_multiplier": 1.0, "imprecision_per_step": 0.0}',
        '{"entry": "run", "run": "r2", "unit": "record", "private": true, "sample_rate": 0.1, '
        '"noise_multiplier": 1.0, "imprecision_per_step": -1.0}',
        '{"entry": "run", "run": "r2", "unit": "record", "private": true, "sample_rate": 0.1, '
        '"noise_multiplier": NaN, "imprecision_per_step": 0.0}',
        '{"entry": "run", "run": "r2", "unit": "household", "private": true, "sample_rate": 0.1, '
        '"noise_multiplier": 1.0, "imprecision_per_step": 0.0}',
    ],
)
def test_a_line_that_makes_no_sense_fails_closed(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, Alone(), run()).next()  # type: ignore[arg-type]
    path.write_text(path.read_text() + f"{line}\n")
    with pytest.raises(PrivacyError, match="line 3 cannot be read"):
        history(path, "record")
    with pytest.raises(UserError, match="line 3 cannot be read"):
        Ledger(path, Alone(), run(id="r3"))  # type: ignore[arg-type]


def test_a_ledger_that_cannot_be_written_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ledger or DPSGD_LEDGER"):
        Ledger(tmp_path / "missing/ledger.jsonl", Alone(), run())  # type: ignore[arg-type]
