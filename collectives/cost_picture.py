"""Predicted time against size, both logarithmic, one panel a world size; as SVG and PNG.

Colours are those of Okabe and Ito, which colour-blind people can tell apart, and lines differ in
their dashes too. The ground is white, so that the picture reads in light and dark surroundings.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from collectives.algorithms import ALGORITHMS
from collectives.cost_table import shown_bytes, shown_seconds
from collectives.crossover import GRID, Curve, crossovers

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
DASHES: tuple[Any, ...] = (
    "-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 2, 1, 1.5, 1, 2)),
    (0, (2, 2.5)), (0, (10, 3)),
)  # fmt: skip
SIZES = tuple(4**k for k in range(0, 16, 3))
STYLE = {
    "font.size": 10,
    "lines.linewidth": 1.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "collectives",  # equal numbers, equal bytes
}


def draw(
    panels: Sequence[Sequence[Curve]], origin: str, folder: Path, name: str
) -> tuple[Path, Path]:
    """Write the picture of all worlds, each a list of curves, and return its files."""
    names = list(dict.fromkeys(curve.name for curves in panels for curve in curves))
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    with matplotlib.style.context(["default", STYLE]):  # whatever the user's own settings are
        figure = Figure(figsize=(5.2 * columns + 0.8, 1.4 + 3.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for panel, curves in zip(axes.flat, panels, strict=False):
            _draw_panel(panel, curves, names)
        for panel in axes.flat[len(panels) :]:
            panel.set_visible(False)
        handles = {h.get_label(): h for panel in axes.flat for h in panel.get_lines()}
        figure.legend(
            [handles[one] for one in names], names, loc="outside upper center",
            ncols=min(len(names), 2 * columns), frameon=False, handlelength=4,
        )  # fmt: skip
        figure.supxlabel(_caption(panels[0][0], origin, columns > 1), fontsize=9, color="#444444")
        files = folder / f"{name}.svg", folder / f"{name}.png"
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=150, metadata={"Software": None})
    return files


def _draw_panel(panel: Axes, curves: Sequence[Curve], names: list[str]) -> None:
    order = list(dict.fromkeys([*ALGORITHMS, *names]))  # a look of its own, whoever else is drawn
    for curve in curves:
        look = order.index(curve.name)
        panel.plot(
            GRID, [curve.seconds(size) for size in GRID], label=curve.name,
            color=COLOURS[look % len(COLOURS)],
            linestyle=DASHES[(look + look // len(COLOURS)) % len(DASHES)],
        )  # fmt: skip
    panel.set_xscale("log")
    panel.set_yscale("log")
    for size, _ in crossovers(curves)[1:]:
        panel.axvline(size, color="#bbbbbb", linewidth=0.8, label="_change", zorder=0)
    panel.set_xlim(GRID[0], GRID[-1])
    panel.set_xticks(SIZES, [shown_bytes(size) for size in SIZES])
    panel.set_xticks([], minor=True)
    low, high = (math.floor(math.log10(limit)) for limit in panel.get_ylim())
    ticks = [10.0**k for k in range(low, high + 2) if panel.get_ylim()[0] <= 10.0**k]
    ticks = [tick for tick in ticks if tick <= panel.get_ylim()[1]]
    panel.set_yticks(ticks, [shown_seconds(tick) for tick in ticks])
    panel.set_yticks([], minor=True)
    panel.grid(axis="y", color="#eeeeee")
    panel.set_axisbelow(True)
    panel.set_title(f"{curves[0].world_size} rank{'s' * (curves[0].world_size > 1)}")
    panel.set_xlabel("bytes")
    panel.set_ylabel("predicted time")


def _caption(curve: Curve, origin: str, wide: bool) -> str:
    link = curve.link
    text = (
        f"{origin}: alpha {shown_seconds(link.alpha)}, overhead {shown_seconds(link.overhead)}, "
        f"beta {link.beta * 1e9:.3g} ns a byte, gamma {link.gamma * 1e9:.3g} ns a byte"
    )
    if curve.inside:
        text += (
            f"; inside nodes alpha {shown_seconds(curve.inside.alpha)}, "
            f"beta {curve.inside.beta * 1e9:.3g} ns a byte"
        )
    text = textwrap.fill(text, 110 if wide else 62)
    return f"{text}.\nThin vertical lines: another algorithm becomes the fastest."
