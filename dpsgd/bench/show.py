"""The tables of `bench`, a line at a time. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpsgd.phases import PHASES

Say = Callable[[str], None]
Row = dict[str, Any]

STEP_PARTS = ("sample", "forward", "backward", "norms", "clip+sum", "noise", "update", "other")
SHARES = (*PHASES, "other")

STEPS_HEAD = (
    f"# {'workload':<16}{'engine':<14}{'B':>6}{'threads':>9}{'ms/step':>12}{'/sgd':>9}"
    f"{'/plain':>9}{'steps':>9}"
)
BREAKDOWN_HEAD = (
    f"# us of one private step\n# {'workload':<16}{'engine':<12}{'step':>10}"
    + "".join(f"{name:>10}" for name in STEP_PARTS)
    + f"{'floor':>10}{'/floor':>8}  products"
)
FIGURES_HEAD = f"# {'part':<36}{'us':>10}{'noise/this':>12}"
MEMORY_HEAD = f"# {'engine':<14}{'B':>6}{'parameters':>12}{'peak(MB)':>11}{'/parameters':>13}"
JOB_HEAD = (
    f"# {'job':<12}{'ranks':>6}{'rows':>9}{'B':>6}{'steps':>7}{'first(s)':>10}{'data(s)':>9}"
    f"{'epoch(s)':>10}{'examples/s':>12}" + "".join(f"{name:>13}" for name in SHARES)
)


def step(row: Row) -> str:
    """Rows of `steps`."""
    return (
        f"  {row['workload']:<16}{row['engine']:<14}{row['batch_size']:>6}{row['threads']:>9}"
        f"{row['ms_per_step']:>12.4g}{row['ratio_to_sgd']:>9.3g}{row['ratio_to_own_plain']:>9.3g}"
        f"{row['steps']:>9}"
    )


def breakdown(row: Row) -> str:
    """Rows of `parts` and `floor`."""
    return (
        f"  {row['workload']:<16}{row['engine']:<12}{row['us_per_step']:>10.0f}"
        + "".join(f"{row['us'][name]:>10.0f}" for name in STEP_PARTS)
        + f"{row['us_floor']:>10.0f}{row['us_per_step'] / row['us_floor']:>8.2f}"
        f"  {row['num_products']} in {row['floor_in']}"
    )


def figure(row: Row) -> str:
    """Rows of `parts`."""
    ratio = row["noise_ratio"]
    return f"  {row['part']:<36}{row['us']:>10.1f}" + ("" if ratio is None else f"{ratio:>12.2f}")


def memory(row: Row) -> str:
    """Rows of `memory`."""
    return (
        f"  {row['engine']:<14}{row['batch_size']:>6}{row['num_params']:>12}"
        f"{row['peak_bytes'] / 1e6:>11.1f}{row['ratio_to_params']:>13.1f}"
    )


def job(row: Row) -> str:
    """Rows of `job`."""
    return (
        f"  {row['job']:<12}{row['ranks']:>6}{row['num_examples']:>9}{row['batch_size']:>6}"
        f"{row['steps']:>7}{row['seconds_to_first_step']:>10.2f}{row['seconds_for_data']:>9.2f}"
        f"{row['seconds']:>10.3f}{row['examples_per_second']:>12.0f}"
        + "".join(f"{row['shares'][name]:>13.1%}" for name in SHARES)
    )
