"""What a user is told about a cleaned file.

Refused values are raw data and terminals end up in logs: here are only rules, columns and numbers
of lines. The values are in the quarantine of the data set, which only the user can read.
"""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from preprocess.shards import QUARANTINE
from preprocess.spec import Spec

if TYPE_CHECKING:
    from preprocess.gather import Found

CURES = {"not-an-integer": "; numbers must be whole and without a point, 43 and not 43.0"}


def refusals(found: Found) -> list[dict[str, Any]]:
    """One row for each rule and column, the most frequent first.

    The column is empty where the whole line is at fault.
    """
    return [
        {"rule": rule, "column": column, "records": number,
         "first_lines": found.first_lines[rule, column]}
        for (rule, column), number in found.refused.most_common()
    ]  # fmt: skip


def no_valid_record(names: str, found: Found) -> str:
    """Why there is nothing to keep, in one line."""
    if found.skipped and not found.refused:
        return (
            f"{names} must have a valid record, got {found.skipped.total():,} that are not in the "
            f"universe of the spec"
        )
    if not found.refused:
        return f"{names} must have a valid record, got only a header"
    return f"{names} must have a valid record, got {_most_of_them(found)}"


def too_many_refused(names: str, found: Found, limit: float) -> str:
    """Why so many refusals are an error, in one line."""
    records = found.kept + found.refused.total()
    return (
        f"refused records must be at most {limit:.3g} of {names}, got {found.refused.total():,} of "
        f"{records:,}: {_most_of_them(found)}. If that is right, give --max-bad-fraction"
    )


def _most_of_them(found: Found) -> str:
    by_rule: Counter[str] = Counter()
    for (rule, _), number in found.refused.items():
        by_rule[rule] += number
    rule = max(sorted(by_rule), key=lambda rule: by_rule[rule])
    column = max(
        (kind for kind in found.refused if kind[0] == rule), key=lambda kind: found.refused[kind]
    )[1]
    first = found.first_lines[rule, column][0]
    where = f"line {first}" + (f", column {column}" if column else "")
    return (
        f"{by_rule.total():,} refused ones, most of them by the rule {rule} ({by_rule[rule]:,}; "
        f"first: {where})" + CURES.get(rule, "")
    )


def only_one_label(found: Found, spec: Spec) -> str | None:
    """The warning that all kept records have one label, if they have."""
    if len(found.labels) != 1:
        return None
    return (
        f"all kept records ({found.kept:,}) have the same {spec.label}: a model of them can only "
        f"learn that"
    )


def next_step(dataset: object) -> str:
    """What to do with a data set."""
    return f"Next: mpirun -np 4 python -m dpsgd.run --data {shlex.quote(str(dataset))}"


def in_words(report: dict[str, Any]) -> str:
    """The report of a run for people; see `python -m preprocess --json`."""
    counts = report["counts"]
    lines: list[str] = []
    say = lines.append
    dry = "; dry run, nothing is written" if report["dry_run"] else ""
    say(
        f"{counts['records']:,} records read in {report['seconds']:.1f} s ({report['engine']}){dry}"
    )
    say(f"  kept     {counts['kept']:>10,}")
    say(f"    train  {counts['train']:>10,}")
    say(f"    test   {counts['test']:>10,}")
    if skipped := counts.get("not_in_universe"):
        say(f"  not in the universe of the spec {skipped:>10,}")
    if dropped := counts.get("over_unit_limit"):
        say(f"  beyond the records that a unit may have {dropped:>10,}")
    say(f"  refused  {counts['refused']:>10,}")
    if rows := report["refusals"]["rows"]:
        say(f"    {'rule':<15} {'column':<15} {'records':>10}  first lines")
        for row in rows:
            first = ", ".join(row["first_lines"])
            more = ", ..." if row["records"] > len(row["first_lines"]) else ""
            column = row["column"] or "(whole line)"
            say(f"    {row['rule']:<15} {column:<15} {row['records']:>10,}  {first}{more}")
    if imputed := counts["imputed_by_column"]:
        say("  missing values replaced by public constants")
        for column, number in imputed.items():
            say(f"    {column:<16}{number:>10,}")
    if rows and report["dry_run"]:
        say(f"Refused values are private and not shown; a real run has them in {QUARANTINE}.")
    elif rows:
        say(f"Refused records, with line numbers, values and reasons: {report['quarantine']}")
    if not counts["kept"]:
        return "\n".join(lines)  # an error follows
    say(
        "The number of training records will be part of every privacy statement. The other counts "
        "are exact diagnostics, not covered by any epsilon: they must not be published."
    )
    if report["replaced"]:
        would = "would replace" if report["dry_run"] else "replaced"
        say(f"This {would} a data set; the privacy ledger beside it goes on counting for both.")
    if report["dry_run"]:
        say("Next: the same with --output DATASET and without --dry-run")
    else:
        say(next_step(report["dataset"]))
    return "\n".join(lines)
