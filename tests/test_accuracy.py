"""The accuracy comparison: its rows, its table, its picture, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers import Launch, clean_environment, finish, started
from launch import mpi
from preprocess.synthetic import write_synthetic

pytest.importorskip("matplotlib", reason="the picture needs the extra report")
pytest.importorskip("sklearn", reason="the models without privacy are scikit-learn's")

from dpsgd import accuracy, accuracy_picture, accuracy_table

COMMAND = ("-W", "error", "-m", "dpsgd.accuracy")
PRIVATE = [("private", 1.0), ("private", 8.0)]
BASELINES = [("logistic regression", None), ("gradient boosting", None), ("majority class", None)]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "raw.csv"
    write_synthetic(path, 3000, seed=2)
    return path


@pytest.fixture(scope="module")
def compared(
    synthetic: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Where the comparison ran, with an option in the environment that it must not heed."""
    if mpi.find_launcher() is None:
        pytest.skip("no mpirun beside this Python or on PATH: make install brings one")
    folder = tmp_path_factory.mktemp("compared")
    options = ["--salts", "2", "--epsilon", "8", "1", "--np", "2", "--json"]
    command = [sys.executable, *COMMAND, "--input", synthetic, *options]
    done = finish(command, folder, clean_environment(DPSGD_STEPS="1"))
    assert done.returncode == 0, done.stderr
    return folder / "runs/accuracy", done


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "accuracy.json").read_text())["rows"]
    return rows


def invented() -> dict[str, Any]:
    """A report of three splits with round numbers; the bands have a different width each."""
    values = {
        ("private", 1.0): (0.70, 0.71, 0.75),
        ("private", 3.0): (0.76, 0.77, 0.78),
        ("logistic regression", None): (0.72, 0.74, 0.76),
        ("gradient boosting", None): (0.71, 0.77, 0.83),
        ("majority class", None): (0.60, 0.61, 0.62),
    }
    return {
        "input": "raw.csv", "num_records": 1234, "world_size": 4, "command": "the command",
        "rows": [
            {"salt": f"s{number}", "model": model, "epsilon": epsilon,
             "delta": 1e-5 if epsilon else None, "accuracy": value, "auc": value + 0.1}
            for (model, epsilon), found in values.items() for number, value in enumerate(found)
        ],
    }  # fmt: skip


@pytest.mark.mpi
def test_every_model_is_scored_on_the_same_splits(
    compared: tuple[Path, subprocess.CompletedProcess[str]], synthetic: Path, tmp_path: Path
) -> None:
    from dpsgd.accuracy_models import make_split

    folder, done = compared
    rows = rows_of(folder)
    assert json.loads(done.stdout)["rows"] == rows
    for salt in ("accuracy-0", "accuracy-1"):
        found = {(row["model"], row["epsilon"]): row for row in rows if row["salt"] == salt}
        assert list(found) == PRIVATE + BASELINES
        labels = make_split(synthetic, tmp_path / salt, salt).labels["test"]
        assert found["majority class", None]["accuracy"] == max(labels.mean(), 1 - labels.mean())
        for model, row in found.items():
            right = row["accuracy"] * len(labels)
            assert right == pytest.approx(round(right), abs=1e-6), "a share of the test records"
            # fresh noise; over many runs the standard deviation was below 0.02, mean about 0.79:
            # a false alarm is a matter of more than four of them, under one in 10,000
            assert row["auc"] == 0.5 if model[0] == "majority class" else 0.7 < row["auc"] < 0.9


