"""What plain lines mean, by Spark's own expressions, which run in its JVM.

A line is *plain* if it is valid UTF-8, has exactly the right number of separators, and no quotes
but around whole fields that hold neither quotes nor separators (see `preprocess.blocks`). Its
tokens are what stands between the separators once those quotes are gone, without blanks around.
An expression never decides more than it is sure of: a token passes an ASCII pattern before it is
cast, and whatever is not right goes to `records.read_record`. So the table below says all.

    state   null   kept
            i>=0   skipped: used column i is not in the universe, and those before it are right
            ODD    not plain, or against a rule: the oracle decides
            HEADER equal to the header of its file
            BLANK  no record
    id      of odd lines and headers: partition and number of the line in it
    line    of odd lines: their bytes
    place   of kept lines: the first 24 bytes of the digest of the line, or of its unit
    order   of kept lines of units: the third 8 bytes of the digest of the line
    c0...   of kept lines: the codes; null is a missing answer to be imputed
"""

from __future__ import annotations

import json
import re
from functools import reduce
from operator import or_
from string import ascii_lowercase, ascii_uppercase
from zlib import crc32

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from preprocess.records import Layout
from preprocess.spec import Column, Spec
from preprocess.split import Split

_DIGIT = re.compile("[0-9]")
ODD, HEADER, BLANK = -1, -2, -3
INTEGER, NUMBER = "[0-9]{1,9}", r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?(?:[eE][+-]?[0-9]{1,2})?"
MAX_FIELDS_IN_PATTERN = 500  # Java's matcher needs some stack for each

SETTINGS = {
    "spark.sql.ansi.enabled": "false",  # a cast that fails gives null, not a costly exception
    "spark.sql.codegen.hugeMethodLimit": "8000",  # beyond it Java does not compile
}
"""What a session must have while a table is described and made."""


def outcomes(
    lines: DataFrame,
    layout: Layout,
    split: Split,
    header: bytes | None = None,
    second: DataFrame | None = None,
) -> DataFrame:
    """The table above, of `lines` with `id` and `line`.

    `second` is that of `spark_join.read_second`.
    """
    spec = layout.spec
    text = Text(spec, layout.num_fields)
    table = lines.select("*", *text.flags(), text.is_simple(layout), *_tokens(text, layout))
    if second is not None:
        table = table.join(second, "key", "left")
    decided = [_decide(i, column, spec) for i, (column, _) in enumerate(layout.used)]
    state = F.when(F.col("is_blank"), BLANK)
    if header is not None:
        state = state.when(F.col("line").cast("binary") == F.lit(header), HEADER)
    state = state.when(~F.col("is_plain"), ODD)
    if layout.unit is not None:
        state = state.when(F.col("unit") == "", ODD)
    if second is not None:
        state = state.when(_is_unmatched(layout), ODD)
    state = state.otherwise(F.coalesce(*[wrong for _, wrong in decided])).cast("short")
    kept = {f"c{i}": code for i, (code, _) in enumerate(decided)} | _places(layout, split)
    return table.select(
        state.alias("state"),
        F.when(state.isin(ODD, HEADER), F.col("id")).alias("id"),
        F.when(state == ODD, F.col("line").cast("binary")).alias("line"),
        *[F.when(state.isNull(), value).alias(name) for name, value in kept.items()],
    )


class Text:
    """Expressions about a column `line`."""

    def __init__(self, spec: Spec, num_fields: int) -> None:
        separator, blank = re.escape(spec.separator), "[ \t]" if spec.separator != "\t" else "[ ]"
        quoted = rf'(\A|{separator}){blank}*+"([^"{separator}]*+)"{blank}*+(?={separator}|\z)'
        blanks = rf"(?:\A|(?<={separator})){blank}++|(?<!{blank}){blank}++(?={separator}|\z)"
        line = F.col("line")
        self._num_fields, self._separator = num_fields, separator
        self._has_quote = F.contains(line, F.lit('"'))
        bare = F.when(self._has_quote, F.regexp_replace(line, quoted, "$1$2")).otherwise(line)
        has_blank = reduce(or_, [F.contains(bare, F.lit(one)) for one in blank[1:-1]])
        self._stripped = F.when(has_blank, F.regexp_replace(bare, blanks, "")).otherwise(bare)
        self._is_clear = F.is_valid_utf8(line) & ~F.contains(bare, F.lit('"'))
        self._tokens = F.split(self._stripped, separator, -1)

    def flags(self) -> list[Expression]:
        """`is_plain` and `is_blank`."""
        is_plain = self._is_clear & (F.size(self._tokens) == self._num_fields)
        is_blank = (self._stripped == "") & ~self._has_quote
        return [is_plain.alias("is_plain"), is_blank.alias("is_blank")]

    def token(self, place: int) -> Expression:
        """A token of a plain line; of other lines any, or null."""
        return F.get(self._tokens, F.lit(place))

    def is_simple(self, layout: Layout) -> Expression:
        """Whether all that should be numbers are so, or missing: one search instead of many."""
        if self._num_fields > MAX_FIELDS_IN_PATTERN:
            return F.lit(False).alias("is_simple")
        fields = [rf"[^{self._separator}]*+"] * self._num_fields
        missing = [re.escape(one) for one in _missing_tokens(layout.spec) if not _DIGIT.search(one)]
        for column, place in layout.used:
            if place < self._num_fields and not column.levels:
                fields[place] = f"(?:{_pattern(column)}|(?i:{'|'.join(missing)}))"
        pattern = rf"\A{self._separator.join(fields)}\z"
        return self._stripped.rlike(pattern).alias("is_simple")


