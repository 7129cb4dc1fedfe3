"""What commands write: progress, JSON reports, and files that are there complete or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from preprocess import output
from preprocess.errors import UsageError


def test_a_file_appears_with_its_whole_content_or_not_at_all(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "file"
    with pytest.raises(ZeroDivisionError), output.new_file("--output", path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [], "folders that were made for it are gone, too"
    with output.new_file("--output", path) as file:
        file.write(b"old")
    with pytest.raises(KeyboardInterrupt), output.new_file("--output", path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    with output.new_file("--output", path, output.OWNER_ONLY) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with output.new_file("--output", tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_what_cannot_be_a_file_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="--output must be"), output.new_file("--output", path):
            raise AssertionError("work was done")
        with pytest.raises(UsageError, match="--json must be a writable file"):
            output.check_json(str(path))
    with pytest.raises(UsageError, match="--json must be a file of its own"):
        output.check_json(str(tmp_path / "file"), tmp_path / "x" / ".." / "file")
    output.check_json("-", tmp_path / "file")
    output.check_json(None)


def test_json_is_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output.write_json("-", {"a": 1})
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n'
    with pytest.raises(ValueError):
        output.write_json(str(tmp_path / "x"), {"a": float("nan")})
    with pytest.raises(UsageError, match="--json must be a file"):
        output.write_json(str(tmp_path), {})


def test_progress_comes_at_most_every_two_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    seconds = iter([0.0, 1.0, 2.5, 3.0, 4.0, 4.6])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(seconds))
    report = output.progress("prog", 1000)
    for step in range(1, 6):
        report(step * 1000, step * 100)
    assert capsys.readouterr().err.splitlines() == [
        "prog: 2,000 records, 20% of the input, 800 records/s",
        "prog: 5,000 records, 50% of the input, 1,087 records/s",
    ]


def test_progress_never_says_more_than_all_and_no_part_of_a_total_that_is_not_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for total, words in ((1000, "100% of the input, "), (0, "")):
        seconds = iter([0.0, 2.0])
        monkeypatch.setattr(output.time, "monotonic", lambda seconds=seconds: next(seconds))
        output.progress("prog", total)(4000, 1001)
        assert capsys.readouterr().err == f"prog: 4,000 records, {words}2,000 records/s\n"
