"""Fitted numbers: refused without a budget, charged before data is read, near the truth, noisy."""

from __future__ import annotations

import copy
import json
import math
import os
import statistics as exact
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpsgd.accounting import Steps, epsilon, rdp_epsilon
from dpsgd.ledger import history
from helpers import Launch
from preprocess import __main__ as command
from preprocess import shards, statistics
from preprocess.errors import DataError, UsageError
from preprocess.fitted import Statistics, fit, fitted_columns, without_fitted
from preprocess.schema import from_schema
from preprocess.statistics import Budget, budget_of, noise

DOCUMENT: dict[str, Any] = {
    "format": 2,
    "name": "fit",
    "header": ["age", "income", "job", "y"],
    "missing_tokens": ["", "na"],
    "label": "y",
    "columns": [
        {"name": "age", "low": 0, "high": 100, "impute": {"fitted": "median"}},
        {
            "name": "income", "kind": "number", "low": -1000, "high": 9000, "outside": "clip",
            "impute": {"fitted": "mean"},
        },
        {
            "name": "job", "impute": {"fitted": "mode"},
            "levels": {"fitted": "frequent", "of": ["clerk", "smith", "poet"], "at_least": 400},
        },
        {"name": "y", "low": 0, "high": 1},
    ],
    "private_statistics": {"epsilon": 1.0, "delta": 1e-6},
    "encoding": {
        "row_norm": 2.6,
        "features": [
            {"kind": "one-hot",
             "of": [{"column": "age", "lower_edges": {"fitted": "quantiles", "bins": 4}}]},
            {"kind": "scaled", "column": "income", "low": {"fitted": "quantile", "at": 0.05},
             "high": {"fitted": "quantile", "at": 0.95}},
            {"kind": "one-hot", "of": [{"column": "job"}]},
        ],
    },
}  # fmt: skip


