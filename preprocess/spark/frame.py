"""A DataFrame as the lines of text that it stands for, so that it is read as a file would be.

As with a Parquet file (see `preprocess.parquet`): null is an empty field, true and false are 1 and
0, a float that is a whole number is written as one, text is quoted where it must be, and a line end
inside it is a blank. Names of columns are compared as those of a header.
"""

from __future__ import annotations

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DataType, DoubleType, FloatType

from preprocess.header import check_names, layout_of
from preprocess.records import BLANKS, Layout
from preprocess.spec import Spec

MAX_WHOLE = 2.0**53


def layout_of_frame(frame: DataFrame, spec: Spec) -> Layout:
    """Where the used columns are. Raises DataError for names that are not those of the spec."""
    names = [name.strip(BLANKS).lower() for name in frame.columns]
    check_names(names, spec.header, spec.other_columns, f"of {spec.name}", b"", spec.separator)
    return layout_of(names, spec)


def as_lines(frame: DataFrame, spec: Spec) -> DataFrame:
    """Its rows as `id`, which is 0, and `line`."""
    kinds = [field.dataType for field in frame.schema.fields]
    frame = frame.toDF(*map(str, range(len(kinds))))
    fields = [
        _quoted(_as_text(F.col(str(place)), kind), spec, is_alone=len(kinds) == 1)
        for place, kind in enumerate(kinds)
    ]
    return frame.select(
        F.lit(0).cast("long").alias("id"), F.concat_ws(spec.separator, *fields).alias("line")
    )


def _as_text(column: Expression, kind: DataType) -> Expression:
    text = column.cast("string")
    if isinstance(kind, BooleanType):
        text = column.cast("int").cast("string")
    elif isinstance(kind, FloatType | DoubleType):
        is_whole = (column == F.floor(column)) & (F.abs(column) <= MAX_WHOLE)
        text = F.when(is_whole, column.try_cast("long").cast("string")).otherwise(text)
    return F.coalesce(text, F.lit(""))


def _quoted(text: Expression, spec: Spec, *, is_alone: bool) -> Expression:
    """Text as a field. One that is alone has quotes: without, an empty one were no record."""
    text = F.regexp_replace(text, r"[\r\n]+", " ")
    quoted = F.concat(F.lit('"'), F.replace(text, F.lit('"'), F.lit('""')), F.lit('"'))
    if is_alone:
        return quoted
    is_special = F.contains(text, F.lit('"')) | F.contains(text, F.lit(spec.separator))
    return F.when(is_special, quoted).otherwise(text)
