"""python -m preprocess --input RAW.csv --output DATASET, or --dry-run

Reads a raw census file, keeps the records that mean something, and writes them as a sharded data
set. A dry run checks and counts the same, and writes nothing. Exit codes: 0 done, 2 usage, 5 data.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess import cli, engines, summary
from preprocess.errors import DataError, UsageError
from preprocess.output import check_json, progress, say, write_json
from preprocess.shards import MANIFEST, QUARANTINE
from preprocess.spec import CENSUS_2000
from preprocess.split import DEFAULT_SALT, DEFAULT_TEST_FRACTION, Split
from preprocess.writer import check_target, describe, new_dataset, write_dataset

if TYPE_CHECKING:
    from preprocess.engines.base import Cleaned

PROG = "preprocess"


def main(arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    return cli.run(PROG, _command, arguments)


def _parser(*, is_dry: bool = False) -> cli.Parser:
    parser = cli.Parser(PROG, "Clean a raw census file and write it as a sharded data set.")
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="RAW.csv", help="file with 18 columns")
    add("--output", type=Path, required=not is_dry, metavar="DATASET", help="folder to write")
    add(
        "--dry-run",
        action="store_true",
        help="say what would be kept, refused and why, imputed, and write no data set; --output is "
        "checked if it is given",
    )
    add("--engine", choices=engines.CHOICES, default="auto", help="who does the work")
    add(
        "--split-salt",
        default=DEFAULT_SALT,
        metavar="TEXT",
        help="public key of the train/test split and of the shards",
    )
    add(
        "--test-fraction",
        type=float,
        default=DEFAULT_TEST_FRACTION,
        metavar="F",
        help=f"expected part of test records, in (0, 1); default {DEFAULT_TEST_FRACTION}",
    )
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write a JSON report: to FILE, or alone on stdout",
    )
    return parser


def _command(arguments: Sequence[str]) -> None:
    options = _parser(is_dry="--dry-run" in arguments).parse(arguments)
    split = Split(salt=options.split_salt, test_fraction=options.test_fraction)
    engine = engines.resolve(options.engine)
    _check_paths(options)

    def clean() -> Cleaned:
        return engines.load(engine)(
            options.input, CENSUS_2000, split, progress(PROG, options.input)
        )

    started = time.monotonic()
    replaced = options.output is not None and (options.output / MANIFEST).is_file()
    if options.dry_run:
        cleaned = clean()
    else:
        with new_dataset(options.output) as folder:
            cleaned = clean()
            _check_kept(options.input, cleaned)
            write_dataset(folder, cleaned, CENSUS_2000, split, engine)
    seconds = time.monotonic() - started
    found = describe(cleaned, CENSUS_2000, split, engine) | {"replaced": replaced}
    _tell(options, cleaned, found, seconds)
    _check_kept(options.input, cleaned)  # a dry run first says why


def _check_paths(options: argparse.Namespace) -> None:
    """What would otherwise fail after the work is done."""
    source = Path(os.path.realpath(options.input))
    if options.output is not None:
        target = Path(os.path.realpath(options.output))
        if target == source or target in source.parents:
            raise UsageError(f"output must not contain the input, got {options.output}")
        if options.dry_run:
            check_target(target)
            if not cli.can_be_made(target):
                raise UsageError(f"output must be writable, got {target}: it cannot be made there")
    check_json(options.json, options.input, options.output)


def _check_kept(path: Path, cleaned: Cleaned) -> None:
    if not len(cleaned.codes):
        raise DataError(summary.no_valid_record(path, cleaned.refused))


def _tell(
    options: argparse.Namespace, cleaned: Cleaned, found: dict[str, Any], seconds: float
) -> None:
    """The summary, a warning, and the report, each where it belongs."""
    report = {
        "dry_run": options.dry_run,
        "dataset": None if options.dry_run else str(options.output),
        "replaced": found["replaced"],
        "seconds": round(seconds, 3),
        "quarantine": None if options.dry_run else str(options.output / QUARANTINE),
        **{key: found[key] for key in ("spec", "unit", "engine", "split", "counts", "counts_note")},
        "refusals": {"rows": summary.refusals(cleaned.refused)},
    }
    if options.json not in (None, "-"):
        write_json(options.json, report)  # before anything that nobody may be there to read
    say(summary.in_words(report), sys.stderr if options.json == "-" else sys.stdout)
    if warning := summary.only_one_label(cleaned, CENSUS_2000):
        say(f"{PROG}: warning: {warning}", sys.stderr)
    if options.json == "-":
        write_json(options.json, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
