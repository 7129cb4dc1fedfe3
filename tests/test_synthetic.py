"""Synthetic records: valid, repeatable, and about as predictable as real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from preprocess import synthetic
from preprocess.engines.base import Batch
from preprocess.errors import UsageError
from preprocess.specs import CENSUS_2000
from preprocess.synthetic import synthetic_text, write_synthetic
from preprocess_samples import NAMES, clean, codes_of, job_of

ONE = ["--rows", "1", "--seed", "1", "--output", "x"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    path = tmp_path_factory.mktemp("synthetic") / "raw.csv"
    write_synthetic(path, 25_000, seed=1)
    return clean("polars", job_of(path, folder=path.parent))


def features_44(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The encoding without crosses, written down again on purpose."""
    age, educ, bits = codes[:, 0].astype(int), codes[:, 1].astype(int), codes[:, 2:13]
    age_bins = np.eye(16)[np.clip((age - 15) // 5, 0, 15)]
    return np.column_stack([age_bins, np.eye(16)[educ - 1], bits, age / 100])


def test_every_record_is_valid(people: Batch):
    assert len(people.rows) == 25_000
    assert people.refused == []
    assert not people.imputed


def test_a_logistic_regression_finds_about_what_it_finds_in_real_records(people: Batch):
    """Real records give .801 on average over splits; one split of 5,000 is good to about .007."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    codes = np.array(codes_of(people), np.uint8)
    features, label = features_44(codes), codes[:, -1]
    assert features.shape[1] == 44
    train = people.rows["_side"] == 0
    model = LogisticRegression(max_iter=1000).fit(features[train], label[train])
    auc = roc_auc_score(label[~train], model.predict_proba(features[~train])[:, 1])
    assert 0.775 < auc < 0.83
    assert 0.61 < label.mean() < 0.65


def test_marginals_resemble_the_county(people: Batch):
    codes = {name: people.rows[name].astype(float) for name in NAMES}
    assert (codes["age"].min(), codes["age"].max()) == (18, 93)
    assert set(codes["educ"]) == set(range(1, 17))
    for name, mean in {"sex": 0.527, "married": 0.441, "black": 0.423, "disability": 0.219,
                       "militaryservice": 0.128, "englishability": 0.964}.items():  # fmt: skip
        assert abs(codes[name].mean() - mean) < 0.02, name
    assert not (codes["divorced"] * codes["married"]).any()
    assert not (codes["children"] * (1 - codes["sex"])).any()


def test_income_follows_the_label_and_is_written_as_the_real_files_do():
    lines = b"".join(synthetic_text(20_000, seed=5)).decode().splitlines()
    assert lines[0] == ",".join(f'"{name}"' for name in CENSUS_2000.header)
    rows = [line.split(",") for line in lines[1:]]
    assert {len(row) for row in rows} == {18}
    income = np.array([float(row[5]) for row in rows])
    employed = np.array([row[15] == "1" for row in rows])
    assert np.median(income[employed]) > 3 * np.median(income[~employed])
    assert (income < 0).any()
    assert (income == 0).any()
    assert any(row[5] == "1e+05" for row in rows)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_synthetic(tmp_path / name, 3000, seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert a.count(b"\n") == 3001


def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 1000)
    pieces = list(synthetic_text(2500, seed=1))
    assert [piece.count(b"\n") for piece in pieces] == [1, 1000, 1000, 500]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "0", "--seed", "1", "--output", "x"], "--rows must be in 1..1000000000, got 0"),
        (["--rows", "-5", "--seed", "1", "--output", "x"], "got -5"),
        (["--rows", "1e3", "--seed", "1", "--output", "x"], "1e3"),
        (["--rows", "1", "--seed", "-1", "--output", "x"], "--seed must be in 0..2**64-1, got -1"),
        (["--rows", "1", "--seed", "1", "--output", "/dev/null/x"], "--output must be writable"),
        (["--rows", "1", "--seed", "1", "--output", "."], "--output must be a file"),
        (["--rows", "1", "--sed", "1", "--output", "x"], "did you mean --seed?"),
        (["--rows", "1", "--seed", "1"], "--output"),
        ([*ONE, "--missing", "1.5"], "--missing must be in [0, 1], got 1.5"),
        ([*ONE, "--ragged=-0.1"], "--ragged must be in [0, 1], got -0.1"),
        ([*ONE, "--duplicates", "nan"], "--duplicates must be in [0, 1], got nan"),
        ([*ONE, "--out-of-range", "5%"], "--out-of-range"),
        ([*ONE, "--missing", ".6", "--ragged", ".5"], "--missing, --ragged must sum to at most 1"),
        ([*ONE, "--duplicates", "1"], "--duplicates must damage at most 0 of 1 records"),
        ([*ONE, "--non-ascii-digit", "1"], "did you mean --non-ascii-digits?"),
        ([*ONE, "--truth", "./x"], "--truth must be another file than --output, got x"),
        ([*ONE, "--truth", "/dev/null/y"], "--truth must be a writable file, got /dev/null/y"),
        ([*ONE, "--truth", "."], "--truth must be a writable file, got ."),
        (
            ["--rows", "1000000000", "--seed", "1", "--output", "x", "--ragged", "0.1"],
            "--rows must be at most 999999999 with defects or a truth, got 1000000000",
        ),
    ],
)
def test_a_usage_error_is_one_line_and_code_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert synthetic.main(arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)
    assert captured.err.startswith("preprocess.synthetic: error: ")
    assert words in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "raw.csv"
    path.write_text("old")

    def fail(num_rows: int, seed: int):
        yield b"half"
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "synthetic_text", fail)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(path, 10, seed=1)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("raw.csv", "old")]


def test_the_command_writes_the_file_and_says_what_comes_next(tmp_path: Path):
    path = tmp_path / "raw.csv"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "preprocess.synthetic",
            "--rows",
            "100",
            "--seed",
            "1",
            "--output",
            path,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert f"python -m preprocess --input {path} --output" in result.stdout
    assert path.read_bytes() == b"".join(synthetic_text(100, seed=1))


def test_the_truth_is_beside_the_file_or_where_asked_and_only_with_a_rate_or_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    arguments = ["--rows", "10", "--seed", "1", "--output"]
    for more, rates, truth in (
        ([], {}, None),
        (["--missing", "0.5"], {"missing": 0.5}, "a b.truth.json"),
        (["--missing", "0"], {"missing": 0}, "a b.truth.json"),
        (["--ragged", "1", "--truth", "new/t"], {"ragged": 1}, "new/t"),
        (["--truth", "t"], {}, "t"),
    ):
        assert synthetic.main([*arguments, "a b.csv", *more]) == 0
        out = capsys.readouterr().out
        assert "python -m preprocess --input 'a b.csv' --output DATASET" in out
        assert ("What a cleaner must find" in out) is (truth is not None)
        made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert made == {"a b.csv", truth} - {None}
        if truth:
            document = json.loads(Path(truth).read_text())
            assert document["counts"]["records"] == 10
            assert document["rates"] == rates
            assert "says nothing about accuracy or privacy" in document["about"]
            Path(truth).unlink()


def test_a_truth_that_cannot_be_written_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = {"raw.csv": "old", "raw.truth.json": "old truth"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.name == "raw.truth.json":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UsageError, match=r"--truth must be writable, got .*: No space left"):
        write_synthetic(tmp_path / "raw.csv", 10, 1, {"missing": 0.5}, tmp_path / "raw.truth.json")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old
