"""Use a trained model: python -m dpsgd.predict --run DIR --input RAW.csv --output PRED.csv

Reads a raw file as in training, with the schema that the model carries: the columns that features
are made of must be there, by name in any order; others, the label included, are ignored. Writes one
row for each record, in the order of the file (a blank line is no record):

    line     its number in the input; the first line of the file is 1
    score    probability of the positive class
    class    1 if that is over one half (the logit is positive), as in the metrics of training
    refused  empty, or `column: rule` (`rule` where the whole line is at fault) without a score

One block of lines is in memory at a time. Exit codes: 0 done, 2 usage, 5 data or model.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpsgd.errors import ConfigError, DatasetError, UserError
from preprocess import cli
from preprocess.errors import DataError, UsageError
from preprocess.output import OWNER_ONLY, check_json, new_file, progress, say, write_json
from preprocess.records import NOT_IN_UNIVERSE
from preprocess.sources import find_sources
from preprocess.writer import scratch_folder

if TYPE_CHECKING:
    from preprocess.blocks import Block
    from preprocess.records import Lookup
    from preprocess.sources import Source
    from preprocess.spec import Spec

PROG = "dpsgd.predict"


@dataclass(kw_only=True)
class Predicted:
    """What was read, in exact numbers: they are about the people in the input, like the scores."""

    privacy: dict[str, Any]  # of the model, as in its privacy.json
    scored: int = 0
    refused_by_rule: Counter[str] = field(default_factory=Counter)
    imputed_by_column: Counter[str] = field(default_factory=Counter)

    @property
    def records(self) -> int:
        """Lines of the input that are not blank."""
        return self.scored + self.refused_by_rule.total()

    def add(self, block: Block) -> None:
        """Count a block."""
        self.scored += len(block.kept)
        self.refused_by_rule.update(refusal.rule for _, refusal in block.refused)
        if skipped := sum(map(len, block.skipped.values())):
            self.refused_by_rule[NOT_IN_UNIVERSE] += skipped
        self.imputed_by_column += block.imputed

    def to_json(self) -> dict[str, Any]:
        """The counts, and the privacy of the model in short, as JSON types."""
        short = ("private", "epsilon", "delta", "unit")
        return {
            "counts": {
                "records": self.records,
                "scored": self.scored,
                "refused": self.refused_by_rule.total(),
                "refused_by_rule": dict(self.refused_by_rule.most_common()),
                "imputed_by_column": dict(sorted(self.imputed_by_column.items())),
            },
            "privacy": {name: self.privacy.get(name) for name in short},
        }


def predict_file(
    run: Path | str,
    input: Path | str,
    output: Path | str,
    progress: Callable[[int, int], None] | None = None,
    join: Path | str | None = None,
) -> Predicted:
    """Score a raw file with the model in the folder `run`; write `output`, all of it or nothing.

    `join` is the second file, for a model of records that are joined from two.
    `progress` is called now and then with the records and bytes done so far. Raises DatasetError if
    the model or the input cannot be used, or none of its records is valid, and ConfigError if the
    output cannot be written. What was at `output` is then as it was.
    """
    try:
        return _predict(Path(run), Path(input), Path(output), progress, join)
    except DataError as error:
        raise DatasetError(str(error)) from None
    except UsageError as error:
        raise ConfigError(str(error)) from None


def _predict(
    run: Path,
    raw: Path,
    output: Path,
    progress: Callable[[int, int], None] | None,
    join: Path | str | None,
) -> Predicted:
    read = [raw, *run.glob("*"), *([] if join is None else [join])]
    if os.path.realpath(output) in map(os.path.realpath, read):
        raise UsageError(f"--output must not replace what is read, got {output}")
    with new_file("--output", output, OWNER_ONLY) as file, ExitStack() as stack:
        from dpsgd import model_file, scoring  # usage is checked before numpy is loaded
        from preprocess import blocks
        from preprocess.parquet import readable

        trained = model_file.load_model(run)
        scratch = stack.enter_context(scratch_folder(None))
        lookup = _lookup(trained.spec, join, scratch)
        source = readable(_one(raw, "--input"), trained.spec, scratch)
        done, num_bytes, first = Predicted(privacy=trained.privacy), 0, ""
        file.write(scoring.HEADER.encode())
        for block in blocks.read(source, trained.spec, lookup, features_only=True):
            file.write(scoring.rows_of(block, trained).encode())
            done.add(block)
            num_bytes += block.num_bytes
            if block.refused and not first:
                first = f"line {block.refused[0].line}, {scoring.reason(block.refused[0])}"
            if progress is not None:
                progress(done.records, num_bytes)
        if not done.scored:
            refused = f"{done.records:,} refused ones, the first in {first}"
            found = refused if first else "only a header"
            raise DataError(f"{raw} must have a valid record, got {found}")
    return done


def _lookup(spec: Spec, join: Path | str | None, scratch: Callable[[], Path]) -> Lookup | None:
    """The second file of a spec that has one."""
    if (spec.join is None) != (join is None):
        needed = (
            f"be given: records are joined with {spec.join.name}" if spec.join else "not be given"
        )
        raise UsageError(f"--join must {needed}")
    if join is None:
        return None
    from preprocess.join import read_lookup
    from preprocess.parquet import readable

    return read_lookup(readable(_one(Path(join), "--join"), spec, scratch), spec)


def _one(path: Path, flag: str) -> Source:
    sources = find_sources([path])
    if len(sources) > 1:
        raise UsageError(f"{flag} must be one file, got {path}: it holds {len(sources)}")
    return sources[0]


def main(arguments: Sequence[str]) -> int:
    """The command; gives its exit code."""
    try:
        return cli.run(PROG, _command, arguments)
    except UserError as error:
        return cli.report(PROG, str(error), error.exit_code)


def _command(arguments: Sequence[str]) -> None:
    parser = cli.Parser(PROG, "Score the records of a raw file with a trained model.")
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="run folder; its model is enough")
    add("--input", type=Path, required=True, metavar="RAW.csv", help="raw file; no label is needed")
    add("--output", type=Path, required=True, metavar="PRED.csv", help="file to write")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write a JSON report: to FILE, or alone on stdout",
    )
    add("--join", type=Path, metavar="RAW.csv", help="second file, for a model of joined records")
    options = parser.parse(arguments)
    check_json(options.json, options.input, options.output, options.run, options.join)
    started = time.monotonic()
    size = options.input.stat().st_size if options.input.is_file() else 0
    done = predict_file(
        options.run, options.input, options.output, progress(PROG, size), options.join
    )
    seconds = round(time.monotonic() - started, 3)
    places = {name: str(getattr(options, name)) for name in ("run", "input", "output")}
    report = places | {"seconds": seconds} | done.to_json()
    if options.json not in (None, "-"):
        write_json(options.json, report)  # before anything that nobody may be there to read
    say(_in_words(report), sys.stderr if options.json == "-" else sys.stdout)
    if options.json == "-":
        write_json(options.json, report)


def _in_words(report: dict[str, Any]) -> str:
    counts = report["counts"]
    lines = [
        f"{counts['records']:,} records read in {report['seconds']:.1f} s",
        f"  scored   {counts['scored']:>10,}",
        f"  refused  {counts['refused']:>10,}",
        *(f"    {rule:<16}{number:>10,}" for rule, number in counts["refused_by_rule"].items()),
    ]
    if imputed := counts["imputed_by_column"]:
        lines.append("  missing values replaced by public constants")
        lines += [f"    {column:<16}{number:>10,}" for column, number in imputed.items()]
    lines += [f"Predictions and refusals, by line: {report['output']}", _note(report["privacy"])]
    return "\n".join(lines)


def _note(privacy: dict[str, Any]) -> str:
    from dpsgd.statement import NOT_PRIVATE, shown

    promise = (
        f"The model is ({shown(privacy['epsilon'])}, {privacy['delta']:g})-differentially private "
        f"for one training {privacy['unit']}"
        if privacy["private"]
        else f"{NOT_PRIVATE}: the model carries no privacy guarantee"
    )
    return f"{promise}. Predictions and counts are about the people in the input: not covered."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
