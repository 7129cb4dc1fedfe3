"""The first line of a file: which field is which column.

Names are compared without quotes, blanks and case, in any order. For a data set exactly the columns
of the spec must be there, unless it allows others: a column too many is as suspicious as one too
few, since records could be shifted. For a prediction only those that features are made of must be
there; what else a file has, the label included, is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BufferedReader

from preprocess.errors import DataError
from preprocess.records import BLANKS, Layout, split_line
from preprocess.spec import Spec

BOM = b"\xef\xbb\xbf"
MAX_HEADER_BYTES = 65536
MAX_NAMES_IN_MESSAGE = 18
_NUMBER = re.compile("[-+]?[0-9.][0-9.e+-]*")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}


def read_header(
    file: BufferedReader, spec: Spec, *, features_only: bool = False
) -> tuple[Layout, int]:
    """Read a file up to the end of its header; also gives the number of the line after it."""
    if not spec.first_line_names:
        if file.peek(len(BOM)).startswith(BOM):
            file.read(len(BOM))
        if not file.peek(1):
            raise DataError("file is empty: expected records")
        return layout_of(list(spec.header), spec, features_only=features_only), 1
    line, number = read_first_line(file)
    return parse_header(line, spec, features_only=features_only), number + 1


def read_first_line(file: BufferedReader) -> tuple[bytes, int]:
    """The first line that is not blank, without a BOM, and its number."""
    number = 1
    line = _read_line(file).removeprefix(BOM)
    while not line.strip(BLANKS.encode()):
        if not file.peek(1):
            raise DataError("file has no header: expected a line of column names")
        line = _read_line(file)
        number += 1
    return line, number


def parse_header(line: bytes, spec: Spec, *, features_only: bool = False) -> Layout:
    """The layout that a header line describes. With `features_only`, see above, without label."""
    names = parse_names(line, spec.header, spec.separator)
    needed = list(spec.header)
    if features_only:
        joined = set(spec.join.header) if spec.join else set()
        inputs = [column.name for column in spec.inputs]
        needed = [name for name in inputs if name in spec.header or name not in joined]
        needed += [spec.join.key] if spec.join and spec.join.key not in needed else []
    what = "that predictions need" if features_only else f"of {spec.name}"
    check_names(names, needed, spec.other_columns or features_only, what, line, spec.separator)
    return layout_of(names, spec, features_only=features_only)


def layout_of(names: list[str], spec: Spec, *, features_only: bool = False) -> Layout:
    """The layout of a file with columns of these names."""
    used = spec.inputs if features_only else spec.columns
    joined = {name: len(names) + place for place, name in enumerate(joined_columns(spec))}
    return Layout(
        spec,
        len(names),
        tuple(
            (column, joined[column.name] if column.name in joined else names.index(column.name))
            for column in used
        ),
        unit=names.index(spec.unit.key) if spec.unit.key and not features_only else None,
        join=names.index(spec.join.key) if spec.join else None,
    )


def joined_columns(spec: Spec) -> list[str]:
    """Names of the used columns that come from the second file, in the order of the spec."""
    return [column.name for column in spec.columns if spec.join and column.name not in spec.header]


def parse_names(line: bytes, expected: Sequence[str], separator: str) -> list[str]:
    """The names in a header line. Raises DataError for what looks like none."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("file is UTF-16, save it as UTF-8")
    fields = split_line(line.decode("utf-8", errors="replace"), separator)
    if fields is None:
        raise DataError(
            "header has a quote that does not end, or text after a closing quote"
            + _separator_hint(line, separator)
        )
    names = [field.strip(BLANKS).lower() for field in fields]
    if not set(names) & set(expected) and any(map(_NUMBER.fullmatch, names)):
        raise DataError(  # and does not show it, since it may be somebody's
            "first line must name the columns, it looks like a record; put a header in front of "
            f"it: {separator.join(expected)}"
        )
    return names


def check_names(
    names: Sequence[str],
    needed: Sequence[str],
    others: bool,
    what: str,
    line: bytes,
    separator: str,
) -> None:
    """Raise DataError that says which names are missing, unknown or there twice."""
    allowed = names if others else needed
    if problems := _problems(names, needed, allowed):
        hint = _separator_hint(line, separator) if len(names) == 1 else ""
        raise DataError(f"header must name the {len(needed)} columns {what}{problems}{hint}")


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


def _separator_hint(line: bytes, separator: str) -> str:
    for other, name in _SEPARATORS.items():
        if other != separator and other.encode() in line:
            expected = _SEPARATORS[separator]
            return f" (fields look separated by {name}, {expected} are expected)"
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
