"""How much accuracy does privacy cost here? python -m dpsgd.accuracy --input RAW.csv

One split can be lucky by more than a point, so everything is a mean over several salted splits:
default private runs, started as a user would start them, beside models without privacy on the same
splits. Writes a table, a picture and the rows behind them. The numbers are exact and not covered by
any epsilon: it is for public files only.

    accuracy_models    the runs on one split        accuracy_table      means and Markdown
    accuracy_picture   accuracy against epsilon
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from dpsgd.arguments import Parser, check_json, write_json
from dpsgd.config import Config
from dpsgd.errors import INTERRUPTED, ConfigError, DatasetError, LaunchError, UserError
from launch import mpi
from launch import world as launched

DEFAULT_INPUT = Path("../shared/data/census/fulton_ga_2000.csv")
DEFAULT_OUTPUT = Path("runs/accuracy")
DEFAULT_EPSILONS = (1.0, 3.0, 8.0)
DEFAULT_SALTS = 10
TITLE = "Accuracy with and without privacy"
EXTRAS = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parse(arguments)
        _check(options)
        people = sys.stderr if options.json == "-" else sys.stdout
        report = _compare(options, shlex.join(["python", "-m", "dpsgd.accuracy", *arguments]))
        _publish(report, options, people)
    except UserError as error:
        print(f"dpsgd.accuracy: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a closed pipe
        print(f"dpsgd.accuracy: error: {error}", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        print("dpsgd.accuracy: interrupted before the end", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The options. Raises ConfigError."""
    made = Parser(
        prog="python -m dpsgd.accuracy", allow_abbrev=False,
        description="Private accuracy beside models without privacy, on the same salted splits.",
        epilog="The numbers are exact and not covered by epsilon: for public files only.",
    )  # fmt: skip
    made.add_argument(
        "--input", type=Path, default=DEFAULT_INPUT, metavar="RAW.csv",
        help=f"a raw census file (default {DEFAULT_INPUT})",
    )  # fmt: skip
    made.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, metavar="FOLDER",
        help=f"where accuracy.md, .svg, .png and .json are (re)placed (default {DEFAULT_OUTPUT})",
    )  # fmt: skip
    made.add_argument(
        "--epsilon", type=float, nargs="+", default=DEFAULT_EPSILONS, metavar="NUMBER",
        help=f"privacy budgets (default {' '.join(f'{one:g}' for one in DEFAULT_EPSILONS)})",
    )  # fmt: skip
    made.add_argument(
        "--salts", type=int, default=DEFAULT_SALTS, metavar="INTEGER",
        help=f"number of salted splits (default {DEFAULT_SALTS})",
    )  # fmt: skip
    made.add_argument(
        "--np", type=int, default=4, dest="world_size", metavar="INTEGER", help="ranks (default 4)"
    )
    made.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="the rows as JSON also to FILE, or alone to standard output",
    )  # fmt: skip
    options = made.parse(arguments)
    options.epsilon = sorted(set(options.epsilon))
    return options


def _check(options: argparse.Namespace) -> None:
    """Whatever would otherwise fail after minutes of work."""
    for flag, value in (("--salts", options.salts), ("--np", options.world_size)):
        if value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}")
    for epsilon in options.epsilon:
        Config(epsilon=epsilon)
    for module, package in EXTRAS.items():
        if find_spec(module) is None:
            raise ConfigError(f"{package} is not installed: pip install 'dpsgd[report]'")
    if launched.world_mismatch(1):
        raise LaunchError("dpsgd.accuracy starts its own ranks (--np): start it without mpirun")
    _launcher(options.world_size)
    if not options.input.is_file():
        raise DatasetError(f"input {options.input} is not a file; name one with --input RAW.csv")
    place = options.output.absolute()
    existing = next(path for path in (place, *place.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"--output must be a writable folder, got {options.output}")
    check_json(options.json, options.input, options.output)


def _launcher(world_size: int) -> list[str]:
    try:
        return mpi.line_here(world_size)
    except mpi.MpiError as error:
        raise LaunchError(str(error)) from None


def _compare(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Train every model on every split: the rows, and the facts for the caption."""
    from dpsgd import accuracy_models as models

    rows: list[dict[str, Any]] = []
    launcher = _launcher(options.world_size)
    progress = _Progress(options.salts * (len(options.epsilon) + len(models.BASELINES)))

    def finished(row: dict[str, Any]) -> None:
        rows.append({"salt": salt, **row})
        progress.line(rows[-1])

    with tempfile.TemporaryDirectory(prefix="dpsgd-accuracy-") as folder:
        for salt in (f"accuracy-{number}" for number in range(options.salts)):
            split = models.make_split(options.input, Path(folder) / salt, salt)
            for epsilon in options.epsilon:
                finished(models.private(split, epsilon, launcher))
            for name in models.BASELINES:
                finished(models.without_privacy(split, name))
    return {
        "input": options.input.name,
        "num_records": split.num_records,
        "world_size": options.world_size,
        "command": command,
        "rows": rows,
    }


class _Progress:
    """A line on stderr for each finished run."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started = total, 0, time.monotonic()

    def line(self, row: dict[str, Any]) -> None:
        """Print it, with the rough time that is left."""
        from dpsgd.accuracy_table import label

        self.done += 1
        seconds = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        print(
            f"{self.done} of {self.total}: {row['salt']}, {label(row['model'], row['epsilon'])}: "
            f"accuracy {row['accuracy']:.4f}, AUC {row['auc']:.4f}"
            + (f"; about {left} left" if self.done < self.total else ""),
            file=sys.stderr,
            flush=True,
        )


def _publish(report: dict[str, Any], options: argparse.Namespace, people: TextIO) -> None:
    """Show the table, then write the files; `report` holds what JSON shows."""
    from dpsgd.accuracy_picture import draw
    from dpsgd.accuracy_table import markdown

    table = markdown(report)
    text = json.dumps(report, allow_nan=False, indent=2)
    print(table, file=people)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "accuracy.json").write_text(text + "\n", encoding="utf-8")
    page = f"# {TITLE}\n\n![accuracy and AUC against epsilon](accuracy.svg)\n\n{table}\n"
    (options.output / "accuracy.md").write_text(page, encoding="utf-8")
    draw(report, options.output)
    print(f"\naccuracy.md, .svg, .png and .json are in {options.output}", file=people)
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    sys.exit(main())
