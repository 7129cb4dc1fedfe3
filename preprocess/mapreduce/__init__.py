"""Cleaning as one MapReduce: a mapper and a reducer that only know standard input and output.

    python -m preprocess.mapreduce map JOB.json       lines of a raw file -> key TAB value
    python -m preprocess.mapreduce reduce JOB.json    the same lines sorted by key -> key TAB value
    python -m preprocess.mapreduce plan ...           JOB.json, the code as a zip, a command line
    python -m preprocess.mapreduce collect ...        what the reducers wrote -> a data set

Hadoop Streaming runs the pair as it is, and so does a shell:

    cat raw.csv | map JOB.json | LC_ALL=C sort | reduce JOB.json

Hadoop tells a mapper which split it has in mapreduce_map_input_file, _start and _length. Elsewhere
it is a whole file, and preprocess_input its number where there are several: 0, 1, ..., the second
file of a join last.

    line                        key                           value
    kept record                 digest of its unit            its packed row in hex
    refused record              ~source-start-index           [column, value, rule] in JSON
    all of a split              ~source-start                 {"lines": ..., "records": ...} in JSON
    what a reducer counted      ~                             the same
    where two files are joined, between mapper and reducer:
    line of the second file     digest of its join key        0 and [key, fields...] in JSON
    line of the first file      the same                      1, source-start-index, the line in hex

`start` is the first byte of the split, `index` the number of the line in it: a mapper knows no
more. Every mapper says how many lines its split has, so a sum over the splits in front gives the
number of a line in its file, as the other engines tell it. Counts travel with the records, so the
output of a task that ran twice counts once; the counters on stderr are for people.

A join needs no table of the second file in any process. Equal keys meet at a reducer, which holds
back the lines of one key, and reads each of them with what the second file has of that key.

    job              JOB.json: what a task must know
    mapper, reducer  the pair
    reader           what a line means, for both
    tasks            the pair on a part of a file or of the keys, on this machine
    parts            what reducers wrote, as batches
    cluster          plan and collect

The pair and `tasks` need nothing but the standard library.
"""

CONTROL = b"~"
"""How the keys begin that are no digests; it comes after all of them."""

COUNTERS = "reporter:counter:preprocess"

INPUT = "preprocess_input"
PROG = "preprocess.mapreduce"
EXIT_USAGE, EXIT_DATA, EXIT_DISK = 2, 5, 74
