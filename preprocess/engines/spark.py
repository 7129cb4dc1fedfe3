"""Many machines, or all cores of this one, by Spark.

    raw files --read.text--> lines --spark.columns--> Parquet: kept | skipped | odd
                                                        |            |
                            batches <---- Polars -------+            | spark.oracle, in Python
                               ^-------- rows, refusals -------------+ on the executors

Lines that are plain and right stay in Spark's JVM (see `preprocess.spark.columns`); the others go
to the oracle. Where executors and the driver are several machines, the raw files and the scratch
folder, which is beside the output, must be there for all of them under the same path. The driver
holds one part of the table at a time, and all refusals, to give them in the order of the files.

A DataFrame is read as well; its rows have no numbers, so whatever is refused has line 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from preprocess.engines.base import Batch, Job, Refused, empty_rows
from preprocess.errors import DataError
from preprocess.gather import Found
from preprocess.header import parse_header, read_first_line, read_header
from preprocess.making import make_dataset
from preprocess.records import Layout, Refusal
from preprocess.rows import row_type
from preprocess.schema import as_schema
from preprocess.sources import Source, as_plain_file, check_state, open_source
from preprocess.spark.columns import HEADER, ODD, outcomes
from preprocess.spark.files import Numbers, parts_of, read_table, read_text, with_ids, write_table
from preprocess.spark.frame import as_lines, layout_of_frame
from preprocess.spark.join import read_second
from preprocess.spark.oracle import read_answers, with_keys, write_answers
from preprocess.spark.session import session, settings_in
from preprocess.spec import Spec
from preprocess.split import Split, places_of
from preprocess.summary import no_valid_record
from preprocess.writer import origin

REFUSED_IN_BATCH = 20_000
FRAME = Source(name="DataFrame", path=Path(), packing="none", num_bytes=0, state=(0, 0))


def clean(job: Job) -> Iterator[Batch]:
    """Read files as `engines.base` promises."""
    groups = _groups(job)
    spark = session(job)
    refused: list[Refused] = []
    num_records = num_bytes = 0
    with _unchanged(job):
        second = read_second(spark, job)
        for group in groups:
            text = read_text(spark, job, group.paths)
            table = _Table(job, spark, with_ids(text), group.layout, second, group.header)
            num_bytes += sum(job.sources[int(name)].num_bytes for name in group.paths)
            for batch in table.kept():
                yield batch
                num_records += batch.num_records
                job.progress(num_records, num_bytes)
            is_ours: list[int] = []
            if len(table.headers) > len(group.paths):  # records are equal to the header
                places = Numbers(text).of(table.headers)
                is_ours = [
                    number
                    for number, (name, line) in zip(table.headers, places, strict=True)
                    if line == group.header_lines[name]
                ]
            found = yield from table.odd(is_ours)
            if found:
                places = Numbers(text).of([number for number, _ in found])
                refused += [
                    Refused(int(name), line, refusal)
                    for (name, line), (_, refusal) in zip(places, found, strict=True)
                ]
            table.remove()
    refused.sort(key=lambda one: (one.source, one.line))
    yield from _refused_in_batches(refused, job)


def clean_frame(frame: DataFrame, job: Job) -> Iterator[Batch]:
    """Read the rows of a DataFrame in the same way, in place of `job.sources`.

    Refusals have line 0. The frame is computed once.
    """
    layout = layout_of_frame(frame, job.spec)
    spark = session(job)
    second = read_second(spark, job)
    with settings_in(frame.sparkSession):
        table = _Table(job, spark, as_lines(frame, job.spec), layout, second)
    yield from table.kept()
    found = yield from table.odd([])
    table.remove()
    yield from _refused_in_batches([Refused(0, 0, refusal) for _, refusal in found], job)


def dataset_from_frame(
    frame: DataFrame,
    output: Path,
    spec: Spec,
    *,
    joined: Source | None = None,
    split: Split | None = None,
) -> Found:
    """Write a DataFrame as a data set; gives the counts. `frame` has the columns of the spec."""
    split = split or Split()
    return make_dataset(
        spec,
        [FRAME],
        output,
        joined=joined,
        split=split,
        engine="spark",
        clean=partial(clean_frame, frame),
        check=_check_kept,
        made_from=origin([joined] if joined else [], as_schema(spec), split),
    )


def _check_kept(found: Found) -> None:
    if not found.kept:
        raise DataError(no_valid_record(FRAME.name, found))


@dataclass(frozen=True, slots=True)
class _Group:
    """Files with the same header, which are read together."""

    layout: Layout
    header: bytes | None
    paths: dict[str, Path] = field(default_factory=dict)  # by place in `Job.sources`
    header_lines: dict[str, int] = field(default_factory=dict)


def _groups(job: Job) -> list[_Group]:
    groups: dict[bytes | None, _Group] = {}
    for number, source in enumerate(job.sources):
        plain = as_plain_file(source, job.scratch())
        header, line = None, 0
        with open_source(plain) as file:
            if job.spec.first_line_names:
                header, line = read_first_line(file)
                layout = parse_header(header, job.spec)
            else:
                layout, _ = read_header(file, job.spec)
        group = groups.setdefault(header, _Group(layout, header))
        group.paths[str(number)] = plain.path
        group.header_lines[str(number)] = line
    return list(groups.values())


@contextmanager
def _unchanged(job: Job) -> Iterator[None]:
    """Raises DataError if a file has changed by the end of the block, whatever else went wrong."""
    try:
        yield
    finally:
        for source in [*job.sources, *([job.joined] if job.joined else [])]:
            check_state(source)


class _Table:
    """The table of `preprocess.spark.columns` on disk, and what is read from it."""

    def __init__(
        self,
        job: Job,
        spark: SparkSession,
        lines: DataFrame,
        layout: Layout,
        second: DataFrame | None,
        header: bytes | None = None,
    ) -> None:
        self._job, self._spark, self._layout = job, spark, layout
        self._second, self._header = second, header
        self._folder = job.scratch() / f"table-{sum(1 for _ in job.scratch().glob('table-*')):05d}"
        self._num_odd = 0
        self.headers: list[int] = []  # ids of lines that are equal to the header
        write_table(outcomes(lines, layout, job.split, header, second), self._folder)

    def kept(self) -> Iterator[Batch]:
        """What Spark has decided alone."""
        words = ["place", "order"] if self._job.spec.unit.key else ["place"]
        names = ["state", "id", *words, *(f"c{i}" for i in range(len(self._layout.used)))]
        for part in parts_of(self._folder):
            table = pl.read_parquet(part, columns=names)
            state = pl.col("state")
            self._num_odd += table.filter(state == ODD).height
            self.headers += table.filter(state == HEADER)["id"].to_list()
            skipped = Counter(table.filter(state >= 0)["state"].to_list())
            rows, imputed = self._rows(table.filter(state.is_null()))
            columns = self._job.spec.columns
            yield Batch(
                rows=rows,
                imputed=imputed,
                skipped=Counter({columns[i].name: number for i, number in skipped.items()}),
            )

    def _rows(self, kept: pl.DataFrame) -> tuple[NDArray[Any], Counter[str]]:
        rows = np.empty(kept.height, row_type(self._job.spec))
        imputed = Counter[str]()
        sides, shards, units = places_of(_words(kept["place"]).reshape(-1, 3), self._job.split)
        rows["_side"], rows["_shard"], rows["_unit"] = sides, shards, units
        if "order" in kept.columns:
            rows["_order"] = _words(kept["order"])
        for number, column in enumerate(self._job.spec.columns):
            codes = kept[f"c{number}"]
            if missing := codes.null_count():
                imputed[column.name] = missing
                codes = codes.fill_null(column.impute)
            rows[column.name] = codes.to_numpy()
        return rows, imputed

    def odd(self, headers: list[int]) -> Generator[Batch, None, list[tuple[int, Refusal]]]:
        """What the oracle says, but for lines that are headers; gives the refused lines by id.

        Without such lines, all that are equal to the header are one.
        """
        if not self._num_odd and not headers:
            return []
        table = read_table(self._spark, self._folder)
        asked = [ODD, HEADER] if headers else [ODD]
        table = table.where(F.col("state").isin(asked) & ~F.col("id").isin(headers))
        line = F.coalesce("line", F.lit(self._header)) if headers else F.col("line")
        lines = table.select("id", line.alias("line"))
        if self._second is not None:
            keyed = lines.rdd.mapPartitions(partial(with_keys, layout=self._layout))
            names = "id long, line binary, key string"
            lines = self._spark.createDataFrame(keyed, names, verifySchema=False)
            lines = lines.join(self._second, "key", "left").select(
                "id", "line", *self._second.columns
            )
        answers = partial(
            write_answers, layout=self._layout, split=self._job.split, folder=self._folder
        )
        refused = []
        for name in lines.rdd.mapPartitions(answers).collect():
            found = read_answers(self._folder / name)
            rows = np.frombuffer(bytes(found.rows), row_type(self._job.spec))
            yield Batch(rows=rows, imputed=found.imputed, skipped=found.skipped)
            refused += found.refused
        return refused

    def remove(self) -> None:
        """Free the disk."""
        rmtree(self._folder)


def _words(binary: pl.Series) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(binary.to_list()), ">u8").astype(np.uint64)


def _refused_in_batches(refused: list[Refused], job: Job) -> Iterator[Batch]:
    rows = empty_rows(row_type(job.spec))
    for start in range(0, len(refused), REFUSED_IN_BATCH):
        yield Batch(rows=rows, refused=refused[start : start + REFUSED_IN_BATCH])
