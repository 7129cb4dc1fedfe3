"""What plain lines mean, by Spark's own expressions, which run in its JVM.

A line is *plain* if it is valid UTF-8, has exactly the right number of separators, and no quotes
but around whole fields that hold neither quotes nor separators (see `preprocess.blocks`). Its
tokens are what stands between the separators once those quotes are gone, without blanks around.

One ASCII pattern for the whole line tells whether every token that should be a number is one, or is
missing. Only then is anything cast, and whatever is not right goes to `records.read_record`. So
this table says all:

    state   null   kept
            i>=0   skipped: used column i is not in the universe, and those before it are right
            ODD    not plain, or against a rule: the oracle decides
            HEADER equal to the header of its file
            BLANK  no record
    id      of odd lines and headers: where they are
    line    of odd lines: their bytes
    place   of kept lines: the first 24 bytes of the digest of the line, or of its unit
    order   of kept lines of units: the third 8 bytes of the digest of the line
    c0...   the codes; null is a missing answer to be imputed
"""

from __future__ import annotations

import json
import re
from functools import reduce
from operator import and_, or_
from string import ascii_lowercase, ascii_uppercase
from zlib import crc32

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from preprocess.records import Layout
from preprocess.spec import Column, Spec
from preprocess.split import Split

ODD, HEADER, BLANK = -1, -2, -3
INTEGER, NUMBER = "[0-9]{1,9}", r"-?[0-9]{1,9}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?"
MISSING = -1  # in place of the number of a level
MAX_FIELDS_IN_PATTERN = 500  # Java's matcher needs some stack for each

SETTINGS = {
    "spark.sql.ansi.enabled": "false",  # a cast that fails gives null, not a costly exception
    "spark.sql.codegen.wholeStage": "false",  # Java does not compile a method that is so long
}
"""What a session must have while such a table is described and made."""


def outcomes(
    lines: DataFrame,
    layout: Layout,
    split: Split,
    header: bytes | None = None,
    second: DataFrame | None = None,
) -> DataFrame:
    """The table above, of `lines` with `id` and `line`.

    `second` is that of `spark.join.read_second`.
    """
    spec = layout.spec
    table = stripped(lines, spec).select(
        "id",
        "line",
        is_blank().alias("is_blank"),
        (F.col("is_clear") & _is_simple(layout)).alias("is_simple"),
        *_values_and_keys(layout),
    )
    state = F.when(F.col("is_blank"), BLANK)
    if header is not None:
        state = state.when(F.col("line").cast("binary") == F.lit(header), HEADER)
    state = state.when(~F.col("is_simple"), ODD)
    if layout.unit is not None:
        state = state.when(F.col("unit") == "", ODD)
    if second is not None:
        table = table.join(second, "key", "left").select("*", *_joined_values(layout))
        state = state.when(_is_unmatched(layout), ODD)
    decided = [_decide(i, column, spec) for i, (column, _) in enumerate(layout.used)]
    state = state.otherwise(F.coalesce(*[wrong for _, wrong in decided]))
    table = table.select(
        state.cast("short").alias("state"),
        "id",
        "line",
        *(["unit"] if layout.unit is not None else []),
        *[code.alias(f"c{i}") for i, (code, _) in enumerate(decided)],
    )
    is_kept = F.col("state").isNull()
    return table.select(
        "state",
        F.when(F.col("state").isin(ODD, HEADER), F.col("id")).alias("id"),
        F.when(F.col("state") == ODD, F.col("line").cast("binary")).alias("line"),
        *[F.when(is_kept, word).alias(name) for name, word in _places(layout, split).items()],
        *[f"c{i}" for i in range(len(decided))],
    )


