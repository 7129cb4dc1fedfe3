"""The first line of a file: which field is which column.

Names are compared without quotes, blanks and case, in any order. For a data set exactly the columns
of the spec must be there: a column too many is as suspicious as one too few, since records could be
shifted. For a prediction only those that features are made of must be there; what else a file has,
the label included, is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BufferedReader

from preprocess.errors import DataError
from preprocess.records import BLANKS, Layout, split_line
from preprocess.spec import Spec

BOM = b"\xef\xbb\xbf"
MAX_HEADER_BYTES = 65536
MAX_NAMES_IN_MESSAGE = 18
_WRONG_STARTS = {
    b"\xff\xfe": "is UTF-16, save it as UTF-8",
    b"\xfe\xff": "is UTF-16, save it as UTF-8",
    b"\x1f\x8b": "is compressed by gzip, unpack it first",
    b"PK\x03\x04": "is a zip archive, unpack it first",
    b"PAR1": "is a Parquet file, a text file with commas is expected",
}


def read_header(
    file: BufferedReader, spec: Spec, *, features_only: bool = False
) -> tuple[Layout, int]:
    """Read a file up to the end of its header; also gives the number of the line after it."""
    line_number = 1
    line = _read_line(file).removeprefix(BOM)
    while not line.strip(BLANKS.encode()):
        if not file.peek(1):
            raise DataError("file has no header: expected a line of column names")
        line = _read_line(file)
        line_number += 1
    return parse_header(line, spec, features_only=features_only), line_number + 1


def parse_header(line: bytes, spec: Spec, *, features_only: bool = False) -> Layout:
    """The layout that a header line describes. With `features_only`, see above, without label."""
    for start, problem in _WRONG_STARTS.items():
        if line.startswith(start):
            raise DataError(f"file {problem}")
    fields = split_line(line.decode("utf-8", errors="replace"))
    if fields is None:
        raise DataError(
            "header has a quote that does not end, or text after a closing quote"
            + _separator_hint(line)
        )
    names = [field.strip(BLANKS).lower() for field in fields]
    if not set(names) & set(spec.header) and any(name.isdecimal() for name in names):
        raise DataError(
            "first line must name the columns, it looks like a record; put a header in front of "
            f"it: {','.join(spec.header)}"
        )
    used = spec.inputs if features_only else spec.columns
    needed = [column.name for column in used] if features_only else spec.header
    allowed = names if features_only else spec.header
    if problems := _problems(names, needed, allowed):
        hint = _separator_hint(line) if len(names) == 1 else ""
        what = "that predictions need" if features_only else f"of {spec.name}"
        raise DataError(f"header must name the {len(needed)} columns {what}{problems}{hint}")
    places = tuple((column, names.index(column.name)) for column in used)
    return Layout(len(names), places, spec.label, spec.missing_tokens)


def _problems(names: Sequence[str], needed: Sequence[str], allowed: Sequence[str]) -> str:
    lists = {
        "missing": [name for name in needed if name not in names],
        "not expected": [repr(name[:40]) for name in names if name not in allowed],
        "twice": [name for name in needed if names.count(name) > 1],
    }
    text = ""
    for title, found in lists.items():
        if found:
            more = ", ..." if len(found) > MAX_NAMES_IN_MESSAGE else ""
            text += f"; {title}: {', '.join(found[:MAX_NAMES_IN_MESSAGE])}{more}"
    return text


def _separator_hint(line: bytes) -> str:
    for separator, name in ((b";", "semicolons"), (b"\t", "tabs"), (b"|", "vertical bars")):
        if separator in line:
            return f" (fields look separated by {name}, commas are expected)"
    return ""


def _read_line(file: BufferedReader) -> bytes:
    """One line without its end. Byte by byte: it is short, and the rest must stay unread."""
    line = bytearray()
    while (byte := file.read(1)) not in (b"", b"\n", b"\r"):
        line += byte
        if len(line) > MAX_HEADER_BYTES:
            raise DataError(
                f"first line must be a header of names, got over {MAX_HEADER_BYTES} bytes"
            )
    if byte == b"\r" and file.peek(1)[:1] == b"\n":
        file.read(1)
    return bytes(line)
