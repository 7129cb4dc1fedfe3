"""Train a private model on all ranks: mpirun -np 4 python -m dpsgd.run --allreduce ring

Order matters here. Usage and configuration are checked before numpy, torch or MPI are imported and
reported once, by the rank that the launcher calls 0; the others exit silently. Then the world is
compared with the one that the launcher meant. From then on ranks agree on foreseen errors and end
with one code; anything unforeseen on any rank ends the whole job with code 70.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from collectives.guard import WorldError, crash, interrupted, start
from dpsgd import options
from dpsgd.allocator import keep_freed_memory
from dpsgd.arguments import Asked, check_json, parse, write_json
from dpsgd.config import Config
from dpsgd.errors import CRASHED, INTERRUPTED, LaunchError, UserError
from launch import world as launched
from preprocess.output import say

STOPPED = "dpsgd.run: interrupted; steps that are reserved in the ledger stay charged"

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpi4py import MPI

    from dpsgd import trainer
    from dpsgd.data import Dataset
    from dpsgd.show import Show


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code of this rank."""
    started = time.perf_counter()
    speaks = launched.launched_rank() == 0
    try:
        if launched.under_torchrun():
            raise LaunchError("started by torchrun; start with mpirun -np N python -m dpsgd.run")
        stdout = sys.stdout if speaks else io.StringIO()
        with contextlib.redirect_stdout(stdout):  # --help and --version print, once
            asked = parse(sys.argv[1:] if arguments is None else arguments)
        if asked.origins is not None:
            return _print_config(asked) if speaks else 0
        threads = launched.share_cores()
        comm = _start_mpi()
    except UserError as error:
        return _report(error) if speaks else 0
    except SystemExit as done:
        return int(done.code or 0)
    except KeyboardInterrupt:
        if speaks:
            print(STOPPED, file=sys.stderr, flush=True)
        return INTERRUPTED
    try:
        return _train(asked, comm, threads, started)
    except UserError as error:  # agreed upon by all ranks
        return _report(error) if comm.rank == 0 else error.exit_code
    except KeyboardInterrupt:
        return interrupted(comm, STOPPED, INTERRUPTED)
    except BaseException:
        crash(comm, "dpsgd.run", CRASHED)


def _print_config(asked: Asked) -> int:
    assert asked.origins is not None  # the caller looked
    if asked.json_to is None:
        say(options.as_toml(asked.origins), sys.stdout)
    else:
        check_json(asked.json_to, asked.file)
        write_json(asked.json_to, {"rows": asked.origins})
    return 0


def _start_mpi() -> MPI.Intracomm:
    try:
        return start()
    except WorldError as error:
        raise LaunchError(str(error)) from None


def _train(asked: Asked, comm: MPI.Intracomm, threads: int, started: float) -> int:
    from collectives.guard import on_root
    from collectives.transports.mpi import library_version
    from dpsgd import data, models, run_folder, trainer

    if comm.rank == 0:
        from dpsgd.show import Show
    keep_freed_memory()
    config, json_to = asked.config, asked.json_to
    needed = (asked.file, config.data, config.ledger_of(config.data), config.out)
    on_root(comm, UserError, lambda: check_json(json_to, *needed))
    dataset = data.load_dataset(config.data, comm, models.inputs_of(config.model))
    folder = _folder_of(config)
    made = on_root(comm, UserError, lambda: run_folder.create(folder, _num_bytes(config, dataset)))
    progress = None
    try:
        if comm.rank == 0:
            show = Show(config.progress, sys.stderr if json_to == "-" else sys.stdout)
            progress = _progress(config, show, folder, started)
        result = trainer.train(config, dataset, comm, progress)
    except BaseException:
        if comm.rank == 0:
            run_folder.discard(folder, made)  # only if nothing is in it
        raise
    if comm.rank == 0:
        show.stop()
        environment = run_folder.environment(comm.size, library_version(), threads)
        run_folder.append_metrics(folder, {"step": result.run.steps, **result.metrics})
        run_folder.save(folder, result, environment)
        show.result(result, folder)
        if json_to is not None:
            write_json(json_to, result.to_json())
    return 0


def _folder_of(config: Config) -> Path:
    """Where the run goes; only rank 0 uses it."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return config.out or Path("runs") / f"{stamp}-{os.getpid()}"


def _num_bytes(config: Config, dataset: Dataset) -> int:
    from dpsgd import run_folder, trainer

    return 4 * trainer.model_of(config, dataset).num_params + run_folder.SPARE_BYTES


def _progress(
    config: Config, show: Show, folder: Path, started: float
) -> Callable[[trainer.Progress], None]:
    """Say what begins; gives what rank 0 calls after each step."""
    from dpsgd import run_folder
    from dpsgd.show import plan_lines

    if target := config.resolved_epsilon():
        show.line(f"calibrating the noise for epsilon {target:g} at delta {config.delta:g}")
    elif config.private:
        show.line(f"computing epsilon of the noise at delta {config.delta:g}")

    def progress(now: trainer.Progress) -> None:
        if now.step == 1:
            for line in plan_lines(now.run, now.all_reduce, now.engine):
                show.line(line)
            show.line(f"first step {time.perf_counter() - started:.1f} s after the start")
        if facts := show.progress(now):
            run_folder.append_metrics(folder, facts)

    return progress


def _report(error: UserError) -> int:
    print(f"dpsgd.run: error: {error}", file=sys.stderr, flush=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
