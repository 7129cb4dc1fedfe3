"""Inputs that are damaged, are no file, or change while they are read."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess import blocks
from preprocess.engines import load, sequential
from preprocess.errors import DataError
from preprocess.sources import find_sources, open_source
from preprocess_samples import (
    FAST_ENGINES,
    GOOD,
    HEADER,
    job_of,
)
from test_sources import LINES, TEXT, command_fails, zip_of


def broken_crc(path: Path) -> None:
    zip_of(path, {"raw.csv": b""})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("raw.csv", TEXT)
    path.write_bytes(path.read_bytes().replace(b",20,", b",21,", 1))


def encrypted(path: Path) -> None:
    zip_of(path, {"raw.csv": TEXT})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of the member, and the same in the directory
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def cut_zip(path: Path) -> None:
    zip_of(path, {"raw.csv": TEXT})
    path.write_bytes(path.read_bytes()[:-30])


def cut_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(TEXT)[:-20])


def wrong_gzip(path: Path) -> None:
    content = bytearray(gzip.compress(TEXT))
    content[-6] ^= 1  # the checksum
    path.write_bytes(content)


def garbage_after_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(TEXT) + b"garbage")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken_crc, "must be a whole zip archive: Bad CRC-32"),
        (encrypted, "raw.csv must not be encrypted"),
        (cut_zip, "must be a whole zip archive"),
        (cut_gzip, "is damaged or cut off"),
        (wrong_gzip, "is damaged or cut off: CRC check failed"),
        (garbage_after_gzip, "is damaged or cut off"),
        (lambda path: zip_of(path, {"a.pdf": b"", "b.md": b""}), "one file only, got a.pdf, b.md"),
        (lambda path: zip_of(path, {"a/": b"", "b/": b""}), "an empty archive"),
        (lambda path: zip_of(path, {"a.csv": b""}), "a.csv: file has no header"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "file has no header"),
        (lambda path: path.write_bytes(b""), "file has no header"),
        (lambda path: path.write_text(HEADER), "got only a header"),
        (lambda path: path.write_bytes(gzip.compress(HEADER.encode())), "got only a header"),
        (lambda path: path.write_text("a,b\n1,2\n"), "missing: state, puma, sex"),
        (lambda path: path.write_text("a,b\n1,2\n"), "not expected: 'a', 'b'"),
        (lambda path: path.mkdir(), "must be a file, got the folder"),
        (lambda path: path.symlink_to("/dev/zero"), "must be a file or a pipe"),
        (lambda path: path.symlink_to("nowhere"), "must be an existing file"),
    ],
)
def test_an_input_that_cannot_be_read_whole_is_named_and_leaves_nothing(
    make: Callable[[Path], object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "the-input"
    make(path)
    command_fails(capsys, 5, words, path)
    command_fails(capsys, 5, "the-input", path)


def change(path: Path, how: str) -> None:
    status = path.stat()
    if how == "grows":
        with path.open("a") as file:
            file.write(f"{GOOD}\n")
    elif how == "shrinks":
        os.truncate(path, status.st_size - 1000)
    else:
        path.write_bytes(path.read_bytes().replace(b",20,", b",21,"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize(
    ("how", "words"),
    [("grows", "had 15,822 bytes and has"), ("shrinks", "bytes and has"), ("changes", "in place")],
)
@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_file_that_changes_is_an_error(
    engine: str, how: str, words: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 500)
    monkeypatch.setattr(sequential, "RECORDS_IN_BATCH", 10)
    path = tmp_path / "raw.csv"
    path.write_text("\n".join([HEADER, *LINES * 8, ""]))
    assert path.stat().st_size == 15_822
    job = job_of(path, folder=tmp_path)
    if when == "before it is read":
        change(path, how)
        batches = load(engine)(job)
    else:
        batches = load(engine)(job)
        assert len(next(iter(batches)).rows) > 0
        change(path, how)
    with pytest.raises(DataError, match=rf"raw\.csv: file changed while it was read .*{words}"):
        list(batches)


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(tmp_path: Path):
    path, new = tmp_path / "raw.csv", tmp_path / "new.csv"
    path.write_bytes(TEXT)
    new.write_text("something else")
    with open_source(find_sources([path])[0]) as file:
        new.replace(path)
        assert file.read() == TEXT
