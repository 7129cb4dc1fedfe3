"""python -m preprocess --input RAW.csv --output DATASET, or --dry-run

Reads raw census files, keeps the records that mean something, and writes them as a sharded data
set. A dry run checks and counts the same, and writes nothing. A data set that was made of the same
files by the same spec and split is left as it is. Exit codes: 0 done, 2 usage, 5 data.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preprocess import cli, engines, specs, summary
from preprocess.errors import DataError, UsageError
from preprocess.fitted import fitted_columns, without_fitted
from preprocess.ledger import beside
from preprocess.output import check_json, progress, say, write_json
from preprocess.report import DEFAULT_MAX_BAD_FRACTION, check_found, tell
from preprocess.shards import MANIFEST, QUARANTINE, read_manifest
from preprocess.sources import Source, find_sources
from preprocess.spec import Spec
from preprocess.split import DEFAULT_SALT, DEFAULT_SHARDS, DEFAULT_TEST_FRACTION, Split
from preprocess.writer import check_target, is_made_from, origin

PROG = "preprocess"


def main(arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    return cli.run(PROG, _command, arguments)


def _parser(*, is_dry: bool = False) -> cli.Parser:
    parser = cli.Parser(PROG, "Clean raw census files and write them as a sharded data set.")
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="RAW",
        help="text with separators, gzip, zip or Parquet; several files, or globs in quotes",
    )
    add("--join", metavar="RAW", help="the second file, for a spec that joins two")
    add("--output", type=Path, required=not is_dry, metavar="DATASET", help="folder to write")
    add(
        "--spec",
        default=specs.DEFAULT,
        metavar="SPEC",
        help=f"what the files mean: {', '.join(specs.NAMES)}, or a TOML file of yours; default "
        f"{specs.DEFAULT}",
    )
    add(
        "--dry-run",
        action="store_true",
        help="say what would be kept, refused and why, imputed, and write no data set; --output is "
        "checked if it is given",
    )
    add("--engine", choices=engines.CHOICES, default="auto", help="who does the work")
    add(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="for mapreduce and a local Spark; default: one for each core",
    )
    add(
        "--master",
        metavar="URL",
        help="for spark: its master; default: that of spark-submit, else this machine",
    )
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
        "--shards",
        type=int,
        default=DEFAULT_SHARDS,
        metavar="N",
        help=f"files of each side; default {DEFAULT_SHARDS}",
    )
    add(
        "--max-bad-fraction",
        type=float,
        default=DEFAULT_MAX_BAD_FRACTION,
        metavar="F",
        help="write no data set if more of the records than this are refused, in [0, 1]; default "
        f"{DEFAULT_MAX_BAD_FRACTION}",
    )
    add(
        "--ledger",
        type=Path,
        default=os.environ.get("DPSGD_LEDGER") or None,
        metavar="FILE",
        help="privacy ledger, for a spec with private statistics; default: beside the data set",
    )
    add("--force", action="store_true", help="make a data set that is there and up to date again")
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
    split = Split(
        salt=options.split_salt, test_fraction=options.test_fraction, shards=options.shards
    )
    engine = engines.resolve(options.engine)
    _check_numbers(options)
    document = specs.read_document(options.spec)
    columns = fitted_columns(document)
    spec = specs.as_spec(options.spec, without_fitted(document) if columns else document)
    _check_join(options, spec)
    if columns and options.dry_run:
        raise UsageError("--dry-run must not be given for a spec with fitted numbers: they cost")
    sources = find_sources(options.input)
    joined = find_sources([options.join]) if options.join else []
    if len(joined) > 1:
        raise UsageError(f"--join must be one file, got {options.join}: it holds {len(joined)}")
    _check_paths(options, [*sources, *joined])
    made_from = origin([*sources, *joined], document, split)
    if not options.dry_run and not options.force and is_made_from(options.output, made_from):
        _tell_up_to_date(options)
        return
    clean = engines.load(engine)  # what is missing for it is said before anything is charged
    more: dict[str, Any] = {}
    if columns:
        from preprocess.fitting import fit_spec

        ledger = options.ledger or beside(options.output)
        spec, more["private_statistics"] = fit_spec(
            options.spec, document, sources, joined, options.output, ledger
        )
    from preprocess.making import make_dataset

    names = ", ".join(options.input)
    started = time.monotonic()
    replaced = options.output is not None and (options.output / MANIFEST).is_file()
    total = sum(source.num_bytes for source in sources)
    is_known = all(source.packing != "gzip" for source in sources)
    found = make_dataset(
        spec,
        sources,
        None if options.dry_run else options.output,
        joined=joined[0] if joined else None,
        split=split,
        engine=engine,
        clean=clean,
        processes=options.processes,
        master=options.master,
        progress=progress(PROG, total if is_known else 0),
        check=lambda found: check_found(names, found, options.max_bad_fraction),
        made_from=made_from,
        more=more,
    )
    seconds = time.monotonic() - started
    target = None if options.dry_run else options.output
    facts = {"engine": engine, "split": made_from["split"], "replaced": replaced,
             "seconds": seconds}  # fmt: skip
    tell(PROG, found, spec, target, options.json, facts)
    check_found(names, found, options.max_bad_fraction)  # a dry run first says why


def _check_numbers(options: argparse.Namespace) -> None:
    if not 0 <= options.max_bad_fraction <= 1:
        raise UsageError(f"--max-bad-fraction must be in [0, 1], got {options.max_bad_fraction}")
    if not 1 <= options.processes <= 1024:
        raise UsageError(f"--processes must be in 1..1024, got {options.processes}")


def _check_join(options: argparse.Namespace, spec: Spec) -> None:
    if spec.join is not None and options.join is None:
        raise UsageError(f"--join must be given: {spec.name} joins a second file, {spec.join.name}")
    if spec.join is None and options.join is not None:
        raise UsageError(f"--join must not be given: {spec.name} has one file only")


def _check_paths(options: argparse.Namespace, sources: list[Source]) -> None:
    """What would otherwise fail after the work is done."""
    inputs = [source.path for source in sources]
    if Path(options.spec).is_file():
        inputs.append(Path(options.spec))
    if options.ledger is not None:
        real = Path(os.path.realpath(options.ledger))
        taken = [*inputs, *([options.output] if options.output else [])]
        if any(real.is_relative_to(os.path.realpath(path)) for path in taken):
            raise UsageError(f"--ledger must be a file of its own, got {options.ledger}")
    if options.output is not None:
        target = Path(os.path.realpath(options.output))
        for path in inputs:
            source = Path(os.path.realpath(path))
            if target == source or target in source.parents:
                raise UsageError(f"output must not contain the input, got {options.output}")
        if options.dry_run:
            check_target(target)
            if not cli.can_be_made(target):
                raise UsageError(f"output must be writable, got {target}: it cannot be made there")
    ledgers = [options.ledger, beside(options.output) if options.output else None]
    check_json(options.json, *inputs, options.output, *ledgers)


def _tell_up_to_date(options: argparse.Namespace) -> None:
    manifest = read_manifest(options.output)
    counts = manifest["counts"]
    bad, of = counts["refused"], counts["refused"] + counts["kept"]
    if bad / of > options.max_bad_fraction:
        raise DataError(
            f"refused records must be at most {options.max_bad_fraction:.3g}, {options.output} "
            f"was made with {bad:,} of {of:,}; see its {QUARANTINE}"
        )
    report = {"dry_run": False, "up_to_date": True, "dataset": str(options.output)}
    report |= {key: manifest[key] for key in ("spec", "unit", "engine", "split", "counts")}
    if options.json is not None:
        write_json(options.json, report)
    say(
        f"{options.output} was made of the same files by the same spec and split: nothing to do "
        f"(--force makes it again)\n{summary.next_step(options.output)}",
        sys.stderr if options.json == "-" else sys.stdout,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
