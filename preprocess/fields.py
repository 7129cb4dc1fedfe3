"""Lines and fields of a text, found by their bytes: where each begins and ends.

A field is what lies between two separators; that this is right is for the caller to know (see
`preprocess.blocks`, plain lines).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

LONG_FIELD = 3 << 16
"""Stands for every field of more than two bytes; shorter ones have numbers below."""

_MASKS = np.array([0, 0xFF, 0xFFFF], np.uint32)
_RARE = [chr(code) for code in range(1, 32) if chr(code) not in "\t\n\r"]


class Lines:
    """Where the lines of a text begin and end, and their fields if they are cut at separators."""

    def __init__(self, text: bytes, separator: str) -> None:
        self.text = text
        self.bytes = np.frombuffer(text, np.uint8)
        is_end = (self.bytes == ord(separator)) | (self.bytes == ord("\n"))
        self._field_ends = np.flatnonzero(is_end)
        last_fields = np.flatnonzero(self.bytes[self._field_ends] == ord("\n"))
        self.ends = self._field_ends[last_fields]
        self.starts = np.concatenate([[0], self.ends[:-1] + 1])
        self.num_fields = np.diff(last_fields, prepend=-1)

    def __len__(self) -> int:
        return len(self.ends)

    def line(self, number: int) -> bytes:
        """One line, without its end."""
        return self.text[self.starts[number] : self.ends[number]]

    def count(self, what: NDArray[np.bool_]) -> NDArray[np.uint32]:
        """How many bytes of each line are so; `what` has an entry for each byte."""
        counts: NDArray[np.uint32] = np.add.reduceat(what, self.starts, dtype=np.uint32)
        return counts

    def selected(self, is_wanted: NDArray[np.bool_]) -> pl.Series:
        """Some lines as text; none of them may be empty."""
        num_lines = int(np.count_nonzero(is_wanted))
        text = self.text
        if num_lines < len(self):
            text = self.bytes[np.repeat(is_wanted, self.ends - self.starts + 1)].tobytes()
        return as_lines(text, num_lines)

    def fields(self, is_plain: NDArray[np.bool_], num_fields: int) -> Fields:
        """The fields of plain lines."""
        ends = self._field_ends[np.repeat(is_plain, self.num_fields)].reshape(-1, num_fields)
        return Fields(self.bytes, self.starts[is_plain], np.ascontiguousarray(ends.T))


class Fields:
    """Where the fields of plain lines are: first bytes of lines, ends of fields [fields, lines]."""

    def __init__(
        self, text: NDArray[np.uint8], starts: NDArray[np.intp], ends: NDArray[np.intp]
    ) -> None:
        self._bytes, self._starts, self._ends = text, starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    def bounds(self, place: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First bytes of the fields of a column, and their lengths, each [lines]."""
        starts = self._ends[place - 1] + 1 if place else self._starts
        return starts, self._ends[place] - starts

    def short(self, starts: NDArray[np.intp], lengths: NDArray[np.intp]) -> NDArray[np.uint32]:
        """A number below LONG_FIELD for each field of up to two bytes; the others have none."""
        first = np.take(self._bytes, starts, mode="clip").astype(np.uint32)
        second = np.take(self._bytes, starts + 1, mode="clip").astype(np.uint32)
        capped = np.minimum(lengths, 2)
        text = (first | (second << np.uint32(8))) & np.take(_MASKS, capped, mode="clip")
        return np.asarray(text | (capped.astype(np.uint32) << np.uint32(16)))

    def texts(self, starts: NDArray[np.intp], lengths: NDArray[np.intp]) -> pl.Series:
        """Fields as text."""
        sizes = lengths + 1  # with what ends them
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        places = np.repeat(starts - (ends - sizes), sizes) + np.arange(total)
        found = self._bytes[places]
        found[ends - 1] = ord("\n")
        return pl.Series(found.tobytes().decode().split("\n")[:-1], dtype=pl.String)


def as_lines(text: bytes, num_lines: int) -> pl.Series:
    """Lines of valid UTF-8, none of them empty."""
    if not num_lines:
        return pl.Series(dtype=pl.String)
    separator = next((one for one in _RARE if one.encode() not in text), None)
    if separator is None:
        return pl.Series(text.decode().split("\n")[:-1])
    table = pl.read_csv(
        text, has_header=False, schema={"line": pl.String}, separator=separator, quote_char=None
    )
    return _checked(table, num_lines)["line"]


def _checked(table: pl.DataFrame, num_lines: int) -> pl.DataFrame:
    if table.height != num_lines:
        raise RuntimeError(f"Polars must read {num_lines} rows, got {table.height}")
    return table
