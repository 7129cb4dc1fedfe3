"""How fast is a private step here? python -m dpsgd.bench

    /sgd     milliseconds of a step / those of PyTorch's plain SGD
    /plain   the same / those of our own step without clipping and noise
    steps    how many were timed; the median is shown

Then: where the private step of our fastest engine goes, and its floor, the matrix products alone;
sampling, and noise beside torch's. All engines of a workload run in turns in one process, on so
many threads. torch-sgd and plain are always measured. Two more things are measured on their own:

    --job       one epoch of the main job under mpirun        (see dpsgd.bench.job)
    --memory    peak memory, a process for each engine        (see dpsgd.bench.memory)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from dpsgd import engines
from dpsgd.arguments import Parser, check_json, write_json
from dpsgd.bench import job as bench_job
from dpsgd.bench import memory as bench_memory
from dpsgd.bench import show as bench_show
from dpsgd.bench.workloads import WORKLOADS
from dpsgd.config import one_of
from dpsgd.errors import INTERRUPTED, ConfigError, LaunchError, UserError
from launch import world
from preprocess.output import say

BASELINES, PEERS = ("torch-sgd", "plain"), ("opacus-hooks", "opacus-ghost")
ENGINES = (*BASELINES, *engines.NAMES, *PEERS)
PART_SECONDS = 2.0
OF_A_JOB = {"ranks": bench_job.RANKS, "rows": bench_job.ROWS, "batch_size": bench_job.BATCH_SIZE}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        asked = parse(sys.argv[1:] if arguments is None else arguments)
        people = sys.stderr if asked.json == "-" else sys.stdout
        work = _job if asked.job else _memory if asked.memory else _steps
        document = work(asked, lambda text: say(text, people))
        if asked.json:
            write_json(asked.json, document)
    except UserError as error:
        if world.launched_rank() == 0:
            print(f"dpsgd.bench: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("dpsgd.bench: interrupted before the end", file=sys.stderr)
        return INTERRUPTED
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options. Raises ConfigError, or LaunchError among other ranks."""
    made = Parser(
        prog="python -m dpsgd.bench", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument(
        "--workloads", nargs="+", metavar="NAME",
        help=f"some of {', '.join(WORKLOADS)} (default all)",
    )  # fmt: skip
    made.add_argument(
        "--engines", nargs="+", metavar="NAME", help=f"some of {', '.join(ENGINES)} (default all)"
    )
    made.add_argument("--threads", type=int, default=1, help="of each step (default 1)")
    made.add_argument("--json", nargs="?", const="-", metavar="FILE",
                      help="rows as JSON to FILE, or alone to standard output")  # fmt: skip
    mode = made.add_mutually_exclusive_group()
    mode.add_argument("--job", action="store_true", help="the main job instead")
    mode.add_argument("--memory", action="store_true", help="peak memory instead")
    for name, default in OF_A_JOB.items():
        flag = "--" + name.replace("_", "-")
        made.add_argument(flag, type=int, help=f"of the main job (default {default})")
    asked = made.parse(arguments)
    for name, asked_for in (("workloads", asked.workloads), ("engines", asked.engines)):
        if asked_for and (asked.job or (asked.memory and name == "workloads")):
            mode_name = "--job" if asked.job else "--memory"
            raise ConfigError(f"--{name} must be left out with {mode_name}")
    for name in asked.workloads or ():
        one_of("workloads", name, WORKLOADS)
    for name in asked.engines or ():
        one_of("engines", name, ENGINES)
    for name, default in OF_A_JOB.items():
        given = getattr(asked, name)
        if given is not None and not asked.job:
            raise ConfigError(f"--{name.replace('_', '-')} must be given with --job")
        setattr(asked, name, default if given is None else given)
    for name in ("threads", *OF_A_JOB):
        if getattr(asked, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} must be at least 1, got {getattr(asked, name)}")
    if asked.batch_size > asked.rows:
        raise ConfigError(f"--batch-size must be at most {asked.rows}, got {asked.batch_size}")
    asked.workloads = asked.workloads or list(WORKLOADS)
    check_json(asked.json)
    if world.world_mismatch(1):
        raise LaunchError("dpsgd.bench is one process, and --job starts its own: leave out mpirun")
    return asked


def _use_threads(threads: int) -> None:
    """Before numpy and torch are loaded, which look at these variables once."""
    if find_spec("torch") is None:
        raise ConfigError("torch is not installed: make install brings it")
    for name in (world.BLAS_THREADS, *world.THREAD_VARIABLES):
        os.environ[name] = str(threads)


def _steps(asked: argparse.Namespace, show: bench_show.Say) -> dict[str, Any]:
    _use_threads(asked.threads)
    import torch

    torch.set_num_threads(asked.threads)
    from collectives.guard import WorldError, start
    from dpsgd.bench import floor as bench_floor
    from dpsgd.bench import parts as bench_parts
    from dpsgd.bench import steps as bench_steps

    try:
        comm = start()
    except WorldError as error:
        raise LaunchError(str(error)) from None
    names = list(asked.engines or ENGINES)
    chosen = [WORKLOADS[name] for name in dict.fromkeys(asked.workloads)]
    rows: list[dict[str, Any]] = []
    breakdown: list[dict[str, Any]] = []
    said: set[str] = set()
    show(bench_show.STEPS_HEAD)
    for workload in chosen:
        found, notes = bench_steps.measure(workload, names, asked.threads, comm)
        rows += found
        for row in found:
            show(bench_show.step(row))
        for note in notes:
            if note not in said:
                show(f"# {note}")
        said |= {note for note in notes if "left out" in note}
    show(bench_show.BREAKDOWN_HEAD)
    for workload in chosen:
        parts = bench_parts.breakdown(workload, comm, PART_SECONDS)
        row = parts | bench_floor.floor(workload, PART_SECONDS)
        breakdown.append({"workload": workload.name, **row})
        show(bench_show.breakdown(breakdown[-1]))
    show(bench_show.FIGURES_HEAD)
    figures = bench_parts.figures(PART_SECONDS)
    for row in figures:
        show(bench_show.figure(row))
    return {"rows": rows, "breakdown": breakdown, "parts": figures}


def _memory(asked: argparse.Namespace, show: bench_show.Say) -> dict[str, Any]:
    _use_threads(asked.threads)
    rows: list[dict[str, Any]] = []
    show(bench_show.MEMORY_HEAD)
    for name in _of_memory(asked.engines):
        for batch_size in bench_memory.BATCH_SIZES:
            try:
                rows.append(bench_memory.measure(name, batch_size, asked.threads))
            except ConfigError as error:
                show(f"# left out: {error}")
            else:
                show(bench_show.memory(rows[-1]))
    return {"rows": rows}


def _of_memory(asked: Sequence[str] | None) -> Sequence[str]:
    """All but what keeps nothing, one example at a time."""
    return asked or [name for name in ENGINES if name not in ("plain", "loop")]


def _job(asked: argparse.Namespace, show: bench_show.Say) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    show(bench_show.JOB_HEAD)
    for job in bench_job.JOBS:
        row = bench_job.measure(job, asked.ranks, asked.rows, asked.batch_size)
        rows.append(row)
        show(bench_show.job(row))
    return {"rows": rows}


if __name__ == "__main__":
    sys.exit(main())