def stripped(lines: DataFrame, spec: Spec) -> DataFrame:
    """Adds `stripped`, plain lines without quotes and blanks around fields; and `is_clear`: all but
    the number of fields is as it is in plain lines."""
    separator, blank = re.escape(spec.separator), "[ \t]" if spec.separator != "\t" else "[ ]"
    quoted = rf'(\A|{separator}){blank}*+"([^"{separator}]*+)"{blank}*+(?={separator}|\z)'
    blanks = rf"(?:\A|(?<={separator})){blank}++|(?<!{blank}){blank}++(?={separator}|\z)"
    line, bare = F.col("line"), F.col("bare")
    unquoted = F.regexp_replace(line, quoted, "$1$2")
    has_blank = reduce(or_, [F.contains(bare, F.lit(one)) for one in blank[1:-1]])
    return lines.select(
        "*", F.when(F.contains(line, F.lit('"')), unquoted).otherwise(line).alias("bare")
    ).select(
        *lines.columns,
        F.when(has_blank, F.regexp_replace(bare, blanks, "")).otherwise(bare).alias("stripped"),
        (F.is_valid_utf8(line) & ~F.contains(bare, F.lit('"'))).alias("is_clear"),
    )


def is_blank() -> Expression:
    """Whether a line that was stripped has nothing but blanks."""
    return (F.col("stripped") == "") & ~F.contains(F.col("line"), F.lit('"'))


def tokens_of(spec: Spec) -> Expression:
    """An array, of a line that was stripped."""
    return F.split("stripped", re.escape(spec.separator), -1)


def _is_simple(layout: Layout) -> Expression:
    """Whether the number of fields is right, and all that should be numbers are so, or missing.

    This is one search instead of many.
    """
    tokens, separator = tokens_of(layout.spec), re.escape(layout.spec.separator)
    patterns = {
        place: _number_or_missing(column, layout.spec)
        for column, place in layout.used
        if place < layout.num_fields and not column.levels
    }
    if layout.num_fields > MAX_FIELDS_IN_PATTERN:
        is_right = [
            F.get(tokens, F.lit(place)).rlike(rf"\A{pattern}\z")
            for place, pattern in patterns.items()
        ]
        return reduce(and_, is_right, F.size(tokens) == layout.num_fields)
    fields = [patterns.get(place, f"[^{separator}]*+") for place in range(layout.num_fields)]
    return F.col("stripped").rlike(rf"\A{separator.join(fields)}\z")


def _number_or_missing(column: Column, spec: Spec) -> str:
    missing = _missing_tokens(spec)
    if not missing:
        return _pattern(column)
    return f"(?:{_pattern(column)}|(?i:{'|'.join(map(re.escape, missing))}))"


def _values_and_keys(layout: Layout) -> list[Expression]:
    """Of the first file: v<i> of used columns, `unit` and `key`."""
    tokens = tokens_of(layout.spec)
    found = [
        _value(F.get(tokens, F.lit(place)), column, layout.spec).alias(f"v{i}")
        for i, (column, place) in enumerate(layout.used)
        if place < layout.num_fields
    ]
    keys = {"unit": layout.unit, "key": layout.join}
    return found + [
        F.get(tokens, F.lit(place)).alias(name) for name, place in keys.items() if place is not None
    ]


def _joined_values(layout: Layout) -> list[Expression]:
    """The same of the second file."""
    return [
        _value(F.col(f"t{i}"), column, layout.spec).alias(f"v{i}")
        for i, (column, _) in _joined(layout).items()
    ]


def _is_unmatched(layout: Layout) -> Expression:
    """Or has a field there that is not simple."""
    if not _joined(layout):
        return F.lit(True)  # the oracle finds no match where there is nothing to read
    is_right = [
        F.col(f"t{i}").rlike(rf"\A{_number_or_missing(column, layout.spec)}\z")
        for i, (column, _) in _joined(layout).items()
        if not column.levels
    ]
    return ~reduce(and_, is_right, F.col("matches").eqNullSafe(1))


def _joined(layout: Layout) -> dict[int, tuple[Column, int]]:
    return {i: used for i, used in enumerate(layout.used) if used[1] >= layout.num_fields}


