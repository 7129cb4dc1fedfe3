"""The meaning of ONE record, in plain Python: the oracle that every engine must agree with.

    file    = [BOM] [header end] (record end)* [end]  end     = LF | CR LF | CR
    record  = field (separator field)*                one line is one record
    field   = blank* quoted blank* | plain            blank   = space | tab (not the separator)
    quoted  = '"' (any but '"' | '""')* '"'           '""' stands for '"'
    plain   = any but separator*                      not beginning with blank* '"'
    token   = field without quotes and without blanks at both ends
    integer = ["-"] one to nine of the ASCII digits 0-9; "-" only if the domain has negative numbers
    number  = ["-"] one to nine digits ["." one to twenty] [("e" | "E") ["+" | "-"] one or two]

A line end always ends the record, also inside quotes. Invalid UTF-8 becomes U+FFFD, so it can
only be refused or sit in a column that is not used. A line of blanks is skipped, though it counts
in line numbers. Otherwise, in this order:

    bad-quotes       a quoted field does not end, or something follows its closing quote
    field-count      the record has more or fewer fields than the header
    missing-unit     the key of the unit of privacy is empty
    no-match         the second file has no line with the record's key
    ambiguous-match  it has several
    and, for the first used column in the order of the spec that is not right:
    missing-label    the token is one of the spec's missing tokens (any case); there is no answer
    missing-value      to learn from, or no constant to put in its place; else it is imputed
    not-an-integer   the token is none: 12.7, 1e1, +1, 1_2, 0x10 and full-width digits are not
    not-a-number     the token of a decimal column is none
    out-of-domain    the value lies outside low..high, or is not one of the levels
    not-in-universe  the same where the spec says that this is no defect, or a label in no class:
                       the record is not of the people that the spec is about
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from preprocess.spec import Column, Spec

RULES = (
    "bad-quotes",
    "field-count",
    "missing-unit",
    "no-match",
    "ambiguous-match",
    "missing-label",
    "missing-value",
    "not-an-integer",
    "not-a-number",
    "out-of-domain",
    "not-in-universe",
)
NOT_IN_UNIVERSE = "not-in-universe"
BLANKS = " \t"
MAX_VALUE_CHARACTERS = 80  # of an offending value that is kept for the quarantine

_OPENING = re.compile(r'[ \t]*"')
_INTEGER = re.compile(r"[0-9]{1,9}")
_SIGNED = re.compile(r"-?[0-9]{1,9}")
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class Layout:
    """Where the used columns are among `num_fields` fields, in the order of the spec.

    Places from `num_fields` on are in what the second file adds. `unit` and `join` are the places
    of the keys, or None.
    """

    spec: Spec
    num_fields: int
    used: tuple[tuple[Column, int], ...]
    unit: int | None = None
    join: int | None = None

    @cached_property
    def blanks(self) -> str:
        """What is taken off both ends of a token."""
        return BLANKS.replace(self.spec.separator, "")


class Record(NamedTuple):
    """A record that is kept: what is stored of each used column, the names of imputed columns, and
    the token of its unit's key (empty if the record is the unit)."""

    codes: tuple[float, ...]
    imputed: tuple[str, ...]
    unit: str = ""


class Refusal(NamedTuple):
    """Why a record is not kept. The column is empty where the whole line is at fault."""

    column: str
    value: str
    rule: str


Lookup = Mapping[str, tuple[str, ...] | None]
"""The second file by key: the fields of its used columns; None for a key that is there twice."""


def split_line(line: str, separator: str = ",") -> list[str] | None:
    """The fields of a line without their quotes, or None if the quotes are bad."""
    if '"' not in line:
        return line.split(separator)
    quoted_field = _quoted(separator)
    fields = []
    position = 0
    while True:
        if quoted := quoted_field.match(line, position):
            fields.append(quoted[1].replace('""', '"'))
            position = quoted.end()
        elif _opens(line, position, separator):
            return None
        else:
            end = line.find(separator, position)
            end = len(line) if end < 0 else end
            fields.append(line[position:end])
            position = end
        if position == len(line):
            return fields
        position += 1  # the separator


def read_record(
    line: bytes, layout: Layout, lookup: Lookup | None = None
) -> Record | Refusal | None:
    """What a line without its line end means: a record, a refusal, or (a blank line) nothing."""
    text = line.decode("utf-8", errors="replace")
    blanks = layout.blanks
    if not text.strip(blanks):
        return None
    fields = split_line(text, layout.spec.separator)
    if fields is None:
        return Refusal("", text[:MAX_VALUE_CHARACTERS], "bad-quotes")
    if len(fields) != layout.num_fields:
        return Refusal("", str(len(fields)), "field-count")
    unit = ""
    if layout.unit is not None:
        unit = fields[layout.unit].strip(blanks)
        if not unit:
            return Refusal(layout.spec.unit.key, "", "missing-unit")
    if layout.join is not None and layout.spec.join is not None:
        key = fields[layout.join].strip(blanks)
        more = lookup.get(key, ()) if lookup is not None else ()
        if not more:
            rule = "ambiguous-match" if more is None else "no-match"
            return Refusal(layout.spec.join.key, key[:MAX_VALUE_CHARACTERS], rule)
        fields += more
    codes = []
    imputed = []
    for column, place in layout.used:
        token = fields[place].strip(blanks)
        code = read_token(token, column, layout.spec)
        if isinstance(code, str):
            value = "" if code == NOT_IN_UNIVERSE else token[:MAX_VALUE_CHARACTERS]
            return Refusal(column.name, value, code)
        if code is None:
            assert column.impute is not None  # or it would have been a rule
            code = column.impute
            imputed.append(column.name)
        codes.append(code)
    return Record(tuple(codes), tuple(imputed), unit)


def read_token(token: str, column: Column, spec: Spec) -> float | str | None:
    """What is stored, the rule that the token breaks, or None: missing, and to be imputed."""
    value = _value(token, column)
    if value is None or token in spec.missing_tokens:
        if token.lower() in spec.missing_tokens:
            if column.impute is not None:
                return None
            return "missing-label" if column.name == spec.label else "missing-value"
        if column.levels:
            return "out-of-domain"
        return "not-a-number" if column.decimal else "not-an-integer"
    if not column.low <= value <= column.high:
        if column.outside == "refuse":
            return "out-of-domain"
        if column.outside == "skip":
            return NOT_IN_UNIVERSE
        value = column.low if value < column.low else column.high
    if column.name == spec.label and spec.classes:
        return spec.class_of.get(value, NOT_IN_UNIVERSE)
    return value


def _value(token: str, column: Column) -> float | None:
    """The number that the token is, or the place of the level; None if it is neither."""
    if column.levels:
        return _places(column.levels).get(token)
    if column.decimal:
        return float(token) if _NUMBER.fullmatch(token) else None
    pattern = _INTEGER if column.low >= 0 else _SIGNED
    return int(token) if pattern.fullmatch(token) else None


@cache
def _places(levels: tuple[str, ...]) -> dict[str, int]:
    return {level: number for number, level in enumerate(levels)}


@cache
def _quoted(separator: str) -> re.Pattern[str]:
    """A quoted field, up to a separator or the end."""
    blanks, end = BLANKS.replace(separator, ""), re.escape(separator)
    return re.compile(rf'[{blanks}]*"((?:[^"]|"")*+)"[{blanks}]*(?={end}|\Z)')


def _opens(line: str, position: int, separator: str) -> bool:
    """Whether the field that begins here begins with a quote."""
    if separator != "\t":
        return _OPENING.match(line, position) is not None
    return line[position:].lstrip(" ").startswith('"')
