"""From a raw census file to a sharded data set that ranks can read in part.

    spec          the public schema: columns, domains, imputation constants, encoding
    records       the meaning of ONE record, in plain Python: the oracle of every engine
    header        which field of a line is which column
    split         train or test, and which shard: a keyed hash of the line
    engines/      who does the work: sequential, polars; one table, one contract test
    writer        writes a data set, all of it or nothing
    shards        the format on disk, and how to read rows of it back
    errors, cli   what can go wrong, and how a command says so in one line
    synthetic     python -m preprocess.synthetic: records that resemble a census file
    __main__      python -m preprocess

Nothing here is fitted to the data: a mean, a maximum or a vocabulary would be a release.
"""

__version__ = "0.1.0"
