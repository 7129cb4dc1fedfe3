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
from string import ascii_lowercase, ascii_uppercase
from zlib import crc32

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from preprocess.records import Layout
from preprocess.spec import Column, Spec
from preprocess.split import Split

ODD, HEADER, BLANK = -1, -2, -3
NUMBER = r"\A-?[0-9]{1,9}(?:\.[0-9]{1,9})?(?:[eE][+-]?[0-9]{1,2})?\z"


def outcomes(
    lines: DataFrame,
    layout: Layout,
    split: Split,
    header: bytes | None = None,
    second: DataFrame | None = None,
) -> DataFrame:
    """The table above, of `lines` with `id` and `line`, without blank lines.

    `second` is that of `spark_join.read_second`.
    """
    spec = layout.spec
    table = with_tokens(lines, spec, layout.num_fields).select("*", *_tokens(layout))
    if second is not None:
        table = table.drop("tokens").join(second, "key", "left")
    table = table.select(
        "*", *[_value(F.col(f"t{i}"), column).alias(f"v{i}") for i, (column, _) in _used(layout)]
    )
    decided = [_decide(i, column, spec) for i, (column, _) in _used(layout)]
    state = F.when(F.col("is_blank"), BLANK)
    if header is not None:
        state = state.when(F.col("line").cast("binary") == F.lit(header), HEADER)
    state = state.when(~F.col("is_plain"), ODD)
    if layout.unit is not None:
        state = state.when(F.col("unit") == "", ODD)
    if second is not None:
        state = state.when(_is_unmatched(layout), ODD)
    state = state.otherwise(F.coalesce(*[wrong for _, wrong in decided]))
    codes = [code.alias(f"c{i}") for i, (code, _) in enumerate(decided)]
    table = table.select("*", state.cast("short").alias("state"), *codes)
    table = table.where(F.col("state").isNull() | (F.col("state") != BLANK))
    is_kept, is_asked = F.col("state").isNull(), F.col("state") < 0
    return table.select(
        "state",
        F.when(is_asked, F.col("id")).alias("id"),
        F.when(F.col("state") == ODD, F.col("line").cast("binary")).alias("line"),
        *[F.when(is_kept, word).alias(name) for name, word in _places(layout, split).items()],
        *[F.when(is_kept, F.col(f"c{i}")).alias(f"c{i}") for i, _ in _used(layout)],
    )


def with_tokens(lines: DataFrame, spec: Spec, num_fields: int) -> DataFrame:
    """Adds `tokens`, `is_plain` and `is_blank`."""
    separator, blank = re.escape(spec.separator), "[ \t]" if spec.separator != "\t" else "[ ]"
    quoted = rf'(\A|{separator}){blank}*+"([^"{separator}]*+)"{blank}*+(?={separator}|\z)'
    blanks = rf"(?:\A|(?<={separator})){blank}++|(?<!{blank}){blank}++(?={separator}|\z)"
    line, bare = F.col("line"), F.col("bare")
    has_quote = F.contains(line, F.lit('"'))
    has_blank = reduce(Expression.__or__, [F.contains(bare, F.lit(one)) for one in blank[1:-1]])
    table = lines.select(
        "*", F.when(has_quote, F.regexp_replace(line, quoted, "$1$2")).otherwise(line).alias("bare")
    ).select(
        "*",
        F.when(has_blank, F.regexp_replace(bare, blanks, "")).otherwise(bare).alias("stripped"),
        (F.is_valid_utf8(line) & ~F.contains(bare, F.lit('"'))).alias("is_clear"),
    )
    tokens = F.split("stripped", separator, -1)
    return (
        table.select("*", F.when(F.col("is_clear"), tokens).alias("tokens"))
        .select(
            "*",
            (F.col("is_clear") & (F.size("tokens") == num_fields)).alias("is_plain"),
            ((F.col("stripped") == "") & ~has_quote).alias("is_blank"),
        )
        .drop("bare", "stripped", "is_clear")
    )


def token_at(place: int) -> Expression:
    """A token of a plain line; of other lines any, or null."""
    return F.get("tokens", F.lit(place))


def _used(layout: Layout) -> list[tuple[int, tuple[Column, int]]]:
    return list(enumerate(layout.used))


def _tokens(layout: Layout) -> list[Expression]:
    named = {f"t{i}": at for i, (_, at) in _used(layout) if at < layout.num_fields}
    named |= {"unit": layout.unit} if layout.unit is not None else {}
    tokens = [token_at(place).alias(name) for name, place in named.items()]
    if layout.join is not None:
        tokens.append(F.when(F.col("is_plain"), token_at(layout.join)).alias("key"))
    return tokens


def _is_unmatched(layout: Layout) -> Expression:
    if not any(place >= layout.num_fields for _, place in layout.used):
        return F.lit(True)  # nothing is read from the second file: the oracle finds no match
    return F.col("matches").isNull() | (F.col("matches") != 1)


def _value(token: Expression, column: Column) -> Expression:
    """As `records._value`: the number that a token is, or the place of the level; else null."""
    if column.levels:
        return _level(token, column.levels)
    if column.decimal:
        return F.when(token.rlike(NUMBER), token.try_cast("double"))
    sign = "" if column.low >= 0 else "-?"
    return F.when(token.rlike(rf"\A{sign}[0-9]{{1,9}}\z"), token.try_cast("int"))


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
    token, value = F.col(f"t{number}"), F.col(f"v{number}")
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
    """Lower case of ASCII letters only, which every language agrees about."""
    known = sorted(one for one in spec.missing_tokens if one == one.lower())
    return F.translate(token, ascii_uppercase, ascii_lowercase).isin(known)


def _places(layout: Layout, split: Split) -> dict[str, Expression]:
    """The first words of digests, big-endian."""

    def digest(text: Expression, first: int, words: int) -> Expression:
        hexadecimal = F.sha2(F.concat(F.lit(split.key), text.cast("binary")), 256)
        return F.unhex(F.substring(hexadecimal, 16 * first + 1, 16 * words))

    line = F.col("line")
    if layout.unit is None:
        return {"place": digest(line, 0, 3)}
    return {"place": digest(F.col("unit"), 0, 3), "order": digest(line, 2, 1)}
