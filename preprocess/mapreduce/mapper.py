"""The mapper: what each line of a split means, one line of output for each record.

Most lines are plain and right: each of their fields has been met before, and a table of the
distinct fields of a column, filled by `records.read_token`, has its code. All others go to the one
function that knows what odd lines mean, `records.read_record`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from operator import getitem, itemgetter
from typing import BinaryIO, TextIO

from preprocess.errors import DataError
from preprocess.header import BOM
from preprocess.join import cut
from preprocess.mapreduce import COUNTERS
from preprocess.mapreduce.job import Description, Part, find_part
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

    def keep(self, record: Record, line: bytes) -> None:
        """A record that is kept."""
        row = pack(self._packer, line, record, self._split).hex()
        # its unit's place in the order is a part of the digest; it follows side and shard
        self.write(f"{row[6 : 6 + 2 * DIGEST_BYTES]}\t{row}\n".encode())
        self.kept += 1
        if record.imputed:
            self.imputed.update(record.imputed)

    def refuse(self, refusal: Refusal, where: str) -> None:
        """One that is not."""
        if refusal.rule == NOT_IN_UNIVERSE:
            self.skipped[refusal.column] += 1
        else:
            self.write(f"{where}\t{json.dumps(refusal)}\n".encode())
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
    lines = _Lines(part, stdin)
    num_records = (_map_first if is_first else _map_second)(description, part, lines, output)
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
    read = _reader(layout)
    num_records = 0
    for index, line in lines:
        record = read(line)
        if record is None:
            continue
        num_records += 1
        if isinstance(record, Record):
            output.keep(record, line)
            continue
        where = f"{part.name}-{index:012d}"
        if record.rule == "no-match":
            key = join_key(_token(line, layout), description.split)
            output.write(f"{key}\t1 {where} {line.hex()}\n".encode())
        else:
            output.refuse(record, where)
    return num_records


def _map_second(description: Description, part: Part, lines: _Lines, output: Output) -> int:
    """Lines of the second file that can be cut into fields; none of them is a record."""
    for _, line in lines:
        if (found := cut(line, description.places, description.spec)) is not None:
            token, fields = found
            key = join_key(token, description.split)
            output.write(f"{key}\t0 {json.dumps([token, *fields])}\n".encode())
    return 0


def join_key(token: str, split: Split) -> str:
    """Where records and lines of the second file with this token meet."""
    return digest_of(token.encode(), split)[:DIGEST_BYTES].hex()


def _token(line: bytes, layout: Layout) -> str:
    """The key of the join in a line that has all its fields."""
    fields = split_line(line.decode("utf-8", errors="replace"), layout.spec.separator)
    assert fields is not None and layout.join is not None
    return fields[layout.join].strip(layout.blanks)


class _Codes(dict[str, float]):
    """What is stored for a field without quotes; KeyError if the oracle must be asked."""

    def __init__(self, column: Column, layout: Layout) -> None:
        self._column, self._spec, self._blanks = column, layout.spec, layout.blanks

    def __missing__(self, field: str) -> float:
        code = read_token(field.strip(self._blanks), self._column, self._spec)
        if code is None or isinstance(code, str):
            raise KeyError(field)
        if len(self) >= MAX_KNOWN:
            self.clear()
        self[field] = code
        return code


def _reader(layout: Layout) -> Callable[[bytes], Record | Refusal | None]:
    """`read_record` without a second file, but quick for plain lines."""
    if layout.join is not None:
        return lambda line: read_record(line, layout)
    separator, num_fields, unit = layout.spec.separator, layout.num_fields, layout.unit
    tables = [_Codes(column, layout) for column, _ in layout.used]
    places = [place for _, place in layout.used]
    used = itemgetter(*places, places[-1])  # one more, as it gives no tuple for one

    def read(line: bytes) -> Record | Refusal | None:
        if b'"' in line or not line.isascii():
            return read_record(line, layout)
        fields = line.decode().split(separator)
        if len(fields) != num_fields:
            return read_record(line, layout)
        try:
            codes = tuple(map(getitem, tables, used(fields)))
        except KeyError:
            return read_record(line, layout)
        if unit is None:
            return Record(codes, ())
        token = fields[unit].strip(layout.blanks)
        return Record(codes, (), token) if token else read_record(line, layout)

    return read
