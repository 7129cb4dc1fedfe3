"""What `records.read_record` says of a line, found quicker where the line is plain.

A line is plain if it is ASCII, has no quotes but around whole fields that hold neither quotes nor
separators, and the right number of separators. Cutting it there gives its fields. A table of the
distinct fields of each column, filled by `records.read_token`, has their codes. Whatever is not
plain, or not right, goes to the one function that knows what odd lines mean.
"""

from __future__ import annotations

import re
from operator import getitem, itemgetter

from preprocess.records import Layout, Lookup, Record, Refusal, read_record, read_token, split_line
from preprocess.spec import Column

MAX_KNOWN = 1 << 16  # distinct fields of a column that are remembered


class Reader:
    """Reads the lines of one file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._separator = separator = layout.spec.separator
        other, blank = rf'[^"{re.escape(separator)}]*+', f"[{layout.blanks}]*"
        field = f'(?:{other}|{blank}"{other}"{blank})'
        self._plain = re.compile(f"{field}(?:{re.escape(separator)}{field})*")
        self._tables = [_Codes(column, place, self) for column, place in layout.used]
        places = [place for _, place in layout.used]
        self._used = itemgetter(*places, places[-1])  # one more, as it gives no tuple for one

    def read(self, line: bytes, lookup: Lookup | None = None) -> Record | Refusal | None:
        """The same as `read_record` gives."""
        layout = self._layout
        fields = self._cut(line)
        if fields is None:
            return read_record(line, layout, lookup)
        unit = "" if layout.unit is None else self.token(fields[layout.unit])
        if layout.unit is not None and not unit:
            return read_record(line, layout, lookup)
        if layout.join is not None:
            more = lookup.get(self.token(fields[layout.join])) if lookup is not None else None
            if not more:
                return read_record(line, layout, lookup)
            fields += more
        try:
            codes = tuple(map(getitem, self._tables, self._used(fields)))
        except KeyError:
            return read_record(line, layout, lookup)
        return Record(codes, (), unit)

    def join_token(self, line: bytes) -> str | Refusal | None:
        """The key of the join, or what `read_record` says if it does not ask the second file."""
        layout = self._layout
        assert layout.join is not None
        fields = self._cut(line)
        if fields is None or (layout.unit is not None and not self.token(fields[layout.unit])):
            asked = _Asked()
            record = read_record(line, layout, asked)
            assert not isinstance(record, Record)
            return record if asked.key is None else asked.key
        return self.token(fields[layout.join])

    def token(self, field: str) -> str:
        """A field of a plain line without quotes and blanks."""
        if '"' in field:
            fields = split_line(field, self._separator)
            assert fields is not None
            field = fields[0]
        return field.strip(self._layout.blanks)

    def _cut(self, line: bytes) -> list[str] | None:
        """The fields of a plain line, with their quotes; None for another."""
        if not line.isascii():
            return None
        text = line.decode()
        if '"' in text and not self._plain.fullmatch(text):
            return None
        fields = text.split(self._separator)
        if len(fields) != self._layout.num_fields or (len(fields) == 1 and text.isspace()):
            return None
        return fields if text else None


class _Codes(dict[str, float]):
    """What is stored for each field of a column; KeyError if the oracle must be asked."""

    def __init__(self, column: Column, place: int, reader: Reader) -> None:
        layout = reader._layout
        self._column, self._spec, self._blanks = column, layout.spec, layout.blanks
        self._reader = reader if place < layout.num_fields else None  # else its quotes are off

    def __missing__(self, field: str) -> float:
        token = self._reader.token(field) if self._reader else field.strip(self._blanks)
        code = read_token(token, self._column, self._spec)
        if code is None or isinstance(code, str):
            raise KeyError(field)
        if len(self) >= MAX_KNOWN:
            self.clear()
        self[field] = code
        return code


class _Asked(dict[str, tuple[str, ...] | None]):
    """A second file without lines, which notes the key that it is asked for."""

    key: str | None = None

    def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
        """Nothing."""
        self.key = key
        return default
