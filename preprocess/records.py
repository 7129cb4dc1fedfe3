"""The meaning of ONE record, in plain Python: the oracle that every engine must agree with.

    file    = [BOM] header (end record)* [end]        end     = LF | CR LF | CR
    record  = field ("," field)*                      one line is one record
    field   = blank* quoted blank* | plain            blank   = space | tab
    quoted  = '"' (any but '"' | '""')* '"'           '""' stands for '"'
    plain   = any but ","*                            not beginning with blank* '"'
    token   = field without quotes and without blanks at both ends
    value   = one to nine of the ASCII digits 0-9

A line end always ends the record, also inside quotes. Invalid UTF-8 becomes U+FFFD, so it can
only be refused or sit in a column that is not used. A line of blanks is skipped, though it counts
in line numbers. Otherwise, in this order:

    bad-quotes      a quoted field does not end, or something follows its closing quote
    field-count     the record has more or fewer fields than the header
    and, for the first used column in the order of the spec that is not right:
    missing-label   the token is one of the spec's missing tokens (any case); there is no answer
    missing-value     to learn from, or no constant to put in its place; else it is imputed
    not-an-integer  the token is not a value: 12.7, 1e1, +1, 1_2, 0x10 and full-width digits are not
    out-of-domain   the value lies outside low..high
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from preprocess.spec import Column

RULES = (
    "bad-quotes",
    "field-count",
    "missing-label",
    "missing-value",
    "not-an-integer",
    "out-of-domain",
)
BLANKS = " \t"
MAX_VALUE_CHARACTERS = 80  # of an offending value that is kept for the quarantine

_QUOTED = re.compile(r'[ \t]*"((?:[^"]|"")*+)"[ \t]*(?=,|\Z)')
_OPENING = re.compile(r'[ \t]*"')
_VALUE = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the used columns are in a line of `num_fields` fields, in the order of the spec."""

    num_fields: int
    used: tuple[tuple[Column, int], ...]
    label: str
    missing_tokens: frozenset[str]


class Record(NamedTuple):
    """A record that is kept: one code per used column, and the names of imputed columns."""

    codes: tuple[int, ...]
    imputed: tuple[str, ...]


class Refusal(NamedTuple):
    """Why a record is not kept. The column is empty where the whole line is at fault."""

    column: str
    value: str
    rule: str


def split_line(line: str) -> list[str] | None:
    """The fields of a line without their quotes, or None if the quotes are bad."""
    if '"' not in line:
        return line.split(",")
    fields = []
    position = 0
    while True:
        if quoted := _QUOTED.match(line, position):
            fields.append(quoted[1].replace('""', '"'))
            position = quoted.end()
        elif _OPENING.match(line, position):
            return None
        else:
            comma = line.find(",", position)
            end = len(line) if comma < 0 else comma
            fields.append(line[position:end])
            position = end
        if position == len(line):
            return fields
        position += 1  # the comma


def read_record(line: bytes, layout: Layout) -> Record | Refusal | None:
    """What a line without its line end means: a record, a refusal, or (a blank line) nothing."""
    text = line.decode("utf-8", errors="replace")
    if not text.strip(BLANKS):
        return None
    fields = split_line(text)
    if fields is None:
        return Refusal("", text[:MAX_VALUE_CHARACTERS], "bad-quotes")
    if len(fields) != layout.num_fields:
        return Refusal("", str(len(fields)), "field-count")
    codes = []
    imputed = []
    for column, position in layout.used:
        token = fields[position].strip(BLANKS)
        code = _read_token(token, column, layout)
        if isinstance(code, str):
            return Refusal(column.name, token[:MAX_VALUE_CHARACTERS], code)
        if code is None:
            assert column.impute is not None  # or it would have been a rule
            code = column.impute
            imputed.append(column.name)
        codes.append(code)
    return Record(tuple(codes), tuple(imputed))


def _read_token(token: str, column: Column, layout: Layout) -> int | str | None:
    """A code, the rule that the token breaks, or None for a missing answer to be imputed."""
    if _VALUE.fullmatch(token):
        code = int(token)
        return code if column.low <= code <= column.high else "out-of-domain"
    if token.lower() not in layout.missing_tokens:
        return "not-an-integer"
    if column.impute is not None:
        return None
    return "missing-label" if column.name == layout.label else "missing-value"
