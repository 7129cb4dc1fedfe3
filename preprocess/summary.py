"""What a user is told about a cleaned file.

Refused values are raw data and terminals end up in logs: here are only rules, columns and numbers
of lines. The values are in the quarantine of the data set, which only the user can read.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.shards import QUARANTINE
from preprocess.spec import Spec

if TYPE_CHECKING:
    from preprocess.engines.base import Cleaned, Refused

CURES = {"not-an-integer": "; numbers must be whole and without a point, 43 and not 43.0"}
FIRST_LINES = 3  # numbers of lines that are shown for each kind of refusal


def refusals(refused: list[Refused]) -> list[dict[str, Any]]:
    """One row for each rule and column, the most frequent first.

    The column is empty where the whole line is at fault.
    """
    lines: dict[tuple[str, str], list[int]] = {}
    for line, refusal in refused:
        lines.setdefault((refusal.rule, refusal.column), []).append(line)
    return [
        {"rule": rule, "column": column, "records": len(at), "first_lines": at[:FIRST_LINES]}
        for (rule, column), at in sorted(lines.items(), key=lambda item: -len(item[1]))
    ]


def no_valid_record(path: Path, refused: list[Refused]) -> str:
    """Why there is nothing to keep, in one line."""
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
        f"rule {rule} ({rules.count(rule):,}; first: {where})" + CURES.get(rule, "")
    )


def only_one_label(cleaned: Cleaned, spec: Spec) -> str | None:
    """The warning that all kept records have one label, if they have."""
    number = [column.name for column in spec.columns].index(spec.label)
    labels = cleaned.codes[:, number]
    if not len(labels) or (labels != labels[0]).any():
        return None
    return (
        f"all kept records ({len(labels):,}) have the same {spec.label}: a model of them can only "
        f"learn that"
    )


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
    say(f"  refused  {counts['refused']:>10,}")
    if rows := report["refusals"]["rows"]:
        say(f"    {'rule':<15} {'column':<15} {'records':>10}  first lines")
        for row in rows:
            first = ", ".join(map(str, row["first_lines"]))
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
        "are exact and not covered by any epsilon: keep them inside."
    )
    if report["replaced"]:
        would = "would replace" if report["dry_run"] else "replaced"
        say(f"This {would} a data set; the privacy ledger beside it goes on counting for both.")
    if report["dry_run"]:
        say("Next: the same with --output DATASET and without --dry-run")
    else:
        say(f"Next: mpirun -np 4 python -m dpsgd.run --data {shlex.quote(report['dataset'])}")
    return "\n".join(lines)
