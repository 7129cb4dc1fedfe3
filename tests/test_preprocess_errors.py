"""Every way to fail: one line on stderr, its exit code, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess import __main__ as command
from preprocess import engines
from preprocess.spec import CENSUS_2000
from preprocess_samples import GOOD, run

ROOT = Path(__file__).parents[1]
CALIFORNIA = ROOT.parent / "shared/data/census/california_2000_extract.csv"
HEADER = ",".join(CENSUS_2000.header)


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
        (["--input", "s/raw.csv", "--output", "s/raw.csv"], "must not contain the input"),
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
    fail(capsys, 2, words, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_code_2(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "file"
    file.write_text("x")
    for target in (file, file / "below"):
        fail(capsys, 2, "output must be", "--input", raw, "--output", target)
    fail(capsys, 2, "it is not empty", "--input", "elsewhere.csv", "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
    monkeypatch.setattr(Path, "open", _forbidden)  # root may read everything: chmod shows nothing
    fail(capsys, 5, "Permission denied", "--input", raw, "--output", tmp_path / "set")


def _forbidden(self: Path, mode: str) -> None:
    raise PermissionError(13, "Permission denied", str(self))


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
