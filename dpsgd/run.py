"""Train a private model on all ranks: mpirun -np 4 python -m dpsgd.run --allreduce ring

Order matters here. Usage and configuration are checked before numpy, torch or MPI are imported and
reported once, by the rank that the launcher calls 0; the others exit silently. Then the world is
compared with the one that the launcher meant. From then on ranks agree on foreseen errors and end
with one code; anything unforeseen on any rank ends the whole job with code 70.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import dpsgd
from collectives.guard import WorldError, crash, start
from dpsgd import options
from dpsgd.config import Config, nearest
from dpsgd.errors import CRASHED, INTERRUPTED, ConfigError, LaunchError, UserError
from launch import world as launched

if TYPE_CHECKING:
    from mpi4py import MPI

    from dpsgd.data import Dataset


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, and names the nearest valid flag."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parser() -> argparse.ArgumentParser:
    """One flag for each field of Config."""
    made = _Parser(
        prog="python -m dpsgd.run",
        description="Differentially private training over MPI.",
        epilog="Every option can also stand in a TOML or JSON file (--config) or in the "
        "environment (DPSGD_MAX_GRAD_NORM=1); the command line is stronger than both.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"dpsgd {dpsgd.__version__}")
    made.add_argument("--config", type=Path, metavar="FILE", help="options in TOML or JSON")
    made.add_argument(
        "--print-config",
        action="store_true",
        help="show every option and where its value comes from, in the form of --config; then end",
    )
    made.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write run.json to FILE, or alone to standard output",
    )
    for one in fields(Config):
        flag = "--" + one.name.replace("_", "-")
        text = one.metadata["help"].replace("%", "%%")
        if one.metadata["kind"] == "true|false":
            made.add_argument(flag, action="store_true", default=None, help=text)
            continue
        if one.default is not None:
            text += f" (default {options.shown(one.default)})"
        made.add_argument(flag, metavar=one.metadata["kind"].upper(), help=text)
    return made


def parse(arguments: list[str]) -> tuple[Config, str | None]:
    """The configuration and where JSON goes. Raises ConfigError.

    Ends the process, as --help does, after --print-config.
    """
    made = parser()
    found, unknown = made.parse_known_args(_with_negative_numbers(arguments))
    if unknown:
        flags = [flag for action in made._actions for flag in action.option_strings]
        hint = nearest(unknown[0].split("=")[0], flags)
        raise ConfigError(f"unknown argument {unknown[0]}{hint}")
    given = {
        name: options.parse(name, value) if isinstance(value, str) else value
        for name, value in vars(found).items()
        if name in options.NAMES and value is not None
    }
    gathered = options.gather(found.config, os.environ, given)
    config = Config(**{name: one.value for name, one in gathered.items()})
    if found.print_config:
        _print_config(options.rows(config, gathered), found.json)
        raise SystemExit(0)
    return config, found.json


def _with_negative_numbers(arguments: list[str]) -> list[str]:
    """`--delta -1e-5` as one word: argparse takes the number for a flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--") and re.match(r"-\.?\d", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _print_config(table: list[dict[str, Any]], json_to: str | None) -> None:
    if json_to is None:
        print(options.as_toml(table))
    else:
        _check_writable(json_to)
        _write_json(json_to, {"rows": table})


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code of this rank."""
    started = time.perf_counter()
    speaks = launched.launched_rank() == 0
    try:
        if launched.under_torchrun():
            raise LaunchError("started by torchrun; start with mpirun -np N python -m dpsgd.run")
        stdout = sys.stdout if speaks else io.StringIO()
        with contextlib.redirect_stdout(stdout):  # --help and --version print, once
            config, json_to = parse(sys.argv[1:] if arguments is None else arguments)
        threads = launched.share_cores()
        comm = _start_mpi()
    except UserError as error:
        return _report(error) if speaks else 0
    except SystemExit as done:
        return int(done.code or 0)
    except KeyboardInterrupt:
        return _interrupted(speaks)
    try:
        return _train(config, json_to, comm, threads, started)
    except UserError as error:  # agreed upon by all ranks
        return _report(error) if comm.rank == 0 else error.exit_code
    except KeyboardInterrupt:
        os._exit(_interrupted(speaks))  # without MPI_Finalize, which would wait for other ranks
    except BaseException:
        crash(comm, "dpsgd.run", CRASHED)


def _interrupted(speaks: bool) -> int:
    if speaks:
        message = "interrupted; steps that are reserved in the ledger stay charged"
        print(f"dpsgd.run: {message}", file=sys.stderr, flush=True)
    return INTERRUPTED


def _start_mpi() -> MPI.Intracomm:
    try:
        return start()
    except WorldError as error:
        raise LaunchError(str(error)) from None


def _train(
    config: Config, json_to: str | None, comm: MPI.Intracomm, threads: int, started: float
) -> int:
    from collectives.guard import on_root
    from collectives.transports.mpi import library_version
    from dpsgd import data, run_folder, trainer

    on_root(comm, UserError, lambda: _check_writable(json_to))
    dataset = data.load_dataset(config.data, comm)
    folder = on_root(comm, UserError, lambda: _make_folder(config, dataset))
    progress = None
    if comm.rank == 0:
        from dpsgd.show import Show, plan_lines

        show = Show(config.progress, sys.stderr if json_to == "-" else sys.stdout)
        if target := config.resolved_epsilon():
            show.line(f"calibrating the noise for epsilon {target:g} at delta {config.delta:g}")
        elif not config.no_privacy:
            show.line(f"computing epsilon of the noise at delta {config.delta:g}")

        def progress(now: trainer.Progress) -> None:
            if now.step == 1:
                for line in plan_lines(now.run, config.allreduce, config.engine):
                    show.line(line)
                show.line(f"first step {time.perf_counter() - started:.1f} s after the start")
            if facts := show.progress(now):
                run_folder.append_metrics(folder, facts)

    try:
        result = trainer.train(config, dataset, comm, progress)
    except BaseException:
        if comm.rank == 0:
            run_folder.discard(folder)  # only if nothing is in it
        raise
    if comm.rank == 0:
        show.stop()
        environment = run_folder.environment(comm.size, library_version(), threads)
        run_folder.append_metrics(folder, {"step": result.run.steps, **result.metrics})
        run_folder.save(folder, result, environment)
        show.result(result, folder)
        if json_to is not None:
            _write_json(json_to, result.to_json())
    return 0


def _check_writable(json_to: str | None) -> None:
    """What would otherwise fail after the work is done."""
    if json_to in (None, "-"):
        return
    file = Path(json_to)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"--json must be a writable file, got {json_to}")


def _make_folder(config: Config, dataset: Dataset) -> Path:
    from dpsgd import models, run_folder

    model = models.build(config.model, dataset.num_features, config.hidden)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    folder = config.out or Path("runs") / f"{stamp}-{os.getpid()}"
    run_folder.create(folder, 4 * model.num_params + run_folder.SPARE_BYTES)
    return folder


def _write_json(json_to: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, allow_nan=False, indent=2)
    try:
        if json_to == "-":
            print(text, flush=True)
        else:
            Path(json_to).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {json_to} cannot be written: {error.strerror}") from None


def _report(error: UserError) -> int:
    print(f"dpsgd.run: error: {error}", file=sys.stderr, flush=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
