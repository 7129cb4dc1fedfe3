"""What a command says when a data set is made: a summary, a report as JSON, or an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess import summary
from preprocess.errors import DataError
from preprocess.output import say, write_json
from preprocess.shards import QUARANTINE
from preprocess.spec import Spec
from preprocess.writer import COUNTS_NOTE

if TYPE_CHECKING:
    from preprocess.gather import Found

DEFAULT_MAX_BAD_FRACTION = 0.5


def check_found(names: str, found: Found, max_bad_fraction: float) -> None:
    """Raise DataError where nothing is kept, or too much refused, of the files with these names."""
    if not found.kept:
        raise DataError(summary.no_valid_record(names, found))
    bad = found.refused.total()
    if bad / (found.kept + bad) > max_bad_fraction:
        raise DataError(summary.too_many_refused(names, found, max_bad_fraction))


def tell(
    prog: str,
    found: Found,
    spec: Spec,
    output: Path | None,
    json_target: str | None,
    facts: dict[str, Any],
) -> None:
    """The summary, a warning, and the report, each where it belongs; without output, of a dry run.

    `facts` are engine, split, seconds and whether a data set was replaced.
    """
    report = {
        "dry_run": output is None,
        "up_to_date": False,
        "dataset": None if output is None else str(output),
        "replaced": facts["replaced"],
        "seconds": round(facts["seconds"], 3),
        "quarantine": None if output is None else str(output / QUARANTINE),
        "spec": spec.name,
        "unit": spec.unit.kind,
        "engine": facts["engine"],
        "split": facts["split"],
        "counts": found.as_json(),
        "counts_note": COUNTS_NOTE,
        "refusals": {"rows": summary.refusals(found)},
    }
    if json_target not in (None, "-"):
        write_json(json_target, report)  # before anything that nobody may be there to read
    say(summary.in_words(report), sys.stderr if json_target == "-" else sys.stdout)
    if warning := summary.only_one_label(found, spec):
        say(f"{prog}: warning: {warning}", sys.stderr)
    if json_target == "-":
        write_json(json_target, report)
