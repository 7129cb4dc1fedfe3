"""The mapper: what each line of a split means, one line of output for each record.

Most lines are plain and right: each of their fields has been met before, and a table of the distinct
fields of a column, filled by `records.read_token`, has its code. All others go to the one function
that knows what odd lines mean, `records.read_record`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, TextIO

from preprocess.errors import DataError
from preprocess.header import BOM
from preprocess.join import cut
from preprocess.mapreduce.job import COUNTERS, Description, Part, find_part
from preprocess.records import (
    BLANKS,
    NOT_IN_UNIVERSE,
    Layout,
    Record,
    Refusal,
    read_record,
    read_token,
    split_line,
)
from preprocess.rows import pack, row_struct
from preprocess.sources import lines_of
from preprocess.spec import Column
from preprocess.split import Split, digest_of

DIGEST_BYTES = 8  # of a key
MAX_KNOWN = 1 << 16  # distinct fields of a column that are remembered


class Output:
    """Writes what becomes of records, and counts it."""

    def __init__(self, description: Description, stdout: BinaryIO) -> None:
        self.write = stdout.write
        self.kept = self.refused = 0
        self.imputed, self.skipped = Counter[str](), Counter[str]()
        self._packer, self._split = row_struct(description.spec), description.split

    def put(self, record: Record | Refusal, line: bytes, where: str) -> None:
        """One record; `where` is the key of a refusal."""
        if isinstance(record, Record):
            row = pack(self._packer, line, record, self._split).hex()
            # its unit's place in the order is a part of the digest, after side and shard
            self.write(f"{row[6 : 6 + 2 * DIGEST_BYTES]}\t{row}\n".encode())
            self.kept += 1
            if record.imputed:
                self.imputed.update(record.imputed)
        elif record.rule == NOT_IN_UNIVERSE:
            self.skipped[record.column] += 1
        else:
            self.write(f"{where}\t{json.dumps(record)}\n".encode())
            self.refused += 1

    def end(self, key: str, stderr: TextIO, **counts: int | None) -> None:
        """What was counted, for whoever collects the output, and for people."""
        counted = {**counts, "imputed": self.imputed, "skipped": self.skipped}
        self.write(f"{key}\t{json.dumps(counted)}\n".encode())
        totals = {
            **counts,
            "kept": self.kept,
            "refused": self.refused,
            "imputed": self.imputed.total(),
            "not in universe": self.skipped.total(),
        }
        for name, number in totals.items():
            if number is not None:
                stderr.write(f"{COUNTERS},{name},{number}\n")


def run(
    description: Description,
    environment: Mapping[str, str],
    stdin: BinaryIO,
    stdout: BinaryIO,
    stderr: TextIO,
) -> None:
    """Map the lines of one split."""
    part = find_part(description, environment)
    output = Output(description, stdout)
    is_first = part.source < len(description.inputs)
    map_lines = _map_first if is_first else _map_second
    lines = _Lines(part, stdin)
    num_records = map_lines(description, part, lines, output)
    if is_first:
        output.end(part.name, stderr, lines=lines.number, bytes=part.length, records=num_records)


class _Lines:
    """The lines of a split after the header, each with its number in the split."""

    def __init__(self, part: Part, stdin: BinaryIO) -> None:
        self._part, self._stdin = part, stdin
        self.number = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        given, start = self._part.input, self._part.start
        before_header = self._part.begins_before_header
        for index, line in enumerate(lines_of(self._stdin)):  # type: ignore[arg-type]
            self.number = index + 1
            # Hadoop takes a BOM off, a shell does not
            if index == start == 0 and given.boms and line.startswith(BOM * given.boms):
                line = line.removeprefix(BOM)
            if not before_header:
                yield index, line
            elif line.strip(BLANKS.encode()):
                if line != given.header:
                    raise DataError(
                        f"{given.name} must be as it was when the job was planned, its header is "
                        f"another"
                    )
                before_header = False


def _map_first(description: Description, part: Part, lines: _Lines, output: Output) -> int:
    """Records of an input; with a join, those that a second file can complete are sent on."""
    layout = description.layouts[part.source]
    has_join = description.spec.join is not None
    read = _reader(layout)
    split, name = description.split, part.name
    num_records = 0
    for index, line in lines:
        record = read(line)
        if record is None:
            continue
        num_records += 1
        where = f"{name}-{index:012d}"
        if has_join and isinstance(record, Refusal) and record.rule == "no-match":
            key = join_key(_token(line, layout), split)
            output.write(f"{key}\t1 {where} {line.hex()}\n".encode())
        else:
            output.put(record, line, where)
    return num_records


def _map_second(description: Description, part: Part, lines: _Lines, output: Output) -> int:
    """Lines of the second file that can be cut into fields."""
    number = 0
    for _, line in lines:
        if (found := cut(line, description.places, description.spec)) is not None:
            number += 1
            token, fields = found
            key = join_key(token, description.split)
            output.write(f"{key}\t0 {json.dumps([token, *fields])}\n".encode())
    return number


def join_key(token: str, split: Split) -> str:
    """Where records and lines of the second file with this token meet."""
    return digest_of(token.encode(), split)[:DIGEST_BYTES].hex()


def _token(line: bytes, layout: Layout) -> str:
    """The key of the join in a line that has all its fields."""
    fields = split_line(line.decode("utf-8", errors="replace"), layout.spec.separator)
    assert fields is not None and layout.join is not None
    return fields[layout.join].strip(layout.blanks)


class _Codes(dict[str, float | None]):
    """What is stored for a field of a column without quotes; None if the oracle must be asked."""

    def __init__(self, column: Column, layout: Layout) -> None:
        self._column, self._spec, self._blanks = column, layout.spec, layout.blanks

    def __missing__(self, field: str) -> float | None:
        if len(self) >= MAX_KNOWN:
            self.clear()
        code = read_token(field.strip(self._blanks), self._column, self._spec)
        self[field] = None if isinstance(code, str) else code
        return self[field]


def _reader(layout: Layout) -> Callable[[bytes], Record | Refusal | None]:
    """`read_record` without a second file, but quick for plain lines."""
    if layout.join is not None:
        return lambda line: read_record(line, layout)
    separator, num_fields, unit, blanks = (
        layout.spec.separator, layout.num_fields, layout.unit, layout.blanks
    )  # fmt: skip
    tables = [(_Codes(column, layout), place) for column, place in layout.used]

    def read(line: bytes) -> Record | Refusal | None:
        if b'"' in line or not line.isascii():
            return read_record(line, layout)
        fields = line.decode().split(separator)
        if len(fields) != num_fields:
            return read_record(line, layout)
        codes = tuple([table[fields[place]] for table, place in tables])
        token = "" if unit is None else fields[unit].strip(blanks)
        if None in codes or (unit is not None and not token):
            return read_record(line, layout)
        return Record(codes, (), token)  # type: ignore[arg-type]

    return read
