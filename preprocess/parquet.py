"""A Parquet file as the text that it stands for, so that every engine reads it alike.

A row becomes a line: null is an empty field, true and false are 1 and 0, a float that is a whole
number is written as one (tables with gaps have their integers as floats), text is written as it is,
quoted where it must be, a line end inside it as a blank. The header is line 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess.errors import DataError
from preprocess.sources import Source, check_state
from preprocess.spec import Spec

if TYPE_CHECKING:
    import polars as pl


def as_text(source: Source, spec: Spec, folder: Path) -> Source:
    """The text of a Parquet file, written into `folder` for the eyes of its owner."""
    import polars as pl

    check_state(source)
    path = folder / f"text-{sum(1 for _ in folder.glob('text-*')):05d}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        table = pl.scan_parquet(source.path)
        columns = table.collect_schema().items()
        table.select(_as_field(name, kind) for name, kind in columns).sink_csv(
            path, include_header=spec.first_line_names, separator=spec.separator
        )
    except pl.exceptions.ComputeError:
        raise DataError(
            f"{source.name} must be Parquet of columns that can be written as text, and whole"
        ) from None
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{source.name} must be Parquet: {type(error).__name__}") from None
    check_state(source)
    status = path.stat()
    return replace(
        source,
        path=path,
        packing="none",
        num_bytes=status.st_size,
        state=(status.st_size, status.st_mtime_ns),
    )


def readable(source: Source, spec: Spec, scratch: Callable[[], Path]) -> Source:
    """The source, as text if it is a Parquet file; `scratch()` gives a folder for it."""
    return as_text(source, spec, scratch()) if source.packing == "parquet" else source


def _as_field(name: str, kind: object) -> pl.Expr:
    import polars as pl

    column = pl.col(name)
    if kind in (pl.Float32, pl.Float64):
        whole = column.cast(pl.Int64, strict=False)
        text = (
            pl.when(column == whole).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
        )
    elif kind == pl.Boolean:
        text = column.cast(pl.Int8).cast(pl.String)
    else:
        text = column.cast(pl.String).str.replace_all(r"[\r\n]+", " ")
    return text.alias(name)
