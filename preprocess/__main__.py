"""python -m preprocess --input RAW.csv --output DATASET

Reads a raw census file, keeps the records that mean something, and writes them as a sharded data
set. Exit codes: 0 done, 2 usage, 5 data.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from preprocess import cli, engines
from preprocess.errors import DataError, UsageError
from preprocess.shards import QUARANTINE
from preprocess.spec import CENSUS_2000
from preprocess.split import DEFAULT_SALT, DEFAULT_TEST_FRACTION, Split
from preprocess.writer import new_dataset, write_dataset

PROG = "preprocess"
SECONDS_BETWEEN_REPORTS = 2.0


def main(arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    return cli.run(PROG, _command, arguments)


def _parser() -> cli.Parser:
    parser = cli.Parser(PROG, "Clean a raw census file and write it as a sharded data set.")
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="RAW.csv", help="file with 18 columns")
    add("--output", type=Path, required=True, metavar="DATASET", help="folder to write")
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
    options = _parser().parse(arguments)
    split = Split(salt=options.split_salt, test_fraction=options.test_fraction)
    engine = engines.resolve(options.engine)
    _check_paths(options)
    started = time.monotonic()
    with new_dataset(options.output) as folder:
        clean = engines.load(engine)
        cleaned = clean(options.input, CENSUS_2000, split, _progress(options.input))
        if not len(cleaned.codes):
            raise DataError(_no_valid_record(options.input, cleaned.refused))
        manifest = write_dataset(folder, cleaned, CENSUS_2000, split, engine)
    seconds = time.monotonic() - started
    _print_summary(manifest, options, seconds, sys.stderr if options.json == "-" else sys.stdout)
    if options.json is not None:
        _write_report(options, manifest, seconds)


def _check_paths(options: argparse.Namespace) -> None:
    """What would otherwise fail after the work is done."""
    source, target = options.input.resolve(), options.output.resolve()
    if target == source or target in source.parents:
        raise UsageError(f"output must not contain the input, got {options.output}")
    if options.json not in (None, "-"):
        file = Path(options.json)
        if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
            raise UsageError(f"--json must be a writable file, got {file}")


def _no_valid_record(path: Path, refused: list[Any]) -> str:
    if not refused:
        return f"{path} must have a valid record, got only a header"
    rules = [entry.refusal.rule for entry in refused]
    rule = max(sorted(set(rules)), key=rules.count)
    first = next(entry for entry in refused if entry.refusal.rule == rule)
    where = f"line {first.line}" + (
        f", column {first.refusal.column}" if first.refusal.column else ""
    )
    return (
        f"{path} must have a valid record, got {len(rules):,} refused ones, most of them by the "
        f"rule {rule} ({rules.count(rule):,}; first: {where})"
    )


def _progress(path: Path) -> Callable[[int, int], None]:
    """Prints how far we are, at most every two seconds; short files print nothing."""
    total = path.stat().st_size if path.is_file() else 0
    started = last = time.monotonic()

    def report(num_records: int, num_bytes: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_REPORTS:
            return
        last = now
        part = f", {min(num_bytes / total, 1):.0%} of the file" if total else ""
        rate = num_records / (now - started)
        print(f"{PROG}: {num_records:,} records{part}, {rate:,.0f} records/s", file=sys.stderr)

    return report


def _print_summary(
    manifest: dict[str, Any], options: argparse.Namespace, seconds: float, file: TextIO
) -> None:
    counts = manifest["counts"]
    print(
        f"{counts['records']:,} records read in {seconds:.1f} s ({manifest['engine']})", file=file
    )
    print(f"  kept     {counts['kept']:>10,}", file=file)
    print(f"    train  {counts['train']:>10,}", file=file)
    print(f"    test   {counts['test']:>10,}", file=file)
    print(f"  refused  {counts['refused']:>10,}", file=file)
    for rule, number in counts["refused_by_rule"].items():
        print(f"    {rule:<16}{number:>10,}", file=file)
    if imputed := counts["imputed_by_column"]:
        print("  missing values replaced by public constants", file=file)
        for column, number in imputed.items():
            print(f"    {column:<16}{number:>10,}", file=file)
    if counts["refused"]:
        where = options.output / QUARANTINE
        print(f"Refused records, with line numbers and reasons: {where}", file=file)
    print(
        "The number of training records will be part of every privacy statement. The other counts "
        "are exact and not covered by any epsilon: keep them inside.",
        file=file,
    )
    dataset = shlex.quote(str(options.output))
    print(f"Next: mpirun -np 4 python -m dpsgd.run --data {dataset}", file=file)


def _write_report(options: argparse.Namespace, manifest: dict[str, Any], seconds: float) -> None:
    report = {
        "dataset": str(options.output),
        "seconds": round(seconds, 3),
        "quarantine": str(options.output / QUARANTINE),
        **{key: manifest[key] for key in ("spec", "unit", "engine", "split", "counts")},
        "counts_note": manifest["counts_note"],
    }
    text = json.dumps(report, indent=2)
    if options.json == "-":
        print(text)
        return
    try:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json must be writable, got {options.json}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
