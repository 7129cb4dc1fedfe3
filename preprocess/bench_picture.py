"""The times of `preprocess.bench` as SVG and PNG: seconds by engine and cores, and the speed-up.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; marks differ too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

LOOKS = {
    "sequential": ("#555555", "s"),
    "mapreduce": ("#D55E00", "^"),
    "spark": ("#009E73", "D"),
    "polars": ("#0072B2", "o"),
}
OTHERS = ("#CC79A7", "v")
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "dpsgd",  # equal numbers, equal bytes
}


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write engines.svg and engines.png; gives their paths."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        seconds, speed = figure.subplots(1, 2)
        for name in dict.fromkeys(row["engine"] for row in rows):
            mine = [row for row in rows if row["engine"] == name]
            cores = [row["cores"] for row in mine]
            colour, mark = LOOKS.get(name, OTHERS)
            warm = [row["seconds_warm"] for row in mine]
            cold = [row["seconds_cold"] for row in mine]
            seconds.plot(cores, warm, marker=mark, color=colour, label=name)
            seconds.plot(cores, cold, marker=mark, color=colour, linestyle=":", fillstyle="none")
            if all(row["speedup_over_sequential"] is not None for row in mine):
                ups = [row["speedup_over_sequential"] for row in mine]
                speed.plot(cores, ups, marker=mark, color=colour, label=name)
        records = max(row["rows"] for row in rows)
        seconds.set_title(f"{records:,} records: seconds (dotted: cold)")
        speed.set_title("times faster than sequential, warm")
        for panel in (seconds, speed):
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(ScalarFormatter())
            panel.set_xlabel("cores")
            panel.set_xticks(sorted({row["cores"] for row in rows}))
            panel.grid(alpha=0.3)
        seconds.legend(frameon=False)
        paths = [folder / "engines.svg", folder / "engines.png"]
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=150, metadata=metadata)
    return paths
