"""What may be an input: files, globs, gzip, zip; and what becomes of those that are damaged."""

from __future__ import annotations

import csv
import gzip
import json
import os
import threading
import zipfile
from pathlib import Path

import pytest

from preprocess import __main__ as command
from preprocess import shards
from preprocess.errors import DataError
from preprocess.sources import as_plain_file, find_sources
from preprocess_samples import (
    ENGINES,
    FAST_ENGINES,
    GOOD,
    HEADER,
    assert_same,
    clean,
    contents,
    job_of,
)

LINES = [GOOD.replace("51", str(age)) for age in range(20, 60)]
TEXT = "\n".join([HEADER, *LINES, "x", ""]).encode()


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def command_fails(capsys: pytest.CaptureFixture[str], code: int, words: str, *inputs: Path) -> None:
    """The command ends with this code and one line that has the words, and writes nothing."""
    folder = inputs[0].parent
    before = contents(folder)
    for engine in FAST_ENGINES:
        arguments = ["--input", *map(str, inputs), "--output", str(folder / "a" / "set")]
        assert command.main([*arguments, "--engine", engine]) == code
        error = capsys.readouterr().err
        assert error.startswith("preprocess: error: ")
        assert len(error.splitlines()) == 1
        assert words in error, error
        assert contents(folder) == before
        assert not (folder / "a").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_packed_files_give_what_their_text_gives(engine: str, tmp_path: Path):
    plain, packed = tmp_path / "raw.csv", tmp_path / "packed"  # names do not matter
    plain.write_bytes(TEXT)
    expected = clean("sequential", job_of(plain, folder=tmp_path))
    assert len(expected.rows) == 40
    half = len(TEXT) // 2
    packed.write_bytes(gzip.compress(TEXT[:half]) + gzip.compress(TEXT[half:]))
    assert_same(clean(engine, job_of(packed, folder=tmp_path)), expected)
    for members in ({"sub/RAW.CSV": TEXT, "README.md": b"no,data", "sub/": b""}, {"any": TEXT}):
        packed.unlink()
        zip_of(packed, members)
        assert_same(clean(engine, job_of(packed, folder=tmp_path)), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_refusals_of_several_files_name_file_and_line(engine: str, tmp_path: Path):
    one, other = tmp_path / "one.csv", tmp_path / "other.zip"
    one.write_text(f"{HEADER}\n{GOOD}\nx\n")
    reversed_names = ",".join(reversed(HEADER.split(",")))
    turned = ",".join(reversed(GOOD.split(",")))
    zip_of(
        other,
        {
            "a.csv": f"\n{reversed_names}\n{turned}\n\ny\n".encode(),
            "b.txt": f"{HEADER}\r\n{GOOD.replace('51', '777')}\r\n".encode(),
        },
    )
    job = job_of(one, other, folder=tmp_path)
    found = clean(engine, job)
    assert [(job.sources[r.source].name, r.line, r.refusal.rule) for r in found.refused] == [
        (str(one), 3, "field-count"),
        (f"{other}/a.csv", 5, "field-count"),
        (f"{other}/b.txt", 2, "out-of-domain"),
    ]
    assert found.rows["age"].tolist() == [51, 51]


def test_the_quarantine_and_the_report_say_in_which_file_a_line_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    odd = tmp_path / os.fsdecode(b"b\xff.csv")  # a name need not be UTF-8
    for path in (tmp_path / "a.csv", odd):
        path.write_bytes(TEXT)
    arguments = ["--input", str(tmp_path / "*.csv"), "--output", str(tmp_path / "set")]
    assert command.main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["refusals"]["rows"]
    assert row["first_lines"] == [f"{tmp_path}/a.csv:42", f"{odd}:42"]
    quarantine = tmp_path / "set" / "quarantine.csv"
    with quarantine.open(newline="", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [
        [str(tmp_path / "a.csv"), "42", "", "1", "field-count"],
        [str(odd), "42", "", "1", "field-count"],
    ]


def test_a_glob_is_sorted_and_a_file_with_its_signs_in_the_name_is_a_file(tmp_path: Path):
    for name in ("b.csv", "a.csv", "c.txt", "[a].csv"):
        (tmp_path / name).write_bytes(TEXT)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.csv").write_bytes(TEXT)

    def names(*patterns: str) -> list[str]:
        found = find_sources([f"{tmp_path}/{pattern}" for pattern in patterns])
        return [str(source.path.relative_to(tmp_path)) for source in found]

    assert names("?.csv") == ["a.csv", "b.csv"]
    assert names("c.txt", "[ba].csv") == ["c.txt", "a.csv", "b.csv"]
    assert names("[a].csv") == ["[a].csv"]
    assert names("**/d.csv") == ["deep/d.csv"]
    with pytest.raises(DataError, match=r"got .*\*\.tsv: no file is so"):
        names("*.tsv")


@pytest.mark.parametrize("how", ["again", "a glob", "a link", "another way"])
def test_a_file_that_is_named_twice_is_refused(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "a.csv"
    path.write_bytes(TEXT)
    (tmp_path / "link").symlink_to(path)
    other = {"again": path, "a glob": tmp_path / "*.csv", "a link": tmp_path / "link",
             "another way": tmp_path / ".." / tmp_path.name / "a.csv"}[how]  # fmt: skip
    command_fails(capsys, 2, "input must name every file once", path, other)


def test_a_packed_source_becomes_a_private_plain_file(tmp_path: Path):
    packed = tmp_path / "raw.gz"
    packed.write_bytes(gzip.compress(TEXT))
    (source,) = find_sources([packed])
    plain = as_plain_file(source, tmp_path)
    assert plain.path.read_bytes() == TEXT
    assert plain.path.stat().st_mode & 0o777 == 0o600
    assert (plain.name, plain.packing, plain.num_bytes) == (source.name, "none", len(TEXT))
    assert as_plain_file(plain, tmp_path) is plain
    assert as_plain_file(source, tmp_path).path != plain.path


def test_the_manifest_tells_which_files_a_data_set_was_made_of(tmp_path: Path):
    path = zip_of(tmp_path / "raw.zip", {"b.csv": TEXT, "a.csv": TEXT})
    assert command.main(["--input", str(path), "--output", str(tmp_path / "set")]) == 0
    status = path.stat()
    assert shards.read_manifest(tmp_path / "set")["made_from"]["files"] == [
        {"path": os.path.realpath(path), "member": member, "bytes": status.st_size,
         "modified_ns": status.st_mtime_ns}
        for member in ("b.csv", "a.csv")
    ]  # fmt: skip


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_a_pipe_is_read_once_and_is_never_up_to_date(engine: str, tmp_path: Path) -> None:
    for _ in range(2):
        pipe = tmp_path / "pipe.csv"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_text, args=(f"{HEADER}\n{GOOD}\n" * 1,))
        writer.start()
        arguments = ["--input", str(pipe), "--output", str(tmp_path / "set"), "--engine", engine]
        assert command.main(arguments) == 0
        writer.join()
        pipe.unlink()
    assert shards.read_manifest(tmp_path / "set")["counts"]["kept"] == 1
