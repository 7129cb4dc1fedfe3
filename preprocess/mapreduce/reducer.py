"""The reducer: passes on what is done, and joins what two files have of one key."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from typing import BinaryIO, TextIO

from preprocess.mapreduce import CONTROL
from preprocess.mapreduce.job import Description
from preprocess.mapreduce.mapper import Output
from preprocess.mapreduce.reader import Reader
from preprocess.records import Record
from preprocess.sources import COPY_BYTES

FIRST = b"1"
"""How values begin that come from the first file."""


def run(description: Description, stdin: BinaryIO, stdout: BinaryIO, stderr: TextIO) -> None:
    """Reduce lines that are sorted by key, in any order within a key."""
    if description.spec.join is None:
        while block := stdin.read(COPY_BYTES):
            stdout.write(block)
        return
    output = Output(description, stdout)
    readers = [description.reader(source) for source in range(len(description.inputs))]
    for key, lines in groupby(stdin, _key):
        if key.startswith(CONTROL):
            for line in lines:
                stdout.write(line)
        else:
            _join(readers, lines, output)
    output.end(CONTROL.decode(), stderr)


def _key(line: bytes) -> bytes:
    return line[: line.index(b"\t")]


def _join(readers: list[Reader], lines: Iterable[bytes], output: Output) -> None:
    """The records of one key; `lookup` is the part of the second file that has it."""
    lookup: dict[str, tuple[str, ...] | None] = {}
    held = []
    for line in lines:
        _, _, value = line.rstrip(b"\n").partition(b"\t")
        tag, _, content = value.partition(b" ")
        if tag == FIRST:
            held.append(content)
        else:
            token, *fields = json.loads(content)
            lookup[token] = None if token in lookup else tuple(fields)
    for content in held:
        where, _, text = content.decode().partition(" ")
        source = int(where[1:].partition("-")[0])
        raw = bytes.fromhex(text)
        record = readers[source].read(raw, lookup)
        if isinstance(record, Record):
            output.keep(record, raw)
        elif record is not None:
            output.refuse(record, where)
