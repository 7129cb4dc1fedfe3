"""The second file of a spec with a join, as a table of Spark: one row for each key.

    key      token
    matches  how many lines have it; one is right, several are ambiguous
    t<i>     fields of used column i of the spec, of one of those lines

The meaning is that of `preprocess.join`. Lines that are not plain are cut by its function `cut`, in
Python on the executors. The table is written to disk: it is read by plain lines and by odd ones,
and Spark sees by its size whether to send it to every executor.
"""

from __future__ import annotations

from functools import partial

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from preprocess.engines.base import Job
from preprocess.header import joined_columns, read_first_line
from preprocess.join import cut, join_places
from preprocess.sources import as_plain_file, open_source
from preprocess.spark.columns import is_blank, stripped, tokens_of
from preprocess.spark.files import read_table, read_text, with_ids, write_table
from preprocess.spark.oracle import cut_second


def read_second(spark: SparkSession, job: Job) -> DataFrame | None:
    """The table, if the spec has a join."""
    if job.joined is None:
        return None
    spec = job.spec
    source = as_plain_file(job.joined, job.scratch())
    with open_source(source) as file:
        header, _ = read_first_line(file)
        places = join_places(header, spec)
    names = [column.name for column in spec.columns]
    columns = ["key", *(f"t{names.index(name)}" for name in joined_columns(spec))]
    tokens = tokens_of(spec)
    is_plain = F.col("is_clear") & (F.size(tokens) == places[0])
    lines = stripped(with_ids(read_text(spark, job, {"second": source.path})), spec).select(
        "line",
        is_plain.alias("is_plain"),
        is_blank().alias("is_blank"),
        *[F.get(tokens, F.lit(at)).alias(n) for n, at in zip(columns, places[1:], strict=True)],
    )
    is_header = F.col("line").cast("binary") == F.lit(header)
    is_odd = ~F.col("is_plain") & ~F.col("is_blank")
    counts = lines.agg(F.count_if(is_header), F.count_if(is_odd & ~is_header)).first()
    assert counts is not None
    pairs = lines.where(F.col("is_plain") & ~is_header).select(columns)
    schema = StructType([StructField(name, StringType()) for name in columns])
    if counts[0] > 1:  # the first is the header, the others are records
        key, fields = cut(header, places, spec) or ("", ())
        again = spark.createDataFrame([(key, *fields)] * (counts[0] - 1), schema)
        pairs = pairs.union(again)
    if counts[1]:
        odd = lines.where(is_odd & ~is_header).select(F.col("line").cast("binary"))
        found = odd.rdd.mapPartitions(partial(cut_second, places=places, spec=spec))
        pairs = pairs.union(spark.createDataFrame(found, schema, verifySchema=False))
    firsts = [F.first(name).alias(name) for name in columns[1:]]
    folder = job.scratch() / "second"
    write_table(pairs.groupBy("key").agg(F.count("*").alias("matches"), *firsts), folder)
    return read_table(spark, folder)
