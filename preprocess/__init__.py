"""From a raw census file to a sharded data set that ranks can read in part.

    spec          the public schema: columns, domains, imputation constants, encoding
    schema        the same as JSON, and back
    records       the meaning of ONE record, in plain Python: the oracle of every engine
    header        which field of a line is which column
    split         train or test, and which shard: a keyed hash of the line
    engines/      who does the work: sequential, polars; one table, one contract test
    writer        writes a data set, all of it or nothing
    shards        the format on disk, and how to read rows of it back
    output        progress, reports, files that are complete or not there
    errors, cli   what can go wrong, and how a command says so in one line
    summary       what a user is told about a cleaned file
    synthetic     python -m preprocess.synthetic: records that resemble a census file
    defects       damage them on purpose, and count what a cleaner must find
    __main__      python -m preprocess

Nothing here is fitted to the data: a mean, a maximum or a vocabulary would be a release.
"""

from launch.python import require_python

require_python()

__version__ = "0.1.0"
