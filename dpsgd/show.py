"""What rank 0 shows to people. Public facts only while training runs.

Under mpirun a rank cannot know whether people watch: MPICH gives it a pipe, Open MPI always a
terminal. So a bar is drawn there on request only (`--progress bar`), and plain lines otherwise.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from dpsgd.statement import NOT_PRIVATE, paragraph, shown
from launch.world import under_launcher

if TYPE_CHECKING:
    from pathlib import Path

    from dpsgd.planning import Run
    from dpsgd.trainer import Progress, Result

LINES = 10
SECONDS_BETWEEN_LOOKS = 0.2


class Show:
    """Prints to `stream`; `style` is auto, bar, lines or none."""

    def __init__(self, style: str, stream: TextIO) -> None:
        if style == "auto":
            style = "bar" if stream.isatty() and not under_launcher() else "lines"
        self._style = style
        self.console = Console(
            file=stream,
            force_terminal=True if style == "bar" else (False if under_launcher() else None),
            width=shutil.get_terminal_size((100, 24)).columns,
            highlight=False,
            markup=False,
            soft_wrap=False,
        )
        self._bar: Bar | None = None
        self._next_look = 0.0

    def line(self, text: str) -> None:
        """One line of text, however long."""
        self.console.print(text, soft_wrap=True)

    def progress(self, now: Progress) -> dict[str, Any] | None:
        """Show a step if it is time to; returns what was shown."""
        run = now.run
        last = now.step == run.steps
        if self._style == "bar":
            due = last or now.seconds >= self._next_look
        else:
            due = last or now.step % max(1, run.steps // LINES) == 0
        if not due:
            return None
        self._next_look = now.seconds + SECONDS_BETWEEN_LOOKS
        facts = {
            "step": now.step,
            "seconds": now.seconds,
            "examples_per_second": now.examples_per_second,
            "epsilon": now.epsilon(),
        }
        text = f"{facts['examples_per_second']:>11,.0f} examples/s  {_spent(facts['epsilon'], run)}"
        if self._style == "bar":
            self._draw(now, text)
        elif self._style == "lines":
            self.line(f"step {now.step:>6} / {run.steps}  {text}")
        return facts

    def stop(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, now: Progress, text: str) -> None:
        if self._bar is None:
            self._bar = Bar(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}", markup=False),
                console=self.console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.add_task(text, total=now.run.steps)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=now.step, description=text, refresh=True)

    def result(self, result: Result, folder: Path) -> None:
        """Metrics, where the time went, and the privacy statement."""
        self.line("")
        self.line("Test split (exact, not covered by epsilon)")
        self.console.print(_metrics_table(result))
        self.line(f"Seconds by phase, {result.run.steps} steps in {result.seconds:.2f} s")
        self.console.print(_phase_table(result))
        self.line("")
        self.console.print(paragraph(result.privacy))
        self.line("")
        self.line(f"run folder: {folder}")


def plan_lines(run: Run, allreduce: str, engine: str) -> list[str]:
    """What is going to happen, before it does."""
    noise = (
        f"noise multiplier {run.noise_multiplier:.4f}"
        if run.noise_multiplier
        else "no clipping, no noise"
    )
    promise = (
        f"epsilon {shown(run.epsilon)} at delta {run.delta:g} for one {run.unit}"
        if run.private
        else NOT_PRIVATE
    )
    return [
        f"{run.model.name} with {run.model.num_params} parameters on {run.num_examples} training "
        f"{run.unit}s; {run.world_size} ranks, all-reduce {allreduce}, engine {engine}",
        f"{run.steps} steps, Poisson sampling at rate {run.sample_rate:g} (expected batch "
        f"{run.expected_batch_size:.0f}), {noise}: {promise}",
    ]


def _spent(epsilon: float | None, run: Run) -> str:
    return NOT_PRIVATE if epsilon is None else f"epsilon {shown(epsilon)} of {shown(run.epsilon)}"


def _metrics_table(result: Result) -> Table:
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in result.metrics.items():
        table.add_row(name.replace("_", " "), "-" if value is None else f"{value:.4f}")
    return table


def _phase_table(result: Result) -> Table:
    table = Table()
    for column in ("phase", "mean over ranks", "min", "max"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, seconds in result.phases.items():
        table.add_row(name, *(f"{seconds[key]:.3f}" for key in ("mean", "min", "max")))
    return table
