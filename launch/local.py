"""python -m launch local -n 4 -- OPTIONS: the right mpirun line for this machine, shown, then run.

What the MPI at hand wants to be told is told, and each rank gets its share of the cores as threads.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

from launch import mpi
from launch.cli import LaunchError, Parser, shown
from launch.world import TERMINAL_COLUMNS, cores, threads_per_rank, without_launcher

MAIN_JOB = "dpsgd.run"
MAX_RANKS = 4096
OUR_PACKAGES = ("collectives", "dpsgd", "launch", "preprocess")


def add_arguments(parser: Parser) -> None:
    """The flags of this command."""
    parser.usage = "python -m launch local [-n RANKS] [--module NAME] [--dry-run] -- [OPTIONS ...]"
    parser.hint = f"options of {MAIN_JOB} go behind --"
    parser.add_argument(
        "-n", "--ranks", type=_ranks, default=cores(), help="ranks (default: one for each core)"
    )
    parser.add_argument(
        "--module", default=MAIN_JOB, metavar="NAME",
        help=f"what to run: {MAIN_JOB} (default), collectives.bench, or a module of your own",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show the line, do not run it")
    parser.add_argument(
        "options", nargs="*", metavar="-- OPTIONS", help="options of what is run, behind --"
    )


def run(options: argparse.Namespace) -> int:
    """Become the launcher, whose exit code is that of the job. LaunchError without an MPI."""
    try:
        words = mpi.line_here(options.ranks)
    except mpi.MpiError as error:
        raise LaunchError(str(error)) from None
    # A rank of a program of one's own that fails would leave the others waiting; ours end the job.
    end_together = [] if options.module.partition(".")[0] in OUR_PACKAGES else ["-m", "mpi4py"]
    words += [shown(sys.executable), *end_together, "-m", options.module, *options.options]
    added = {"OMP_NUM_THREADS": str(threads_per_rank(options.ranks))}
    added = {name: value for name, value in added.items() if name not in os.environ}
    assignments = [f"{name}={value}" for name, value in added.items()]
    print(shlex.join([*assignments, shown(words[0]), *words[1:]]), flush=True)
    if not options.dry_run:
        if sys.stdout.isatty() and sys.stderr.isatty():  # ranks cannot know: they write into pipes
            added[TERMINAL_COLUMNS] = str(shutil.get_terminal_size().columns)
        environment = {**without_launcher(), **added, "PATH": mpi.search_path(Path(words[0]))}
        os.execve(words[0], words, environment)
    return 0


def _ranks(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_RANKS:
        raise argparse.ArgumentTypeError(f"must be an integer in 1..{MAX_RANKS}, got {text}")
    return int(text)