def _tokens(text: Text, layout: Layout) -> list[Expression]:
    places = {f"t{i}": at for i, (_, at) in enumerate(layout.used) if at < layout.num_fields}
    places |= {"unit": layout.unit} if layout.unit is not None else {}
    places |= {"key": layout.join} if layout.join is not None else {}
    return [text.token(place).alias(name) for name, place in places.items()]


def _is_unmatched(layout: Layout) -> Expression:
    if not any(place >= layout.num_fields for _, place in layout.used):
        return F.lit(True)  # nothing is read from the second file: the oracle finds no match
    return F.col("matches").isNull() | (F.col("matches") != 1)


def _value(token: Expression, column: Column) -> Expression:
    """As `records._value`: the number that a token is, or the place of the level; else null."""
    if column.levels:
        return _level(token, column.levels)
    is_number = F.col("is_simple") | token.rlike(rf"\A{_pattern(column)}\z")
    return F.when(is_number, token.cast("double" if column.decimal else "int"))


def _pattern(column: Column) -> str:
    if column.decimal:
        return NUMBER
    return INTEGER if column.low >= 0 else f"-?{INTEGER}"


def _level(token: Expression, levels: tuple[str, ...]) -> Expression:
    """Spark searches a map from its beginning, so there are many, chosen by a checksum."""
    buckets: list[dict[str, int]] = [{} for _ in range(2 * len(levels))]
    for place, level in enumerate(levels):
        buckets[crc32(level.encode()) % len(buckets)][level] = place
    maps = F.from_json(F.lit(json.dumps(buckets)), "array<map<string,int>>")
    bucket = F.crc32(token.cast("binary")) % len(buckets)
    return F.try_element_at(F.get(maps, bucket.cast("int")), token)


def _decide(number: int, column: Column, spec: Spec) -> tuple[Expression, Expression]:
    """The code of used column `number`, null for a missing answer; and its state, null if right."""
    token = F.col(f"t{number}")
    value = _value(token, column)
    low, high = _limits(column)
    code = value
    if column.outside == "clip":
        code = F.when(value < low, low).when(value > high, high).otherwise(value)
    if column.name == spec.label and spec.classes:
        of = {place: [c for c in codes] for place, codes in enumerate(spec.classes)}
        code = reduce(
            lambda done, one: done.when(code.isin(one[1]), one[0]),
            list(of.items())[1:],
            F.when(code.isin(of[0]), 0),
        )
    no_value = F.when(_is_missing(token, spec), None).otherwise(ODD)
    state = F.when(value.isNull(), no_value if column.impute is not None else ODD)
    if column.outside != "clip":
        outside = (value < low) | (value > high)
        state = state.when(outside, number if column.outside == "skip" else ODD)
    if column.name == spec.label and spec.classes:
        state = state.when(code.isNull(), number)
    return code, state


def _limits(column: Column) -> tuple[Expression, Expression]:
    kind = float if column.decimal else int
    return F.lit(kind(column.low)), F.lit(kind(column.high))


def _is_missing(token: Expression, spec: Spec) -> Expression:
    lower = F.translate(token, ascii_uppercase, ascii_lowercase)
    return lower.isin(_missing_tokens(spec))


def _missing_tokens(spec: Spec) -> list[str]:
    """Compared in the lower case of ASCII letters only, about which all languages agree."""
    return sorted(one for one in spec.missing_tokens if one == one.lower())


def _places(layout: Layout, split: Split) -> dict[str, Expression]:
    """The first words of digests, big-endian."""

    def digest(text: Expression, first: int, words: int) -> Expression:
        hexadecimal = F.sha2(F.concat(F.lit(split.key), text.cast("binary")), 256)
        return F.unhex(F.substring(hexadecimal, 16 * first + 1, 16 * words))

    line = F.col("line")
    if layout.unit is None:
        return {"place": digest(line, 0, 3)}
    return {"place": digest(F.col("unit"), 0, 3), "order": digest(line, 2, 1)}
