"""Files of Spark: lines of text with their numbers, and tables on disk.

Spark reads a file in blocks, which several executors do at the same time, so none of them knows
the number of a line in its file. A line gets an `id`: the number of its partition and its place in
it, which cost nothing. Which ids a block has, and how many lines, is counted when it must be known,
that is, when a record is refused:

    block   first id   lines        the line with id i in this block has the number
    0       0          4            1 + i
    1       4          3            1 + 4 + (i - 4)
    2       2**33      5            1 + 4 + 3 + (i - 2**33)

Names of files mean something to Spark: it unpacks `.gz`, passes over `_x`, and searches `x*`. So it
is given links with plain names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from preprocess.engines.base import Job

AS_IT_IS = {"__globPaths__": "false"}  # a name with * or [ is a name
LINK = "lines-"


def file_uri(path: Path) -> str:
    """How Spark, which does not decode it, is told a local path."""
    return f"file://{path}"


def read_text(spark: SparkSession, job: Job, paths: Mapping[str, Path]) -> DataFrame:
    """Plain files, line by line, ended as Python's universal newlines are, without a BOM.

    `paths` go by the names that `Numbers` knows.
    """
    links = []
    for name, path in paths.items():
        link = job.scratch() / f"{LINK}{name}"
        link.symlink_to(os.path.realpath(path))
        links.append(file_uri(link))
    return spark.read.options(**AS_IT_IS).text(links)


def with_ids(text: DataFrame) -> DataFrame:
    """Its lines as `id` and `line`."""
    return text.select(F.monotonically_increasing_id().alias("id"), F.col("value").alias("line"))


class Numbers:
    """The name of the file and the number of the line of every id."""

    def __init__(self, text: DataFrame) -> None:
        blocks = (
            text.select(
                F.monotonically_increasing_id().alias("id"),
                F.col("_metadata.file_name").alias("name"),
                F.col("_metadata.file_block_start").alias("start"),
            )
            .groupBy("name", "start")
            .agg(F.min("id"), F.count("*"))
            .collect()
        )
        first_lines: dict[str, int] = {}
        by_id = []
        for name, _, first_id, num_lines in sorted(blocks):
            by_id.append((first_id, first_lines.setdefault(name, 1), name.removeprefix(LINK)))
            first_lines[name] += num_lines
        by_id.sort()
        self._first_ids = np.array([one[0] for one in by_id], np.int64)
        self._first_lines = np.array([one[1] for one in by_id], np.int64)
        self._names = [one[2] for one in by_id]

    def of(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """File and line; the first line of a file is 1."""
        blocks = np.searchsorted(self._first_ids, ids, side="right") - 1
        lines = self._first_lines[blocks] + np.asarray(ids, np.int64) - self._first_ids[blocks]
        return [
            (self._names[block], line)
            for block, line in zip(blocks.tolist(), lines.tolist(), strict=True)
        ]


def write_table(table: DataFrame, folder: Path) -> None:
    """Write a table in parts, as many as Spark has at hand."""
    table.write.option("compression", "snappy").parquet(file_uri(folder))


def read_table(spark: SparkSession, folder: Path) -> DataFrame:
    """The same table as Spark reads it."""
    return spark.read.options(**AS_IT_IS).parquet(file_uri(folder))


def parts_of(folder: Path) -> list[Path]:
    """The Parquet files of a table."""
    return sorted(folder.glob("part-*.parquet"))
