"""The main job of `bench`: one epoch of the real trainer, under mpirun. python -m dpsgd.bench --job

1.22 million rows of 16 random features in memory, MLP 16-64-64-1, batch size 256, SGD, `auto` for
everything that has it; the ledger is in a temporary folder.

    private      noise multiplier 0.5, whose epsilon, 2.6, is computed before the first step
    calibrated   the same for an epsilon of 3: the start has to find the noise
    plain        without privacy: no clipping, no noise

    first(s)     from the start of mpirun to the end of the first step on rank 0, making the data
                 (data(s)) included
    epoch(s)     all steps, and nothing else
    shares       of the epoch, mean over the ranks; `communicate` includes waiting for others

Each job is started like any other, by mpirun with a share of the cores for each rank. This file is
also the program of the ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpsgd.bench.workloads import ACTIVATION, NUM_FEATURES
from dpsgd.config import Config
from dpsgd.errors import CRASHED, LaunchError, UserError
from launch import mpi
from launch.world import BLAS_THREADS, THREAD_VARIABLES, threads_per_rank, without_launcher

if TYPE_CHECKING:
    from mpi4py import MPI

RANKS, ROWS, BATCH_SIZE = 2, 1_220_000, 256
HIDDEN = (64, 64)
NOISE_MULTIPLIER = 0.5
EPSILON = 3.0
JOBS: dict[str, dict[str, Any]] = {
    "private": {"noise_multiplier": NOISE_MULTIPLIER},
    "calibrated": {"epsilon": EPSILON},
    "plain": {"no_privacy": True},
}


class JobError(UserError):
    """The job ended before its time; its words are shown."""

    exit_code = CRASHED


def launcher(num_ranks: int) -> list[str]:
    """The words that start the ranks. Raises LaunchError without an MPI."""
    try:
        return mpi.line_here(num_ranks)
    except mpi.MpiError as error:
        raise LaunchError(str(error)) from None


def measure(job: str, num_ranks: int, num_rows: int, batch_size: int) -> dict[str, Any]:
    """Run a job; its row. Raises JobError if it fails."""
    words = launcher(num_ranks)
    threads = dict.fromkeys(THREAD_VARIABLES, str(threads_per_rank(num_ranks)))
    threads[BLAS_THREADS] = "1"
    environment = {**without_launcher(), **threads, "PATH": mpi.search_path(Path(words[0]))}
    with tempfile.TemporaryDirectory(prefix="dpsgd-bench-") as folder:
        asked = [job, str(num_rows), str(batch_size), folder]
        started = time.monotonic()  # one clock for all processes of a machine
        command = [*words, sys.executable, "-m", __name__, *asked, str(started)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise JobError(f"job {job} ended with code {done.returncode}\n{said}")
        row: dict[str, Any] = json.loads((Path(folder) / "row.json").read_text(encoding="utf-8"))
    return row | {"seconds_in_all": time.monotonic() - started}


def config(job: str, batch_size: int, folder: Path) -> Config:
    """How it trains."""
    return Config(
        data=folder / "random",
        ledger=folder / "ledger.jsonl",
        hidden=HIDDEN,
        activation=ACTIVATION,
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=batch_size,
        epochs=1,
        delta=1e-6,
        **JOBS[job],
    )


def _rank(comm: MPI.Intracomm, arguments: list[str]) -> None:
    """What each rank does."""
    from dpsgd import trainer
    from dpsgd.bench import data as bench_data

    job, rows, batch_size, folder, started = arguments
    begin, first = time.monotonic(), 0.0
    wanted = config(job, int(batch_size), Path(folder))
    dataset = bench_data.random_dataset(wanted.data, comm.rank, comm.size, int(rows))
    with_data = time.monotonic()

    def progress(now: trainer.Progress) -> None:
        nonlocal first
        first = first or time.monotonic()

    result = trainer.train(wanted, dataset, comm, progress)
    shares = {name: times["mean"] / result.seconds for name, times in result.phases.items()}
    found = result.to_json()
    if comm.rank == 0:
        row = {
            "job": job,
            "ranks": comm.size,
            "threads": int(os.environ["OMP_NUM_THREADS"]),
            "num_examples": dataset.num_examples,
            "num_features": NUM_FEATURES,
            "batch_size": int(batch_size),
            **{key: found[key] for key in ("steps", "seconds", "examples_per_second")},
            "seconds_to_first_step": first - float(started),
            "seconds_for_data": with_data - begin,
            "shares": shares | {"other": 1 - sum(shares.values())},
            **{key: found[key] for key in ("allreduce", "transport", "engine", "phases")},
            "noise_multiplier": result.run.noise_multiplier,
            "torch_loaded": "torch" in sys.modules,
        }
        (Path(folder) / "row.json").write_text(json.dumps(row), encoding="utf-8")


def main() -> int:
    """The program of a rank."""
    from collectives.guard import crash, start

    comm = start()
    try:
        _rank(comm, sys.argv[1:])
    except BaseException:
        crash(comm, "dpsgd.bench", CRASHED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