def _value(token: Expression, column: Column, spec: Spec) -> Expression:
    """The number that a token of a simple line is, or null if it is missing; or `_level`."""
    if column.levels:
        return _level(token, column, spec)
    is_number = (token >= "0") & (token < ":")
    if column.decimal or column.low < 0:
        is_number |= token.startswith("-")
    alike = [one for one in _missing_tokens(spec) if re.match("-|[0-9]", one)]
    numbers = [one for one in alike if re.fullmatch(_pattern(column), one)]
    if numbers:
        is_number &= ~token.isin(numbers)
    if words := sorted(set(alike) - set(numbers)):
        is_number &= ~_lower(token).isin(words)
    return F.when(is_number, token.cast("double" if column.decimal else "int"))


def _pattern(column: Column) -> str:
    if column.decimal:
        return NUMBER
    return INTEGER if column.low >= 0 else f"-?{INTEGER}"


def _level(token: Expression, column: Column, spec: Spec) -> Expression:
    """The number of a level, or MISSING, or null.

    Spark searches a map from its beginning, so there are many, chosen by a checksum.
    """
    known = dict.fromkeys(_missing_tokens(spec), MISSING) if column.impute is not None else {}
    known |= {level: number for number, level in enumerate(column.levels)}
    buckets: list[dict[str, int]] = [{} for _ in range(2 * len(known))]
    for text, number in known.items():
        buckets[crc32(text.encode()) % len(buckets)][text] = number
    maps = F.from_json(F.lit(json.dumps(buckets)), "array<map<string,int>>")
    bucket = F.crc32(token.cast("binary")) % len(buckets)
    return F.try_element_at(F.get(maps, bucket.cast("int")), token)


def _decide(number: int, column: Column, spec: Spec) -> tuple[Expression, Expression]:
    """The code of used column `number`, null for a missing answer; and its state, null if right."""
    value = F.col(f"v{number}")
    if column.levels:
        code = F.when(value != MISSING, value)
        state = F.when(value.isNull(), ODD)
    else:
        low, high = _limits(column)
        is_low, is_high = value < low, value > high
        code, state = value, F.when(F.lit(False), ODD)
        if column.impute is None:
            state = state.when(value.isNull(), ODD)
        if column.outside == "clip":
            code = F.when(is_low, low).when(is_high, high).otherwise(value)
        else:
            state = state.when(is_low | is_high, number if column.outside == "skip" else ODD)
    if column.name == spec.label and spec.classes:
        classes = [list(codes) for codes in spec.classes]
        value, code = code, F.when(code.isin(classes[0]), 0)
        for place, codes in enumerate(classes[1:], start=1):
            code = code.when(value.isin(codes), place)
        state = state.when(code.isNull(), number)
    return code, state


def _limits(column: Column) -> tuple[Expression, Expression]:
    kind = float if column.decimal else int
    return F.lit(kind(column.low)), F.lit(kind(column.high))


def _missing_tokens(spec: Spec) -> list[str]:
    """Compared in the lower case of ASCII letters only, about which all languages agree."""
    return sorted(one for one in spec.missing_tokens if one == one.lower())


def _lower(token: Expression) -> Expression:
    return F.translate(token, ascii_uppercase, ascii_lowercase)


def _places(layout: Layout, split: Split) -> dict[str, Expression]:
    """The first words of digests, big-endian."""

    def digest(text: Expression, first: int, words: int) -> Expression:
        hexadecimal = F.sha2(F.concat(F.lit(split.key), text.cast("binary")), 256)
        return F.unhex(F.substring(hexadecimal, 16 * first + 1, 16 * words))

    line = F.col("line")
    if layout.unit is None:
        return {"place": digest(line, 0, 3)}
    return {"place": digest(F.col("unit"), 0, 3), "order": digest(line, 2, 1)}
