"""python -m preprocess.mapreduce map | reduce | plan | collect; see `preprocess.mapreduce`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from preprocess.errors import DataError, UsageError
from preprocess.mapreduce import EXIT_DATA, EXIT_DISK, EXIT_USAGE, PROG

ROLES = ("map", "reduce", "plan", "collect")


def main(arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    role = arguments[0] if arguments else ""
    if role in ("plan", "collect"):
        from preprocess.mapreduce import cluster

        return cluster.main(role, arguments[1:])
    try:
        _run(role, arguments[1:])
    except (DataError, UsageError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return EXIT_DATA if isinstance(error, DataError) else EXIT_USAGE
    except OSError as error:
        print(f"{PROG}: error: {error.strerror or error}", file=sys.stderr)
        return EXIT_DISK
    return 0


def _run(role: str, arguments: Sequence[str]) -> None:
    from preprocess.mapreduce import mapper, reducer
    from preprocess.mapreduce.job import read_job

    if role not in ROLES or len(arguments) != 1:
        raise UsageError(
            f"command must be map JOB.json, reduce JOB.json, plan or collect, got "
            f"{' '.join([role, *arguments]) or 'nothing'}"
        )
    description = read_job(arguments[0])
    if role == "map":
        mapper.run(description, os.environ, sys.stdin.buffer, sys.stdout.buffer, sys.stderr)
    else:
        reducer.run(description, sys.stdin.buffer, sys.stdout.buffer, sys.stderr)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
