"""Every way to fail: one line on stderr, its exit code, and nothing left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import Launch
from preprocess import __main__ as command
from preprocess import engines
from preprocess_samples import GOOD, HEADER, contents, run

ROOT = Path(__file__).parents[1]
CALIFORNIA = ROOT.parent / "shared/data/census/california_2000_extract.csv"


def fail(capsys: pytest.CaptureFixture[str], code: int, words: str, *arguments: str | Path) -> None:
    """The command ends with this code, one line on stderr that has the words, and no more."""
    assert command.main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("preprocess: error: ")
    assert captured.err.endswith("\n")
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err, captured.err


@pytest.mark.skipif(not CALIFORNIA.exists(), reason="the real census file is not here")
def test_a_real_file_with_other_columns_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--input", CALIFORNIA, "--output", tmp_path / "set"]
    fail(capsys, 5, "missing: divorced, uscitizen, children", *arguments)


def test_a_misspelt_flag_is_one_line_that_names_the_right_one():
    result = run("--inptu", "raw.csv", "--output", "set")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("preprocess: error: unknown flag --inptu: did you mean --input?\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--input, --output"),
        (["--input", "x"], "--output"),
        (["--outp=x"], "did you mean --output?"),
        (["--zzz"], "see --help"),
        (["--input", "a", "--output", "b", "stray"], "stray"),
        (["--input", "a", "--output", "b", "--engine", "pandas"], "pandas"),
        (["--input", "a", "--output", "b", "--test-fraction", "1"], "in (0, 1), got 1.0"),
        (["--input", "a", "--output", "b", "--test-fraction", "nan"], "in (0, 1), got nan"),
        (["--input", "a", "--output", "b", "--test-fraction", "x"], "x"),
        (["--input", "a", "--output", "b", "--json", "no/such/folder/x"], "no/such/folder/x"),
        (["--input", "s/raw.csv", "--output", "s"], "must not contain the input"),
        (["--input", "a", "s/raw.csv", "--output", "s"], "must not contain the input"),
        (["--input", "s/raw.csv", "--output", "s/raw.csv"], "must not contain the input"),
        (["--input", "s/raw.csv", "--output", "s", "--dry-run"], "must not contain the input"),
        (["--input", "a", "--output", "b", "--json", "./a"], "a file of its own, got a"),
        (["--dry-run"], "are required: --input\n"),
        (["--input", "a", "--dri-run"], "did you mean --dry-run?"),
        (["--input", "a", "--dry-run", "--max-bad-fraction", "1.5"], "in [0, 1], got 1.5"),
        (["--input", "a", "--dry-run", "--max-bad-fraction", "nan"], "in [0, 1], got nan"),
        (["--input", "a", "--dry-run", "--processes", "0"], "--processes must be in 1..1024"),
        (["--input", "a", "--dry-run", "--shards", "65537"], "in 1..65536, got 65537"),
        (["--input", "a", "./a", "--dry-run"], "every file once, got a twice"),
        (["--input", "a", "s/../a", "--dry-run"], "every file once, got a twice"),
        (["--input", "a", "--dry-run", "--join", "s/raw.csv"], "census-2000 has one file only"),
        (["--input", "a", "--dry-run", "--spec", "oregon-2000"], "second file, households"),
        (["--input", "a", "--dry-run", "--spec", "censsus-2000"], "mean census-2000?"),
        (["--input", "a", "--dry-run", "--spec", "xyz"], "oregon-2000, got 'xyz'"),
        (["--input", "a", "--dry-run", "--spec", "x.toml"], "an existing file, got x.toml"),
        (["--input", "a", "--dry-run", "--spec", "s/"], "spec must be readable, got s"),
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
    monkeypatch.setattr(engines, "load", None)  # an error that comes after the work is another one
    for name in ("a", "s/raw.csv"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"{HEADER}\n{GOOD}\n")
    before = contents(tmp_path)
    fail(capsys, 2, words, *arguments)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "s"]


def test_an_output_that_cannot_be_written_is_code_2(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "file"
    file.write_text("x")
    for target in (file, file / "below"):
        fail(capsys, 2, "output must be", "--input", raw, "--output", target)
    fail(capsys, 2, "it is not empty", "--input", raw, "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_a_real_run_refuses_about_the_output_a_dry_run_refuses(
    more: list[str],
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    file, mounted = tmp_path / "file", tmp_path / "mounted"
    file.write_text("x")
    mounted.mkdir()
    link = tmp_path / "link"
    link.symlink_to(file)
    for target in (file, link, tmp_path, file / "below", file / "further" / "below"):
        fail(capsys, 2, "output must be", "--input", raw, "--output", target, *more)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == mounted)
    fail(capsys, 2, "inside the mounted", "--input", raw, "--output", mounted, *more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "mounted"]
    assert list(mounted.iterdir()) == []


def test_a_dry_run_refuses_a_folder_that_must_not_be_written(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write there
    for target in (tmp_path / "set", tmp_path / "further" / "below" / "set"):
        arguments = ["--input", raw, "--output", target, "--dry-run"]
        fail(capsys, 2, "output must be writable", *arguments)


@pytest.mark.parametrize("content", [f"{HEADER}\n{GOOD},\n", HEADER])
def test_a_dry_run_without_a_valid_record_is_code_5_after_it_said_why(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "raw.csv"
    path.write_text(content)
    assert command.main(["--input", str(path), "--dry-run"]) == 5
    captured = capsys.readouterr()
    assert ("field-count" in captured.out) is (GOOD in content)
    assert "Next" not in captured.out
    assert captured.err.startswith(f"preprocess: error: {path} must have a valid record, got ")
    assert len(captured.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]
    fail(capsys, 5, "existing file", "--input", tmp_path / "absent", "--dry-run")


@pytest.mark.parametrize(
    "arguments",
    [
        ["preprocess", "--input", "raw.csv", "--output", "a/set"],
        ["preprocess", "--input", "raw.csv", "--dry-run", "--engine", "sequential"],
        ["preprocess.synthetic", "--rows", "1", "--seed", "1", "--output", "a/raw.csv"],
    ],
)
def test_a_python_without_the_packages_is_one_line_with_the_cure(
    arguments: list[str], python: Launch, tmp_path: Path
):
    (tmp_path / "raw.csv").write_text(f"{HEADER}\n{GOOD}\n")
    done = python("-S", "-m", *arguments, PYTHONPATH=str(ROOT))  # -S: without site-packages
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{arguments[0]}: error: the package numpy must be installed for {sys.executable}, it is "
        "not: make install, or start with .venv/bin/python\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["raw.csv"]


def test_only_a_package_of_others_can_be_missing(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(sys.modules, "preprocess.engines.polars")
    monkeypatch.setitem(sys.modules, "polars", None)
    arguments = ["--input", raw, "--output", tmp_path / "set"]
    fail(capsys, 2, "the package polars must be installed", *arguments)
    monkeypatch.setitem(sys.modules, "preprocess.engines.polars", None)
    with pytest.raises(ModuleNotFoundError):
        command.main(list(map(str, arguments)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "existing file"),
        ("", "no header"),
        (HEADER, "got only a header"),
        (f"{HEADER}\n\n \n", "got only a header"),
        (f"{HEADER}\n{GOOD},\n{GOOD},\nx,{GOOD[3:-8]},\n", "3 refused ones, most of them by"),
        (f"{HEADER}\n{GOOD},\n", "the rule field-count (1; first: line 2)"),
        (f"{HEADER}\n{GOOD.replace('51', 'x')}\n", "first: line 2, column age"),
        (HEADER.replace(",", ";"), "semicolons"),
        (HEADER.replace("employed,", ""), "missing: employed"),
    ],
)
def test_a_bad_input_is_one_line_and_code_5_and_leaves_nothing(
    content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "raw\n.csv"  # a line end in a name must not make a second line
    if content is not None:
        path.write_text(content)
    before = list(tmp_path.iterdir())
    fail(capsys, 5, words, "--input", path, "--output", tmp_path / "a" / "set")
    assert list(tmp_path.iterdir()) == before


def test_a_folder_and_an_unreadable_file_as_input_are_code_5(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    fail(capsys, 5, "got the folder", "--input", tmp_path, "--output", tmp_path / "x" / "set")
    open_path = Path.open

    def forbidden(self: Path, *arguments: Any, **more: Any) -> Any:
        if self == raw:  # root may read everything: chmod shows nothing
            raise PermissionError(13, "Permission denied", str(self))
        return open_path(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", forbidden)
    fail(capsys, 5, "Permission denied", "--input", raw, "--output", tmp_path / "set")


def test_a_utf16_file_is_told_to_become_utf8(tmp_path: Path):
    path = tmp_path / "raw.csv"
    path.write_text(f"{HEADER}\n{GOOD}\n", encoding="utf-16")
    result = run("--input", path, "--output", tmp_path / "set")
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr == (f"preprocess: error: {path}: file is UTF-16, save it as UTF-8\n")


def test_an_interrupt_is_one_line(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "load", interrupt)
    fail(capsys, 130, "interrupted", "--input", raw, "--output", tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
