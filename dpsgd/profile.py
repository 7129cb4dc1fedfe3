"""Where a run spends its time: [mpirun -np 2] python -m dpsgd.profile [--steps 300] [OPTIONS]

Trains a few hundred steps of the main job (see `dpsgd.bench.job`), changed by any option of
dpsgd.run, twice:

    with the trainer's phases written down, on all ranks     trace.json, for ui.perfetto.dev
    under cProfile, on rank 0, from the second step on       hot.json, and a table on the screen

The profiler makes small calls look slower than they are, so the trace is of a run without it. Both
files go to --output. With --data it trains on that data set, as dpsgd.run would, and both runs are
charged in its ledger like any others.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collectives.guard import WorldError, crash, interrupted, on_root, start
from dpsgd import arguments as run_arguments
from dpsgd import options
from dpsgd.arguments import Parser
from dpsgd.bench import job as bench_job
from dpsgd.bench import workloads as bench_workloads
from dpsgd.config import EXCLUSIVE, Config
from dpsgd.errors import CRASHED, INTERRUPTED, ConfigError, LaunchError, UserError
from launch.world import launched_rank
from preprocess.output import say

if TYPE_CHECKING:
    from mpi4py import MPI

    from dpsgd.data import Dataset

STEPS, TOP = 300, 20
OUTPUT = Path("runs/profile")
MAIN_JOB: dict[str, Any] = {
    "hidden": bench_job.HIDDEN,
    "activation": bench_workloads.ACTIVATION,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "batch_size": bench_job.BATCH_SIZE,
    "noise_multiplier": bench_job.NOISE_MULTIPLIER,
    "delta": 1e-6,
}

NOT_HERE = ("epochs", "out", "json", "print_config")


def parse(words: list[str]) -> tuple[argparse.Namespace, Config, bool]:
    """Our options, the configuration, and whether a data set was named. Raises ConfigError."""
    made = Parser(
        prog="python -m dpsgd.profile", allow_abbrev=False, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other options are those of python -m dpsgd.run, but not those that say how "
        "long or where to: --epochs, --out, --json, --print-config.",
    )  # fmt: skip
    made.add_argument("--steps", type=int, default=STEPS, help=f"steps (default {STEPS})")
    made.add_argument("--top", type=int, default=TOP, help=f"rows of the table (default {TOP})")
    made.add_argument("--output", type=Path, default=OUTPUT, help=f"folder (default {OUTPUT})")
    ours, rest = made.parse_known_args(words)
    for flag, least in (("steps", 2), ("top", 1)):
        if getattr(ours, flag) < least:
            raise ConfigError(f"--{flag} must be at least {least}, got {getattr(ours, flag)}")
    found = run_arguments.parser().parse(rest)
    for name in NOT_HERE:
        if getattr(found, name) not in (None, False):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is not for dpsgd.profile: use --steps and --output")
    typed = {
        name: options.parse(name, value) if isinstance(value, str) else value
        for name, value in vars(found).items()
        if name in options.NAMES and value is not None
    }
    given = options.gather(found.config, os.environ, typed)
    defaults = {} if "data" in given else dict(MAIN_JOB)
    if "model" in given and given["model"].value != "mlp":
        defaults.pop("hidden", None)
        defaults.pop("activation", None)
    values = defaults | {name: one.value for name, one in given.items()}
    for group in EXCLUSIVE:
        if any(name in given for name in group):
            for name in (name for name in group if name not in given):
                values.pop(name, None)
    values |= {"steps": ours.steps, "epochs": None, "progress": "none"}
    return ours, Config(**values), "data" in given


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code of this rank."""
    speaks = launched_rank() == 0
    comm = None
    try:
        with contextlib.redirect_stdout(sys.stdout if speaks else io.StringIO()):
            ours, config, has_data = parse(sys.argv[1:] if words is None else words)
        comm = _start()
        _profile(comm, ours, config, has_data)
    except UserError as error:
        if comm is None and not speaks:
            return 0
        if speaks:
            print(f"dpsgd.profile: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        if comm is not None:
            return interrupted(comm, "dpsgd.profile: interrupted", INTERRUPTED)
        return INTERRUPTED
    except Exception:
        if comm is None:
            raise
        crash(comm, "dpsgd.profile", CRASHED)
    return 0


def _start() -> MPI.Intracomm:
    try:
        return start()
    except WorldError as error:
        raise LaunchError(str(error)) from None


def _profile(comm: MPI.Intracomm, ours: argparse.Namespace, config: Config, has_data: bool) -> None:
    """Train twice, then write and show. Every rank must call it."""
    from dpsgd import data, models, trainer
    from dpsgd.bench import data as bench_data
    from dpsgd.profile_files import HotSpots, TracedTimer, lines, trace_events

    folder: Path = ours.output
    on_root(comm, UserError, lambda: _make(folder))
    dataset: Dataset
    if has_data:
        dataset = data.load_dataset(config.data, comm, models.inputs_of(config.model))
    else:
        rows = bench_job.ROWS
        dataset = bench_data.random_dataset(config.data, comm.rank, comm.size, rows)
    timer, hot = TracedTimer(), HotSpots()
    with tempfile.TemporaryDirectory(prefix="dpsgd-profile-") as temporary:
        if not has_data:
            config = replace(config, ledger=Path(comm.bcast(temporary)) / "ledger.jsonl")
        result = trainer.train(config, dataset, comm, timer=timer)
        trainer.train(config, dataset, comm, hot.progress)
    spans = comm.gather(timer.spans)
    if spans is None:
        return
    table = hot.rows(ours.top)
    document = {
        "steps": result.run.steps,
        "world_size": comm.size,
        "seconds": result.seconds,
        "phases": result.phases,
        "config": config.to_json(),
        "rows": table,
    }
    trace = {"traceEvents": trace_events(spans)}
    (folder / "trace.json").write_text(json.dumps(trace), encoding="utf-8")
    (folder / "hot.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    say("\n".join(lines(table)), sys.stdout)
    took = f"{result.run.steps} steps took {result.seconds:.2f} s without the profiler"
    say(f"# {took}; {folder}/trace.json (for ui.perfetto.dev), {folder}/hot.json", sys.stdout)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output must be a writable folder, got {folder}")


if __name__ == "__main__":
    sys.exit(main())