def toml(value: Any) -> str:
    """A TOML value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def write_spec(path: Path, document: dict[str, Any]) -> Path:
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in document.items()))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    generator = np.random.default_rng(5)
    lines = ["age,income,job,y"]
    for _ in range(20_000):
        age, income = generator.integers(20, 61), generator.normal(3000, 1000)
        job = "clerk" if generator.random() < 0.7 else "smith"
        lines.append(f"{age},{income:.2f},{job},{generator.integers(2)}")
    lines += ["na,na,na,1"] * 50 + ["x,1,clerk,1"]
    path = tmp_path / "raw.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_fitted_numbers_without_a_budget_are_refused_and_nothing_is_written(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {key: value for key, value in DOCUMENT.items() if key != "private_statistics"}
    spec = write_spec(tmp_path / "spec.toml", document)
    before = sorted(tmp_path.iterdir())
    code = command.main(
        ["--input", str(raw), "--output", str(tmp_path / "set"), "--spec", str(spec)]
    )
    assert code == 2
    assert "impute of column age is fitted to the data, which is a release" in (
        capsys.readouterr().err
    )
    assert sorted(tmp_path.iterdir()) == before


def test_fitted_numbers_are_charged_once_and_are_near_the_truth(raw: Path, tmp_path: Path) -> None:
    spec, target = write_spec(tmp_path / "spec.toml", DOCUMENT), tmp_path / "set"
    arguments = ["--input", str(raw), "--output", str(target), "--spec", str(spec)]
    assert command.main(arguments) == 0
    assert command.main(arguments) == 0, "up to date: nothing is drawn or charged again"
    manifest = shards.read_manifest(target)
    schema = shards.read_schema(target, manifest)
    columns = {column["name"]: column for column in schema["columns"]}
    assert abs(columns["age"]["impute"] - 40) <= 2
    assert abs(columns["income"]["impute"] - 3000) < 100
    assert columns["job"] == {"name": "job", "levels": ["clerk", "smith"], "impute": "clerk"}
    edges = schema["encoding"]["features"][0]["of"][0]["lower_edges"]
    assert edges[0] <= 20, "nobody is below, whatever the noise makes of it"
    assert np.abs(np.array(edges[1:]) - [30, 40, 50]).max() <= 2
    bounds = schema["encoding"]["features"][1]
    assert abs(bounds["low"] - 1355) < 250 and abs(bounds["high"] - 4645) < 250
    assert "private_statistics" not in schema
    assert manifest["private_statistics"]["columns"] == ["age", "income", "job"]
    (charged,) = history(tmp_path / "set.ledger.jsonl", "record")
    assert charged.private
    noise_multiplier = manifest["private_statistics"]["noise_multiplier"]
    assert charged.steps == Steps(sample_rate=1.0, noise_multiplier=noise_multiplier, count=1)
    assert command.main([*arguments, "--force"]) == 0
    assert len(history(tmp_path / "set.ledger.jsonl", "record")) == 2, "a new release"


def test_the_ledger_is_on_disk_before_a_record_is_read(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, ledger = write_spec(tmp_path / "spec.toml", DOCUMENT), tmp_path / "a.jsonl"

    def read(*_: Any, **__: Any) -> Any:
        assert len(history(ledger, "record")) == 1
        raise DataError("as far as it goes")

    monkeypatch.setattr(statistics, "read", read)
    arguments = ["--input", str(raw), "--output", str(tmp_path / "set"), "--spec", str(spec)]
    assert command.main([*arguments, "--ledger", str(ledger)]) == 5
    assert len(history(ledger, "record")) == 1, "what was charged stays so"
    assert not (tmp_path / "set").exists()
    unwritable = ["--ledger", str(tmp_path)]
    assert command.main([*arguments, *unwritable]) == 2


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5])
def test_the_noise_is_enough_for_the_budget_and_not_twice_too_much(
    epsilon: float, delta: float
) -> None:
    noise_multiplier = Budget(epsilon=epsilon, delta=delta).noise_multiplier
    steps = [Steps(sample_rate=1.0, noise_multiplier=noise_multiplier, count=1)]
    orders = [1 + x / 100 for x in range(1, 1000)] + list(range(11, 5000))
    assert 0.5 * epsilon < rdp_epsilon(steps, delta, tuple(orders)) <= epsilon * 1.0001


def test_noise_is_a_rounded_gaussian() -> None:
    drawn = [noise(30.0) for _ in range(4000)]
    assert all(type(one) is int for one in drawn)
    assert abs(exact.mean(drawn)) < 6 * 30 / math.sqrt(4000), "false alarm below 1e-8"
    assert abs(exact.stdev(drawn) / 30 - 1) < 6 / math.sqrt(2 * 4000)
    assert len(set(drawn)) > 100


def test_all_columns_share_one_budget(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deviations: list[float] = []

    def silent(deviation: float) -> int:
        deviations.append(deviation)
        return 0

    monkeypatch.setattr(statistics, "noise", silent)
    budget = budget_of(DOCUMENT)
    from preprocess.sources import find_sources

    sources = find_sources([raw])
    resolved = fit(
        DOCUMENT, lambda plain, needs: statistics.draw(plain, needs, sources, None, budget)
    )
    spec = from_schema(resolved)
    assert spec.column("age").impute == 40 and spec.column("job").levels == ("clerk", "smith")
    queries = 5  # cells of three columns, and a sum and a count
    each = budget.noise_multiplier * math.sqrt(queries)
    assert set(deviations) == {each, each * statistics.GRID}
    assert len(deviations) == 101 + 128 + 2 + 3


def test_a_statistic_stays_in_the_domain_whatever_the_noise() -> None:
    for counts in ([-5, -2, -9], [0, 0, 0], [10**9, -(10**9), 3]):
        found = Statistics(values=[1, 2, 3], counts=counts)
        assert {found.mode(), *(found.quantile(at / 10) for at in range(11))} <= {1, 2, 3}
    column = from_schema(without_fitted(DOCUMENT)).column("income")
    for total, number in ((10**12, 1), (-(10**12), -4), (0, 0)):
        assert column.low <= statistics._mean(column, total, number) <= column.high


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("columns", 0, "impute", "fitted"), "max", "must be mean or median or mode, got 'max'"),
        (("columns", 0, "low"), {"fitted": "quantile", "at": 0}, "is its domain, which must be"),
        (("columns", 2, "impute", "fitted"), "mean", "must be a mode, or public: it has levels"),
        (("columns", 2, "levels", "at_least"), 0, "at_least of fitted levels of column job must"),
        (("columns", 3, "impute"), {"fitted": "mode"}, "the label, y, must be public"),
        (("encoding", "features", 1, "low", "at"), 2, "at of fitted low of column income must be"),
        (("encoding", "features", 0, "of", 0, "lower_edges", "bins"), 1, "must be an integer in"),
    ],
)
def test_what_cannot_be_fitted_is_named_before_anything_is_charged(
    path: tuple[Any, ...], value: Any, words: str
) -> None:
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises((DataError, UsageError)) as error:
        fitted_columns(document)
    assert words in str(error.value), error.value


@pytest.mark.parametrize(
    "table",
    [
        {"epsilon": 1},
        {"epsilon": 0, "delta": 1e-6},
        {"epsilon": 1e-304, "delta": 1e-6},
        {"epsilon": 1, "delta": 0.5},
        {"epsilon": True, "delta": 1e-6},
    ],
)
def test_a_budget_is_checked(table: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="private_statistics"):
        budget_of(DOCUMENT | {"private_statistics": table})


def test_a_dry_run_and_units_of_several_records_are_refused(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path / "spec.toml", DOCUMENT)
    assert command.main(["--input", str(raw), "--dry-run", "--spec", str(spec)]) == 2
    assert "--dry-run must not be given for a spec with fitted" in capsys.readouterr().err
    unit = {"kind": "person", "key": "age", "max_records": 2}
    spec = write_spec(tmp_path / "unit.toml", DOCUMENT | {"unit": unit})
    arguments = ["--input", str(raw), "--output", str(tmp_path / "set"), "--spec", str(spec)]
    assert command.main(arguments) == 2
    assert "unit must be record to fit numbers" in capsys.readouterr().err


def test_a_model_pays_for_the_fitted_numbers_that_it_was_made_with(
    raw: Path, tmp_path: Path, mpirun: Launch
) -> None:
    spec, target = write_spec(tmp_path / "spec.toml", DOCUMENT), tmp_path / "set"
    arguments = ["--input", str(raw), "--output", str(target), "--spec", str(spec)]
    assert command.main(arguments) == 0
    (tmp_path / "set.ledger.jsonl").rename(tmp_path / "lost.jsonl")
    run = ["-m", "dpsgd.run", "--data", target, "--noise-multiplier", "9", "--steps", "5"]
    for name in ("one", "two"):
        done = mpirun(2, *run, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    privacy = json.loads((tmp_path / "two/privacy.json").read_text())
    fitted = shards.read_manifest(target)["private_statistics"]
    assert privacy["fitted_noise_multiplier"] == fitted["noise_multiplier"]
    of_numbers = Steps(sample_rate=1.0, noise_multiplier=fitted["noise_multiplier"], count=1)
    assert privacy["epsilon"] > epsilon([of_numbers], 1e-5), "training costs something, too"
    assert privacy["epsilon_all_runs"] >= privacy["epsilon"]
    recorded = history(tmp_path / "set.ledger.jsonl", "record")
    assert [one.steps.count for one in recorded] == [1, 5, 5], "entered again, and once"
    (tmp_path / "torn.jsonl").write_text(
        (tmp_path / "set.ledger.jsonl").read_text().splitlines(keepends=True)[0]
    )
    done = mpirun(2, *run, "--out", tmp_path / "three", "--ledger", tmp_path / "torn.jsonl")
    assert done.returncode == 0, done.stderr
    recorded = history(tmp_path / "torn.jsonl", "record")
    assert [one.steps.count for one in recorded] == [1, 5], (
        "the half that a crash left is completed"
    )
    (tmp_path / "broken.jsonl").write_text("{}\n")
    done = mpirun(2, *run, "--out", tmp_path / "four", "--ledger", tmp_path / "broken.jsonl")
    assert done.returncode == 3 and "cannot be read" in done.stderr
    assert "were fitted with noise multiplier" in (tmp_path / "two/privacy.md").read_text()


@pytest.mark.parametrize("change", ["levels", "header", "empty", "ledger"])
def test_what_can_be_known_to_be_wrong_costs_nothing(
    change: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, ledger = copy.deepcopy(DOCUMENT), tmp_path / "set.ledger.jsonl"
    more: list[str] = []
    if change == "levels":
        positive = {"kind": "binary", "column": "job", "positive": ["poet"]}
        document["encoding"]["features"].append(positive)
    elif change == "header":
        raw.write_text(raw.read_text().replace("age,income,job,y", "age,income,job,z"))
    elif change == "empty":
        raw.write_text("age,income,job,y\n")
    else:
        more = ["--ledger", str(raw)]
    before = raw.read_bytes()
    spec = write_spec(tmp_path / "spec.toml", document)
    arguments = ["--input", str(raw), "--output", str(tmp_path / "set"), "--spec", str(spec)]
    assert command.main([*arguments, *more]) in (2, 5)
    assert capsys.readouterr().err.count("\n") == 1
    assert not ledger.exists() and raw.read_bytes() == before


def test_a_pipe_that_would_be_read_twice_is_refused_before_anything_is_charged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, pipe = write_spec(tmp_path / "spec.toml", DOCUMENT), tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    arguments = ["--input", str(pipe), "--output", str(tmp_path / "set"), "--spec", str(spec)]
    assert command.main(arguments) == 2
    assert "input must be files to fit numbers" in capsys.readouterr().err
    assert not (tmp_path / "set.ledger.jsonl").exists()


def test_quantiles_that_coincide_leave_the_bounds_of_the_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Statistics(values=[1, 2, 3], counts=[0, 90, 0], mean=2.0)
    levels = Statistics(values=["clerk"], counts=[900])
    of = {"age": found, "income": found, "job": levels}
    resolved = fit(DOCUMENT, lambda plain, needs: of)
    bounds = resolved["encoding"]["features"][1]
    assert (bounds["low"], bounds["high"]) == (-1000, 9000)
    from_schema(resolved)
