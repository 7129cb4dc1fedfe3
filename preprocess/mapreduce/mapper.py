"""The mapper: what each line of a split means, one line of output for each record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import BinaryIO, TextIO

from preprocess.errors import DataError
from preprocess.header import BOM
from preprocess.join import cut
from preprocess.mapreduce import COUNTERS
from preprocess.mapreduce.job import Description, Part, find_part
from preprocess.records import BLANKS, NOT_IN_UNIVERSE, Record, Refusal
from preprocess.rows import pack, row_struct
from preprocess.sources import lines_of
from preprocess.split import Split, digest_of

DIGEST_BYTES = 8  # of a key


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
    reader = description.reader(part.source)
    read = reader.read if description.joined is None else reader.join_token
    num_records = 0
    for index, line in lines:
        found = read(line)
        if isinstance(found, Record):
            output.keep(found, line)
        elif isinstance(found, Refusal):
            output.refuse(found, f"{part.name}-{index:012d}")
        elif isinstance(found, str):
            key, where = join_key(found, description.split), f"{part.name}-{index:012d}"
            output.write(f"{key}\t1 {where} {line.hex()}\n".encode())
        num_records += found is not None
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
