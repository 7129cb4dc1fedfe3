"""What rank 0 shows to people. Public facts only while training runs.

Under mpirun a rank cannot know whether people watch: MPICH gives it a pipe, Open MPI always a
terminal. So a bar is drawn there only on request (`--progress bar`), or if `python -m launch local`
says that people watch; plain lines otherwise.

Showing never ends a training: when nobody listens any more, or the disk that holds the output is
full, the rest is not shown.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from dpsgd.statement import NOT_PRIVATE, paragraph, shown
from launch.world import cores, ranks_on_this_node, terminal_columns, under_launcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dpsgd.planning import Run
    from dpsgd.trainer import Progress, Result

LINES = 10
MANY_RANKS_PER_CORE = 4
SECONDS_BETWEEN_LOOKS = 0.2


class _Console(Console):
    """Leaves a pipe that nobody reads to `Show`; rich would end the program."""

    def on_broken_pipe(self) -> None:
        """Called by rich inside the handler of the error."""
        raise


class Show:
    """Prints to `stream`; `style` is auto, bar, lines or none."""

    def __init__(self, style: str, stream: TextIO) -> None:
        columns = terminal_columns()
        if style == "auto":
            watched = columns or (stream.isatty() and not under_launcher())
            style = "bar" if watched else "lines"
        self._style = style
        self._console = _Console(
            file=stream,
            force_terminal=True if style == "bar" else (False if under_launcher() else None),
            width=columns or shutil.get_terminal_size((100, 24)).columns,
            highlight=False,
            markup=False,
            soft_wrap=False,
        )
        self._bar: Bar | None = None
        self._next_look = 0.0

    def line(self, text: str) -> None:
        """One line of text, however long."""
        with self._as_far_as_possible():
            self._console.print(text, soft_wrap=True)

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
            with self._as_far_as_possible():
                self._draw(now, text)
        elif self._style == "lines":
            self.line(f"step {now.step:>6} / {run.steps}  {text}")
        return facts

    def stop(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            with self._as_far_as_possible():
                self._bar.stop()
            self._bar = None

    @contextlib.contextmanager
    def _as_far_as_possible(self) -> Iterator[None]:
        """Fall silent where the stream cannot be written."""
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError) and not self._console.quiet:
                text = f"output cannot be written ({error.strerror}); the run goes on"
                print(f"dpsgd.run: {text}", file=sys.stderr)
            self._console.quiet, self._style = True, "none"
            with contextlib.suppress(OSError, ValueError):  # what its own buffer still holds
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._console.file.fileno())

    def _draw(self, now: Progress, text: str) -> None:
        if self._bar is None:
            self._bar = Bar(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.add_task(text, total=now.run.steps)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=now.step, description=text, refresh=True)

    def result(self, result: Result, folder: Path) -> None:
        """Metrics, where the time went, and the privacy statement."""
        with self._as_far_as_possible():
            out = self._console.print
            out("\nTest split (exact, not covered by epsilon)")
            if result.metrics["accuracy"] is None:
                out("note: there are no test records, so there are no metrics")
            out(_metrics_table(result))
            out(f"Seconds by phase, {result.run.steps} steps in {result.seconds:.2f} s")
            out(_phase_table(result))
            out(f"\n{paragraph(result.privacy)}\n")
            out(f"run folder: {folder}", soft_wrap=True)
            run = f"--run {shlex.quote(str(folder))}"
            out(
                f"Next: python -m dpsgd.predict {run} --input RAW.csv --output PREDICTIONS.csv",
                soft_wrap=True,
            )


def plan_lines(run: Run, all_reduce: str, engine: str) -> list[str]:
    """What is going to happen, before it does."""
    noise = (
        f"noise multiplier {run.noise_multiplier:.4f}"
        if run.noise_multiplier
        else ("clipping, no noise" if run.clipped else "no clipping, no noise")
    )
    promise = (
        f"epsilon {shown(run.epsilon)} at delta {run.delta:g} for one {run.unit}"
        if run.private
        else NOT_PRIVATE
    )
    ranks = "1 rank" if run.world_size == 1 else f"{run.world_size} ranks"
    lines = [
        f"{run.model.name} with {run.model.num_params} parameters on {run.num_examples} training "
        f"{run.unit}s; {ranks}, engine {engine}",
        f"all-reduce: {all_reduce}",
        f"{run.steps} steps, Poisson sampling at rate {run.sample_rate:g} (expected batch "
        f"{run.expected_batch_size:.0f}), {noise}: {promise}",
    ]
    if run.num_examples < run.world_size:
        without = run.world_size - run.num_examples
        lines.append(
            f"note: {without} of {run.world_size} ranks own no training {run.unit}; they take part "
            f"all the same"
        )
    if ranks_on_this_node() > MANY_RANKS_PER_CORE * cores():
        lines.append(
            f"note: {ranks_on_this_node()} ranks share {cores()} cores; each step waits for all of "
            f"them in turn"
        )
    if run.noise_multiplier >= run.expected_batch_size:
        lines.append(
            f"note: {run.num_examples} training {run.unit}s are too few for this budget: a step "
            f"sums about {run.expected_batch_size:.3g} gradients of norm at most 1 and adds noise "
            f"of {run.noise_multiplier:.3g} to each coordinate (in units of max-grad-norm)"
        )
    return lines


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
