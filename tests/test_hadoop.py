"""PipeJob is Hadoop Streaming in what a mapper or reducer can notice."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest

from hadoop import JobFailed, run_pipe_job

COUNT_WORDS = r"""
import os, sys
for line in sys.stdin.buffer:
    print("reporter:counter:seen,lines,1", file=sys.stderr)
    for word in line.rstrip(b"\n").split(b" "):
        sys.stdout.buffer.write(word + b"\t1\n")
length = os.environ["mapreduce_map_input_length"]
print("reporter:counter:seen,splits,1", file=sys.stderr)
print(f"reporter:counter:seen,bytes,{length}", file=sys.stderr)
"""
ADD = r"""
import itertools, sys
def pair(line): return line.rstrip(b"\n").split(b"\t", 1)
for key, pairs in itertools.groupby(map(pair, sys.stdin.buffer), lambda pair: pair[0]):
    values = [value for _, value in pairs]
    sys.stdout.buffer.write(b"%s\t%d %s\n" % (key, len(values), max(values)))
"""
TELL_SPLIT = r"""
import os
print(*(os.environ["mapreduce_map_input_" + name] for name in ("file", "start", "length")))
"""
TELL_LINES = r"""
import os, sys
name = os.path.basename(os.environ["mapreduce_map_input_file"])
print(name, [line.decode("latin-1") for line in sys.stdin.buffer], sep="\t")
"""
CAT = ["cat"]
BOM = "\xef\xbb\xbf"


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def parts(output: Path) -> list[list[bytes]]:
    """The lines of each part file."""
    return [path.read_bytes().splitlines() for path in sorted(output.glob("part-*"))]


def test_words_of_many_splits_are_counted_exactly_whatever_their_bytes(tmp_path: Path) -> None:
    words = [b"a", b"", b"\xff\xfe", b"\xc3", b"'\"$x`", b"TAB\tvalue", b"\xe4\xbd\xa0", b"z" * 99]
    ends = [b" ", b"\n", b"\r\n", b"\n\n", b"\r"]
    draw = Random(1)
    text = b"".join(draw.choice(words) + draw.choice(ends) for _ in range(300))
    text += b"\r\n" * 40 + b"last line without an end \xff"
    file = tmp_path / "words.txt"
    file.write_bytes(text)
    counters = run_pipe_job(
        python(COUNT_WORDS), python(ADD), [file], tmp_path / "out", reducers=3, split_bytes=640
    )

    lines = re.split(rb"\r\n|\n|\r", text)
    values = defaultdict(list)
    for word in (word for line in lines for word in line.split(b" ")):
        key, value = (word + b"\t1").split(b"\t", 1)
        values[key].append(value)
    expected = [b"%s\t%d %s" % (key, len(all_), max(all_)) for key, all_ in values.items()]
    found = parts(tmp_path / "out")
    assert sorted(line for part in found for line in part) == sorted(expected)
    assert len(found) == 3
    assert all(part == sorted(part, key=lambda line: line.split(b"\t")[0]) for part in found)
    assert counters["seen", "lines"] == len(lines)
    assert counters["seen", "bytes"] == len(text)
    assert counters["seen", "splits"] > 5


def test_a_mapper_is_told_which_part_of_which_file_it_has(tmp_path: Path) -> None:
    files = [tmp_path / "a b, é.csv", tmp_path / "c.csv", tmp_path / "empty.csv"]
    for file, size in zip(files, (25, 7, 0), strict=True):
        file.write_bytes(b"x" * size)
    run_pipe_job(python(TELL_SPLIT), CAT, files, tmp_path / "out", reducers=1, split_bytes=10)
    a, c, empty = (f"file:{file}".encode() for file in files)
    expected = [a + b" 0 10", a + b" 10 10", a + b" 20 5", c + b" 0 7", empty + b" 0 0"]
    assert parts(tmp_path / "out") == [[line + b"\t" for line in expected]]


LINES = {
    "bom": (BOM + "a\n" + BOM + "b\n", ["a\n", BOM + "b\n"]),
    "bom-alone": (BOM, []),
    "bom-and-end": (BOM + "\n", ["\n"]),
    "cr": ("a\rb\r", ["a\n", "b\n"]),
    "crlf": ("a\r\n\r\nb\r\n", ["a\n", "\n", "b\n"]),
    "no-end": ("a\nb", ["a\n", "b\n"]),
    "other": ("a\x0b\x0c\x1c\x85\x00b\n", ["a\x0b\x0c\x1c\x85\x00b\n"]),
}
LINES_OF_LF = LINES | {
    "cr": ("a\rb\r", ["a\rb\r\n"]),
    "crlf": ("a\r\n\r\nb\r\n", ["a\r\n", "\r\n", "b\r\n"]),
}


@pytest.mark.parametrize(
    ("settings", "table"),
    [({}, LINES), ({"textinputformat.record.delimiter": "\n"}, LINES_OF_LF)],
    ids=["default", "delimiter"],
)
def test_a_mapper_gets_the_lines_that_hadoop_sees(
    tmp_path: Path, settings: dict[str, str], table: dict[str, tuple[str, list[str]]]
) -> None:
    files = [tmp_path / name for name in table]
    for file in files:
        file.write_bytes(table[file.name][0].encode("latin-1"))
    run_pipe_job(python(TELL_LINES), CAT, files, tmp_path / "out", reducers=1, settings=settings)
    found = dict(line.decode().split("\t") for line in parts(tmp_path / "out")[0])
    assert found == {name: repr(lines) for name, (_, lines) in table.items()}


def test_a_line_that_a_command_writes_ends_at_cr_too(tmp_path: Path) -> None:
    file = tmp_path / "one"
    file.write_bytes(b"x")
    mapper = ["printf", r"\357\273\277k\tv\rK\t\tV\r\nempty\n\n"]
    run_pipe_job(mapper, CAT, [file], tmp_path / "out", reducers=1)
    assert parts(tmp_path / "out") == [
        [b"\t", b"K\t\tV", b"empty\t", BOM.encode("latin-1") + b"k\tv"]
    ]


@pytest.mark.parametrize("role", ["mapper", "reducer"])
def test_a_command_that_fails_fails_the_job(tmp_path: Path, role: str) -> None:
    file = tmp_path / "many"
    file.write_bytes(b"line\n" * 100_000)
    fails = ["sh", "-c", "read line; echo out of luck >&2; exit 3"]
    commands = {"mapper": CAT, "reducer": CAT} | {role: fails}
    with pytest.raises(JobFailed, match=r"(?s)out of luck.*a child ended with code 3"):
        run_pipe_job(commands["mapper"], commands["reducer"], [file], tmp_path / "out")
    assert not list(tmp_path.glob("out/part-*"))
