"""python -m preprocess, as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dpsgd
import preprocess
from preprocess import __main__ as command
from preprocess import engines, shards
from preprocess_samples import run

ROOT = Path(__file__).parents[1]
FULTON = ROOT.parent / "shared/data/census/fulton_ga_2000.csv"


@pytest.mark.parametrize("engine", engines.CHOICES)
def test_a_file_becomes_a_data_set_and_a_summary(
    engine: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "my set"
    arguments = ["--input", str(raw), "--output", str(target), "--engine", engine]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    counts = shards.read_manifest(target)["counts"]
    assert (counts["records"], counts["kept"]) == (1003, 1001)
    assert counts["refused_by_rule"] == {"field-count": 1, "not-an-integer": 1}
    assert counts["imputed_by_column"] == {"age": 1}
    for words in ("1,003 records", "1,001", "field-count", f"{target}/quarantine.csv"):
        assert words in out
    assert out.endswith(f"Next: mpirun -np 4 python -m dpsgd.run --data '{target}'\n")


def test_every_engine_writes_the_same_shards(raw: Path, tmp_path: Path):
    files = []
    for engine in engines.ENGINES:
        target = tmp_path / engine
        assert command.main(["--input", str(raw), "--output", str(target), "--engine", engine]) == 0
        manifest = shards.read_manifest(target)
        assert manifest["engine"] == engine
        files.append((manifest["files"], manifest["counts"]))
    assert all(entry == files[0] for entry in files)


@pytest.mark.skipif(not FULTON.exists(), reason="the real census file is not here")
def test_the_real_file_is_kept_whole_and_split_one_to_four(tmp_path: Path):
    result = run("--input", FULTON, "--output", tmp_path / "set", "--json")
    assert (result.returncode, result.stderr.count("error")) == (0, 0)
    counts = json.loads(result.stdout)["counts"]
    assert (counts["records"], counts["kept"], counts["refused"]) == (25_766, 25_766, 0)
    assert counts["train"] + counts["test"] == 25_766
    assert abs(counts["test"] / 25_766 - 0.2) < 0.015


def test_json_is_alone_on_stdout_or_in_a_file(raw: Path, tmp_path: Path):
    result = run("--input", raw, "--output", tmp_path / "set", "--json")
    assert result.returncode == 0
    report = json.loads(result.stdout)
    assert report["counts"]["records"] == 1003
    assert report["dataset"] == str(tmp_path / "set")
    assert "1,003 records" in result.stderr
    file = tmp_path / "report.json"
    result = run("--input", raw, "--output", tmp_path / "set", "--json", file)
    assert json.loads(file.read_text())["counts"] == report["counts"]
    assert "1,003 records" in result.stdout


def test_help_and_errors_come_without_numpy_and_polars():
    for arguments, code in ((["--help"], 0), (["--inptu", "x"], 2), (["--version"], 0)):
        result = run(*arguments, python=("-X", "importtime"))
        imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
        assert result.returncode == code
        assert "preprocess.cli" in imported
        assert not imported & {"numpy", "polars"}
    assert run("--help").stdout.startswith("usage: ")
    assert run("--version").stdout == f"preprocess {preprocess.__version__}\n"


def test_reading_rows_imports_nothing_heavy_before_it_must():
    code = "import sys, preprocess.shards; print({'numpy', 'polars'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout == "set()\n"


def test_long_files_report_progress_at_most_every_two_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "raw.csv"
    path.write_bytes(b"x" * 1000)
    seconds = iter([0.0, 1.0, 2.5, 3.0, 4.0, 4.6])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(seconds))
    report = command._progress(path)
    for step in range(1, 6):
        report(step * 1000, step * 100)
    assert capsys.readouterr().err.splitlines() == [
        "preprocess: 2,000 records, 20% of the file, 800 records/s",
        "preprocess: 5,000 records, 50% of the file, 1,087 records/s",
    ]


def test_the_salt_decides_the_split_and_is_in_the_manifest(raw: Path, tmp_path: Path):
    tests = set()
    for salt in ("a", "b"):
        target = tmp_path / salt
        arguments = ["--input", str(raw), "--output", str(target), "--split-salt", salt]
        assert command.main([*arguments, "--test-fraction", "0.5"]) == 0
        manifest = shards.read_manifest(target)
        assert manifest["split"]["salt"] == salt
        assert manifest["split"]["test_fraction"] == 0.5
        tests.add(manifest["files"][0]["sha256"])
    assert len(tests) == 2


def test_all_packages_of_the_project_have_one_version():
    assert preprocess.__version__ == dpsgd.__version__
