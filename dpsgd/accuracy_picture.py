"""Accuracy and AUC against epsilon, as SVG and PNG.

Private models are points on a logarithmic axis of epsilon, the others horizontal lines; every band
is one standard error of the mean to each side. Colours are those of Okabe and Ito, which colour-
blind people can tell apart, and lines differ in their dashes too. The ground is white, so that the
picture reads in light and dark surroundings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpsgd.accuracy_table import (
    BOOSTING,
    LOGISTIC,
    MAJORITY,
    METRICS,
    PRIVATE,
    Line,
    describe,
    summarize,
)

LOOKS: dict[str, dict[str, Any]] = {
    PRIVATE: {"color": "#0072B2", "linestyle": "-"},
    LOGISTIC: {"color": "#D55E00", "linestyle": "--"},
    BOOSTING: {"color": "#009E73", "linestyle": "-."},
    MAJORITY: {"color": "#555555", "linestyle": ":", "linewidth": 1},
}
STRIP = 1 / 8  # height of the strip for the majority class, over that of the panel above
STYLE = {
    "font.size": 11,
    "lines.linewidth": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.w_pad": 0.1,  # inches
    "svg.hashsalt": "dpsgd",  # equal numbers, equal bytes
}


def draw(report: dict[str, Any], folder: Path) -> None:
    """Write accuracy.svg and accuracy.png; `report` is what accuracy.json holds."""
    lines = summarize(report["rows"])
    models = [line for line in lines if line.model != MAJORITY]
    with matplotlib.style.context(["default", STYLE]):  # whatever the user's own settings are
        figure = Figure(figsize=(10, 4.8), layout="constrained")
        panels = figure.subplot_mosaic(
            [["accuracy", "auc"], ["majority", "auc"]], height_ratios=[1, STRIP]
        )
        for metric, title in METRICS.items():
            panels[metric].set_title(title)
            _draw_models(panels[metric], models, metric)
        for panel in panels.values():
            _epsilon_axis(panel, models)
        _draw_majority(panels["majority"], panels["accuracy"], lines)
        _legend(figure)
        figure.supxlabel(_caption(report, models), fontsize=9, color="#444444")
        figure.savefig(folder / "accuracy.svg", metadata={"Date": None})
        figure.savefig(folder / "accuracy.png", dpi=150, metadata={"Software": None})


def _draw_models(panel: Axes, lines: list[Line], metric: str) -> None:
    private = [line for line in lines if line.model == PRIVATE]
    epsilons = [line.epsilon for line in private if line.epsilon is not None]
    means, errors = zip(*(line.estimates[metric] for line in private), strict=True)
    low, high = np.subtract(means, errors), np.add(means, errors)
    panel.errorbar(epsilons, means, errors, marker="o", label=PRIVATE, zorder=3, **LOOKS[PRIVATE])
    panel.fill_between(epsilons, low, high, color=LOOKS[PRIVATE]["color"], alpha=0.2, linewidth=0,
                       gid=_band(metric, PRIVATE))  # fmt: skip
    for line in lines:
        if line.model != PRIVATE:
            _draw_across(panel, line, metric)
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    panel.grid(axis="y", color="#dddddd")
    panel.set_axisbelow(True)


def _epsilon_axis(panel: Axes, lines: list[Line]) -> None:
    epsilons = [line.epsilon for line in lines if line.epsilon is not None]
    panel.set_xscale("log")
    panel.set_xlim(min(epsilons) / 1.25, max(epsilons) * 1.25)
    panel.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("epsilon")


def _draw_across(panel: Axes, line: Line, metric: str) -> None:
    """A model without privacy: a horizontal line and its band."""
    mean, error = line.estimates[metric]
    panel.axhline(mean, label=line.model, **LOOKS[line.model])
    panel.axhspan(mean - error, mean + error, color=LOOKS[line.model]["color"], alpha=0.15,
                  linewidth=0, gid=_band(metric, line.model))  # fmt: skip


def _draw_majority(strip: Axes, above: Axes, lines: list[Line]) -> None:
    """The majority class is far below: a strip of its own, at the scale of the panel above."""
    line = next(line for line in lines if line.model == MAJORITY)
    mean = line.estimates["accuracy"].mean
    strip.axhline(mean, label=MAJORITY, **LOOKS[MAJORITY])
    low, high = above.get_ylim()
    half = (high - low) * STRIP / 2
    strip.set_ylim(mean - half, mean + half)
    strip.set_yticks([mean], [f"{mean:.3f}"])
    above.tick_params(bottom=False, labelbottom=False)
    above.set_xlabel("")
    above.spines["bottom"].set_visible(False)
    mark: dict[str, Any] = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 10, "color": "black",
                            "linestyle": "none", "clip_on": False}  # fmt: skip
    above.plot([0], [0], transform=above.transAxes, **mark)
    strip.plot([0], [1], transform=strip.transAxes, **mark)


def _legend(figure: Figure) -> None:
    """One for all panels, private first."""
    shown: dict[str, Any] = {}
    for panel in figure.axes:
        handles, names = panel.get_legend_handles_labels()
        shown |= dict(zip(names, handles, strict=True))
    names = [name for name in LOOKS if name in shown]
    figure.legend([shown[name] for name in names], names, loc="outside upper center",
                  ncols=len(names), frameon=False)  # fmt: skip


def _band(metric: str, model: str) -> str:
    return f"band-{metric}-{model.replace(' ', '-')}"


def _caption(report: dict[str, Any], lines: list[Line]) -> str:
    bands = "; bands: ± one standard error of the mean" if lines[0].splits > 1 else ""
    return (
        f"{describe(report)}{bands}.\n"
        "The numbers are exact and not covered by epsilon: for public files only."
    )
