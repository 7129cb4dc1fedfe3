"""A data set appears whole, or not at all."""

from __future__ import annotations

import csv
import os
import stat
from pathlib import Path

import pytest

from preprocess import gather, shards, writer
from preprocess.errors import UsageError
from preprocess.gather import Gathered
from preprocess.writer import new_dataset
from preprocess_samples import cleaned, contents, write, write_into


def test_the_manifest_counts_and_says_what_the_counts_are(tmp_path: Path):
    manifest = write(tmp_path / "set")
    assert manifest["counts"] == {
        "records": 202,
        "kept": 200,
        "refused": 2,
        "refused_by_rule": {"field-count": 1, "not-an-integer": 1},
        "imputed_by_column": {"age": 1, "educ": 2},
        "train": 160,
        "test": 40,
    }
    assert "not covered by any epsilon" in manifest["counts_note"]
    assert manifest["unit"] == "record", "the facts that the writer is given are in it"
    assert list(manifest)[:2] == ["format", "unit"]


def test_the_quarantine_can_be_read_back_and_only_by_the_user(tmp_path: Path):
    write(tmp_path / "set")
    path = tmp_path / "set" / "quarantine.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "line", "column", "value", "rule"],
            ["raw.csv", "7", "age", 'a"b,c', "not-an-integer"],
            ["raw.csv", "9", "", "17", "field-count"],
        ]


def test_equal_rows_give_equal_bytes(tmp_path: Path):
    write(tmp_path / "one")
    write(tmp_path / "other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_the_folder_is_private_while_it_is_built_and_the_manifest_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written: list[str] = []
    write_synced = writer._write_synced

    def recorded(path: Path, content: bytes) -> None:
        written.append(path.name)
        write_synced(path, content)

    monkeypatch.setattr(writer, "_write_synced", recorded)
    with new_dataset(tmp_path / "set") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.parent == tmp_path
        write_into(folder)
        assert not (tmp_path / "set").exists()
    assert written[-1] == "manifest.json"
    assert written.count("manifest.json") == 1
    assert len(written) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("owner", "step"),
    [(writer, "_write_synced"), (writer, "_write_parts"), (writer, "new_synced"),
     (writer, "_publish"), (Gathered, "take"), (Gathered, "shards"), (gather.os, "fsync")],
)  # fmt: skip
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_midway_leaves_nothing_or_what_was_there(
    owner: object,
    step: str,
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    write(tmp_path / "there")
    before = contents(tmp_path)

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(owner, step, fail)
    for target in ("there", "new", "a/b/new"):
        with pytest.raises((UsageError, KeyboardInterrupt)):
            write(tmp_path / target)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_failed_rename_brings_the_old_data_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "set")
    before = contents(tmp_path)
    rename = Path.rename
    moved = []

    def fail_second(self: Path, target: Path) -> Path:
        moved.append(self)
        if len(moved) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(UsageError, match="Input/output error"):
        write(tmp_path / "set", cleaned(10))
    assert contents(tmp_path) == before


def test_a_data_set_is_replaced_and_parents_are_made(tmp_path: Path):
    target = tmp_path / "a" / "b" / "set"
    write(target)
    (target / "left-over.txt").write_text("x")
    manifest = write(target, cleaned(10))
    assert shards.read_manifest(target) == manifest
    assert not (target / "left-over.txt").exists()
    assert [path.name for path in target.parent.iterdir()] == ["set"]


def test_an_empty_folder_and_a_link_to_one_may_be_filled(tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    manifest = write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert shards.read_manifest(tmp_path / "set") == manifest


def test_a_folder_that_is_not_ours_and_a_file_are_refused(tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("x")
    for target in (tmp_path / "set", tmp_path / "set" / "thesis.tex"):
        with pytest.raises(UsageError, match="output must be a"):
            write(target)
    assert contents(tmp_path) == {"set/thesis.tex": b"x"}


def test_the_published_folder_follows_the_umask(tmp_path: Path):
    mask = os.umask(0o027)
    try:
        write(tmp_path / "set")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == 0o750
