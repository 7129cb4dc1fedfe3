"""From raw census files to a sharded data set that ranks can read in part.

what a file means, public and never fitted to the data
spec, schema    columns, domains, constants, encoding, label, unit; the same as TOML and JSON
specs/          the built-in specs, a file each
records         the meaning of ONE record, in plain Python: the oracle of every engine
header, join    which field of a line is which column; the second file of a spec that joins two
split, rows     train or test, which shard, where in it: keyed hashes; a record as bytes

from files to a data set
sources, parquet    which files there are, and how their bytes are read
engines/        who does the work: sequential, polars, mapreduce, spark; one table, one contract
blocks          many lines at once       mapreduce/  the pair       spark/  DataFrames
gather, writer  rows by shard and counts; a data set, all of it or nothing
shards          the format on disk, and how to read rows of it back
making          all of that, whichever engine does the work

fitted, statistics, ledger    numbers that are fitted for a budget, and how they are charged

commands
__main__, summary, report     python -m preprocess
synthetic, defects, download, fetch, bench    python -m preprocess.synthetic, .download, .bench
cli, output, errors, jvm      what they share
"""

from launch.python import require_python

require_python()

__version__ = "0.1.0"