@pytest.mark.mpi
def test_the_table_shows_what_the_rows_say(
    compared: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = compared
    text = (folder / "accuracy.md").read_text()
    head, _, *table = (line.strip("| ") for line in text.splitlines() if line.startswith("|"))
    assert head == "model | epsilon | accuracy | AUC | accuracy gain | AUC gain | splits"
    rows = rows_of(folder)
    for (model, epsilon), line in zip(PRIVATE + BASELINES, table, strict=True):
        chosen = [row for row in rows if (row["model"], row["epsilon"]) == (model, epsilon)]
        logistic = [row for row in rows if row["model"] == "logistic regression"]
        cells = [model, f"{epsilon:g}" if epsilon else ""]
        for base, sign in ((None, ""), (logistic, "+")):
            for metric in ("accuracy", "auc"):
                values = np.array([row[metric] for row in chosen])
                if base is not None:
                    values -= [row[metric] for row in base]
                error = values.std(ddof=1) / np.sqrt(2)
                blank = sign and model == "logistic regression"
                cells.append("" if blank else f"{values.mean():{sign}.3f} ± {error:.3f}")
        assert line.split(" | ") == [*cells, "2"]
    assert "raw.csv, 3,000 records, delta 1e-05" in text
    assert "accuracy-0 to accuracy-1" in " ".join(text.split())
    assert "python -m dpsgd.accuracy --input" in text
    assert "not covered by epsilon" in " ".join(text.split())
    assert table[0] in done.stderr, "with --json - people read standard error"


@pytest.mark.mpi
def test_every_finished_run_is_a_line_with_the_time_left(
    compared: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = compared
    lines = [line for line in done.stderr.splitlines() if " of 10: " in line]
    assert [line.split(" of ")[0] for line in lines] == [str(number) for number in range(1, 11)]
    assert all(" left" in line for line in lines[:-1])
    assert lines[0].startswith("1 of 10: accuracy-0, private, epsilon 1: accuracy 0.")
    assert " left" not in lines[-1]
    names = ["accuracy.json", "accuracy.md", "accuracy.png", "accuracy.svg"]
    assert sorted(file.name for file in folder.iterdir()) == names


def test_the_gain_is_paired_split_by_split() -> None:
    first, second, *_ = accuracy_table.summarize(invented()["rows"])
    assert first.gains["accuracy"].mean == pytest.approx(mean((-0.02, -0.03, -0.01)))
    assert first.gains["accuracy"].error == pytest.approx(0.01 / 3**0.5)
    assert second.gains["auc"].mean == pytest.approx(0.03)
    assert second.gains["auc"].error == pytest.approx(0.01 / 3**0.5)


def test_one_split_has_no_error_to_show() -> None:
    report = invented()
    report["rows"] = [row for row in report["rows"] if row["salt"] == "s1"]
    text = accuracy_table.markdown(report)
    assert "| private | 3 | 0.770 | 0.870 | +0.030 | +0.030 | 1 |" in text
    assert "±" not in text
    assert "one salted split (s1)." in text


def test_the_picture_has_a_band_as_high_as_the_error_for_each_model(tmp_path: Path) -> None:
    accuracy_picture.draw(invented(), tmp_path)
    svg = ElementTree.parse(tmp_path / "accuracy.svg")
    groups = {group.get("id"): group for group in svg.iter("{http://www.w3.org/2000/svg}g")}
    for metric in ("accuracy", "auc"):
        heights = {}
        for model in ("private", "logistic-regression", "gradient-boosting"):
            path = next(groups[f"band-{metric}-{model}"].iter("{http://www.w3.org/2000/svg}path"))
            numbers = [float(word) for word in path.get("d", "").split() if not word.isalpha()]
            heights[model] = max(numbers[1::2]) - min(numbers[1::2])
        # standard deviations of 0.02 and 0.06 over the same number of splits
        assert heights["gradient-boosting"] == pytest.approx(3 * heights["logistic-regression"])
        assert heights["private"] > 0
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_equal_numbers_give_equal_bytes(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        accuracy_picture.draw(invented(), tmp_path / name)
        drawn.append([file.read_bytes() for file in sorted((tmp_path / name).iterdir())])
    assert drawn[0] == drawn[1]
    assert b"dc:date" not in drawn[0][1]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--salts", "0"], 2, "--salts must be at least 1, got 0"),
        (["--np", "-1"], 2, "--np must be at least 1, got -1"),
        (["--epsilon", "1", "0"], 2, "epsilon must be finite and greater than 0, got 0"),
        (["--epsilon", "nan"], 2, "epsilon must be finite"),
        (["--epsilon", "x"], 2, "invalid float value: 'x'"),
        (["--sallts", "3"], 2, "unknown argument --sallts; did you mean --salts?"),
        (["--input", "nowhere.csv"], 5, "input nowhere.csv is not a file"),
        (["--output", "file/deeper"], 2, "--output must be a writable folder, got file/deeper"),
        (["--json", "no/where.json"], 2, "--json must be a writable file, got no/where.json"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_heavy_is_loaded(
    python: Launch, tmp_path: Path, synthetic: Path, arguments: list[str], code: int, complaint: str
) -> None:
    (tmp_path / "file").touch()
    given = ["--input", synthetic] * ("--input" not in arguments)
    done = python("-X", "importtime", "-m", "dpsgd.accuracy", *given, *arguments)
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip() for line in imports}
    (said,) = (line for line in done.stderr.splitlines() if line not in imports)
    assert done.returncode == code
    assert said.startswith("dpsgd.accuracy: error: ")
    assert complaint in said
    assert "dpsgd.config" in loaded
    assert not loaded & {"numpy", "matplotlib", "sklearn", "mpi4py", "polars"}
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("module", "package"), [("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")]
)
def test_a_missing_extra_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert accuracy.main([]) == 2
    said = f"dpsgd.accuracy: error: {package} is not installed: pip install 'dpsgd[report]'\n"
    assert capsys.readouterr().err == said


def test_it_starts_its_own_ranks_and_is_not_one_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_SIZE", "4")
    assert accuracy.main([]) == 4
    assert "start it without mpirun" in capsys.readouterr().err


def test_without_mpirun_the_command_that_brings_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accuracy.main([]) == 4
    assert "no mpirun beside this Python or on PATH; make install" in capsys.readouterr().err


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("change", "arguments", "code", "words"),
    [
        (lambda text: text.replace(",", ";"), [], 5, "preprocess: error: "),
        (lambda text: text, ["--epsilon", "1e-9"], 3, "dpsgd.run: error: epsilon 1e-09 cannot be"),
        (lambda text: "\n".join(text.splitlines()[:2]), [], 5, "employed must take both values"),
    ],
)
def test_a_run_that_fails_shows_its_words_and_its_code(
    python: Launch, tmp_path: Path, synthetic: Path, change: Any, arguments: list[str], code: int,
    words: str,
) -> None:  # fmt: skip
    (tmp_path / "raw.csv").write_text(change(synthetic.read_text()))
    done = python(*COMMAND, "--input", "raw.csv", "--np", "2", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.startswith("dpsgd.accuracy: error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.mpi
def test_ctrl_c_ends_it_and_its_ranks_in_one_line(synthetic: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dpsgd.accuracy", "--input", synthetic, "--np", "2"]
    environment = clean_environment(TMPDIR=str(tmp_path))
    with started(command, tmp_path, environment, start_new_session=True) as job:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/accuracy-0-epsilon-1.0")):  # its first ranks are at work
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=60)
        with pytest.raises(ProcessLookupError):  # no mpirun is left in its process group
            os.killpg(job.pid, 0)
    assert said == "dpsgd.accuracy: interrupted before the end\n"
    assert job.returncode == 130
    assert not list(tmp_path.iterdir()), "neither results nor temporary files"
