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
from helpers import Launch
from preprocess import __main__ as command
from preprocess import shards
from preprocess.specs import CENSUS_2000
from preprocess_samples import ENGINES, FAST_ENGINES, GOOD, contents, run

ROOT = Path(__file__).parents[1]
FULTON = ROOT.parent / "shared/data/census/fulton_ga_2000.csv"


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
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
    for words in ("1,003 records", "1,001", f"{target}/quarantine.csv"):
        assert words in out
    table = out.partition("first lines\n")[2]
    assert [line.split() for line in table.splitlines()[:2]] == [
        ["field-count", "(whole", "line)", "1", "1002"],
        ["not-an-integer", "age", "1", "1003"],
    ]
    assert out.endswith(f"Next: mpirun -np 4 python -m dpsgd.run --data '{target}'\n")


def test_a_data_set_that_is_replaced_is_mentioned(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--input", str(raw), "--output", str(tmp_path / "set")]
    said = []
    for more in ([], ["--dry-run"], ["--force"]):
        assert command.main([*arguments, *more]) == 0
        said.append(capsys.readouterr().out)
    assert "a data set; the privacy ledger" not in said[0]
    assert "This would replace a data set; the privacy ledger beside it goes on" in said[1]
    assert "This replaced a data set; the privacy ledger beside it goes on" in said[2]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_writes_the_same_bytes_whatever_the_engine(
    engine: str, raw: Path, tmp_path: Path
):
    made = []
    for name in ("sequential", engine):
        target = tmp_path / name
        assert command.main(["--input", str(raw), "--output", str(target), "--engine", name]) == 0
        manifest = shards.read_manifest(target)
        assert manifest["engine"] == name
        made.append(contents(target) | {"manifest.json": manifest | {"engine": ""}})
    assert made[0] == made[1]


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
    result = run("--input", raw, "--output", tmp_path / "set", "--force", "--json", file)
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


NO_WRITES = """
import os, sys
from preprocess.__main__ import main

def hook(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.chmod"):
        sys.stderr.write(f"writes: {event} {arguments}\\n")

sys.addaudithook(hook)
sys.exit(main(sys.argv[1:]))
"""


def test_a_dry_run_writes_nothing_at_all(raw: Path, python: Launch, tmp_path: Path):
    for is_dry in (True, False):
        for engine in FAST_ENGINES:
            arguments = ["--input", raw, "--output", f"set-{engine}", "--engine", engine]
            done = python("-B", "-c", NO_WRITES, *arguments, *["--dry-run"][: int(is_dry)])
            assert done.returncode == 0
            assert ("writes: os.mkdir" in done.stderr) is not is_dry, done.stderr
            if is_dry:
                assert done.stderr == ""
                assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_a_dry_run_counts_what_a_real_run_counts(
    engine: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--input", str(raw), "--engine", engine, "--json"]
    assert command.main([*arguments, "--dry-run"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert command.main([*arguments, "--output", str(tmp_path / "set")]) == 0
    real = json.loads(capsys.readouterr().out)
    assert (dry.pop("dry_run"), real.pop("dry_run")) == (True, False)
    assert (dry.pop("dataset"), dry.pop("quarantine")) == (None, None)
    assert dry["refusals"] == {
        "rows": [
            {"rule": "field-count", "column": "", "records": 1, "first_lines": ["1002"]},
            {"rule": "not-an-integer", "column": "age", "records": 1, "first_lines": ["1003"]},
        ]
    }
    for report in (dry, real):
        del report["seconds"]
    assert dry.items() <= real.items()
    assert real["counts"] == shards.read_manifest(tmp_path / "set")["counts"]


def test_a_dry_run_shows_the_first_lines_of_each_refusal_but_no_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "raw.csv"
    lines = [GOOD, *[GOOD.replace("51", f"secret{n}") for n in range(5)], GOOD.replace("51", "777")]
    path.write_text("\n".join([",".join(CENSUS_2000.header), *lines, f"{GOOD[:-9]}1,1,13121"]))
    file = tmp_path / "report.json"
    arguments = ["--input", str(path), "--dry-run", "--json", str(file)]
    assert command.main([*arguments, "--max-bad-fraction", "1"]) == 0
    captured = capsys.readouterr()
    table = [line.split() for line in captured.out.splitlines() if "age" in line]
    assert table == [
        ["not-an-integer", "age", "5", "3,", "4,", "5,", "..."],
        ["out-of-domain", "age", "1", "8"],
    ]
    for text in (captured.out, captured.err, file.read_text()):
        assert "secret" not in text
        assert "777" not in text
    assert "a real run has them in quarantine.csv" in captured.out
    assert "mpirun" not in captured.out


@pytest.mark.parametrize("how", ["--output", "--dry-run"])
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("1" * 10, "all kept records (10) have the same employed"),
        ("00", "all kept records (2) have the same employed"),
        ("1x", "all kept records (1) have the same employed"),
        ("0001", ""),
    ],
)
def test_a_file_with_one_label_is_done_with_a_warning(
    how: str, labels: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "raw.csv"
    lines = [f"{GOOD[:-9]}{label},1,13121" for label in labels]
    path.write_text("\n".join([",".join(CENSUS_2000.header), *lines]))
    where = [how, str(tmp_path / "set")] if how == "--output" else [how]
    assert command.main(["--input", str(path), *where]) == 0
    learns = f"preprocess: warning: {words}: a model of them can only learn that\n"
    assert capsys.readouterr().err == (learns if words else "")
