"""Means over splits, and the Markdown table that `accuracy` prints.

All models see the same splits, so the difference to logistic regression is taken split by split:
what makes a split easy or hard cancels, and the standard error is that of the difference itself.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from dataclasses import dataclass
from typing import Any, NamedTuple

PRIVATE = "private"
LOGISTIC = "logistic regression"
BOOSTING = "gradient boosting"
MAJORITY = "majority class"
METRICS = {"accuracy": "accuracy", "auc": "AUC"}


class Estimate(NamedTuple):
    """A mean over splits and its standard error, 0 for a single split."""

    mean: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One model at one epsilon; estimates by metric."""

    model: str
    epsilon: float | None
    splits: int
    estimates: dict[str, Estimate]
    gains: dict[str, Estimate]  # over logistic regression, on the same splits


def summarize(rows: list[dict[str, Any]]) -> list[Line]:
    """One line for each model and epsilon, in the order of the rows."""
    by_model: dict[tuple[str, float | None], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault((row["model"], row["epsilon"]), {})[row["salt"]] = row
    reference = by_model[LOGISTIC, None]
    return [
        Line(
            model=model,
            epsilon=epsilon,
            splits=len(found),
            estimates={name: _estimate([row[name] for row in found.values()]) for name in METRICS},
            gains={
                name: _estimate([row[name] - reference[salt][name] for salt, row in found.items()])
                for name in METRICS
            },
        )
        for (model, epsilon), found in by_model.items()
    ]


def _estimate(values: list[float]) -> Estimate:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(statistics.mean(values), error)


def label(model: str, epsilon: float | None) -> str:
    """How a model is called."""
    return model if epsilon is None else f"{model}, epsilon {epsilon:g}"


def markdown(report: dict[str, Any]) -> str:
    """The table and its caption; `report` is what accuracy.json holds."""
    heads = ["model", "epsilon", *METRICS.values(), *(f"{m} gain" for m in METRICS.values())]
    table = [[*heads, "splits"], ["---"] * (len(heads) + 1)]
    for line in summarize(report["rows"]):
        table.append(
            [
                line.model,
                "" if line.epsilon is None else f"{line.epsilon:g}",
                *(_cell(line, line.estimates[metric]) for metric in METRICS),
                *(_cell(line, line.gains[metric], "+") for metric in METRICS),
                str(line.splits),
            ]
        )
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in table), "", _caption(report)])


def _cell(line: Line, estimate: Estimate, sign: str = "") -> str:
    if sign and line.model == LOGISTIC:
        return ""  # the gain over itself
    text = f"{estimate.mean:{sign}.3f}"
    return text if line.splits == 1 else f"{text} ± {estimate.error:.3f}"


def describe(report: dict[str, Any]) -> str:
    """What the numbers are about, in a few words; also under the picture."""
    salts = _salts(report)
    delta = next(row["delta"] for row in report["rows"] if row["delta"] is not None)
    splits = "one salted split" if len(salts) == 1 else f"means over {len(salts)} salted splits"
    return f"{report['input']}, {report['num_records']:,} records, delta {delta:g}; {splits}"


def _caption(report: dict[str, Any]) -> str:
    salts = _salts(report)
    named, spread = salts[0], ""
    if len(salts) > 1:
        named, spread = f"{salts[0]} to {salts[-1]}", " ± the standard error of the mean"
    text = (
        f"{describe(report)} ({named}){spread}. Gain: the difference to logistic regression, split "
        f"by split. Private models: {report['world_size']} ranks, all other options at their "
        "defaults. Logistic regression has the same features, gradient boosting the codes of the "
        "columns. The numbers are exact and not covered by epsilon: for public files only."
    )
    return f"{textwrap.fill(text, 100)}\n\n`{report['command']}`"


def _salts(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["salt"] for row in report["rows"]))
