"""One task of a local run, in a process of its own: the pair on a part of the data.

    map      feeds the bytes of a split to the mapper, sorts what it writes, and leaves a file that
             has the partitions one behind the other
    reduce   collects a partition from all those files, sorts it, feeds it to the reducer, and
             leaves its rows as bytes in one file and the lines of control, sorted, in another

A key is in the partition of its first four digits, and lines of control are in one that depends on
the split; so in sorted lines every partition is one piece. A task holds a split, or a partition.

Splits are those of Hadoop: the first byte may be anywhere, also between CR and LF, and a split has
the lines that begin behind it, up to the line that begins where the next split does.

The request comes as JSON on stdin, the answer goes as JSON to stdout. With exit code 5 a file is at
fault, and the answer says how; with any other but 0 the last line of stderr says why.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from preprocess.errors import DataError
from preprocess.mapreduce import CONTROL, COUNTERS, EXIT_DATA, EXIT_DISK, INPUT, PROG
from preprocess.sources import COPY_BYTES, Source, open_source

LINE_END = re.compile(rb"\r\n?|\n")
KEYS = 1 << 16  # values of the first four digits
PYTHON = (sys.executable, "-P", "-m")

Answer: TypeAlias = dict[str, Any]


def main() -> int:
    """Do what stdin asks for; gives the exit code."""
    request = json.load(sys.stdin)
    task = map_split if request.pop("do") == "map" else reduce_partition
    try:
        answer = task(**request)
    except DataError as error:
        json.dump({"error": str(error)}, sys.stdout)
        return EXIT_DATA
    except ChildProcessError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # a full disk
        json.dump({"error": f"temporary files must be writable: {error.strerror}"}, sys.stdout)
        return EXIT_DISK
    json.dump(answer, sys.stdout)
    return 0


def map_split(
    job: str,
    source: int,
    name: str,
    path: str,
    state: tuple[int, int],
    start: int,
    length: int,
    output: str,
    partitions: int,
    number: int,
) -> Answer:
    """Map one split, the `number`-th of all. The answer: where each partition ends, and records."""
    file_of = Source(
        name=name, path=Path(path), packing="none", num_bytes=state[0], state=(state[0], state[1])
    )
    variables = {
        INPUT: str(source),
        "mapreduce_map_input_start": str(start),
        "mapreduce_map_input_length": str(length),
    }
    with open_source(file_of) as file:
        ends = [line_start(file, offset) for offset in (start, start + length)]
        mapped, errors = _child("map", job, _range(file, *ends), variables)
    lines = mapped.splitlines(keepends=True)
    del mapped
    lines.sort()
    control = bisect_left(lines, CONTROL)
    cuts = [bisect_left(lines, b"%04x" % -(-KEYS * one // partitions), 0, control)
            for one in range(1, partitions)]  # fmt: skip
    cuts = [0, *cuts, control]
    offsets = []
    with Path(output).open("wb") as out:
        for partition in range(partitions):
            out.writelines(lines[cuts[partition] : cuts[partition + 1]])
            if partition == number % partitions:
                out.writelines(lines[control:])
            offsets.append(out.tell())
    found = re.search(rf"^{COUNTERS},records,(\d+)$", errors, re.MULTILINE)
    return {"offsets": offsets, "records": int(found[1]) if found else 0}


def reduce_partition(
    job: str, pieces: list[tuple[str, int, int]], rows: str, control: str
) -> Answer:
    """Reduce one partition, whose pieces are [file, first byte, last byte + 1]."""
    lines = []
    for path, start, stop in pieces:
        with Path(path).open("rb") as file:
            file.seek(start)
            lines += file.read(stop - start).splitlines(keepends=True)
    lines.sort()  # runs that are sorted are merged
    reduced, _ = _child("reduce", job, lines, {})
    del lines
    found, told = unpack(reduced.splitlines())
    Path(rows).write_bytes(found)
    Path(control).write_bytes(b"".join(line + b"\n" for line in told))
    return {}


def unpack(lines: Iterable[bytes]) -> tuple[bytes, list[bytes]]:
    """What reducers wrote: the rows, and the lines of control in order."""
    rows, control = [], []
    for line in lines:
        if line.startswith(CONTROL):
            control.append(line)
        else:
            rows.append(line[line.index(b"\t") + 1 :])
    return bytes.fromhex(b"".join(rows).decode()), sorted(control)


def line_start(file: BinaryIO, offset: int) -> int:
    """Where the first line begins that is behind the one in which `offset` is, or 0 for 0."""
    if offset == 0:
        return 0
    file.seek(offset)
    while block := file.read(COPY_BYTES >> 4):
        if end := LINE_END.search(block):
            is_cut = end[0] == b"\r" and end.end() == len(block) and file.read(1) == b"\n"
            return offset + end.end() + is_cut
        offset += len(block)
    return offset


def environment() -> dict[str, str]:
    """That of this process, so that a child finds the same package."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def last_line(text: str) -> str:
    """Of what a process wrote to stderr: the cause, if it ended with a traceback."""
    lines = [line for line in text.splitlines() if line.strip() and COUNTERS not in line]
    return lines[-1].strip() if lines else "it does not say why"


def _range(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    file.seek(start)
    while start < stop and (block := file.read(min(COPY_BYTES, stop - start))):
        yield block
        start += len(block)


def _child(
    role: str, job: str, given: Iterable[bytes], variables: Mapping[str, str]
) -> tuple[bytes, str]:
    """What the mapper or reducer makes of its input, and what it wrote to stderr."""
    command = [*PYTHON, "preprocess.mapreduce", role, job]
    with tempfile.TemporaryFile(dir=Path(job).parent) as out, \
            tempfile.TemporaryFile(dir=Path(job).parent) as err:  # fmt: skip
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env={**environment(), **variables},
        ) as child:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # its exit code says more
                child.stdin.writelines(given)
                child.stdin.close()
        out.seek(0)
        err.seek(0)
        errors = err.read().decode(errors="replace")
        if child.returncode == EXIT_DATA:
            raise DataError(last_line(errors).removeprefix(f"{PROG}: error: "))
        if child.returncode == EXIT_DISK:
            raise OSError(0, last_line(errors).removeprefix(f"{PROG}: error: "))
        if child.returncode:
            name = "mapper" if role == "map" else "reducer"
            raise ChildProcessError(
                f"{name} ended with code {child.returncode}: {last_line(errors)}"
            )
        return out.read(), errors


if __name__ == "__main__":
    sys.exit(main())
