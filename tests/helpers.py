"""What several test files need and pytest does not provide."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import mpi

ROOT = Path(__file__).parents[1]
FULTON = ROOT.parent / "shared/data/census/fulton_ga_2000.csv"

OPEN_MPI_AS_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # Open MPI 5
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # Open MPI 4
}

Launch = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without anything that configures the program."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DPSGD_")}
    return kept | OPEN_MPI_AS_ROOT | more


def finish(
    command: list[str | Path], cwd: Path, env: dict[str, str], timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever it starts; its exit code and its output as text.

    Raises TimeoutExpired, with the output so far, after `timeout` seconds, and leaves nothing
    behind: subprocess.run would end the launcher alone, then wait for ever for ranks that still
    hold its output open. All that belongs to the command is known by a mark in its environment.
    """
    mark = uuid.uuid4().hex
    words = list(map(str, command))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:

        def output() -> tuple[str, str]:
            out.seek(0)
            errors.seek(0)
            return out.read(), errors.read()

        with subprocess.Popen(
            words, cwd=cwd, env={**env, "TEST_JOB": mark}, stdout=out, stderr=errors
        ) as job:
            try:
                code = job.wait(timeout)
            except subprocess.TimeoutExpired:
                _end_all(mark)
                raise subprocess.TimeoutExpired(words, timeout, *output()) from None
            except BaseException:
                _end_all(mark)
                raise
        return subprocess.CompletedProcess(words, code, *output())


@contextlib.contextmanager
def started(
    command: list[str | Path], cwd: Path, env: dict[str, str], **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A command that runs, both its outputs pipes; when the block ends nothing of it is left."""
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        list(map(str, command)), cwd=cwd, env={**env, "TEST_JOB": mark}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    ) as job:  # fmt: skip
        try:
            yield job
        finally:
            _end_all(mark)


def until(job: subprocess.Popen[str], beginning: str) -> None:
    """Read what the job prints up to a line that begins so."""
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"the job ended before it printed {beginning!r}")


def ranks(
    world_size: int, folder: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Start n ranks of this Python in a folder; a rank left hanging fails by the time limit."""
    try:
        line = mpi.line_here(world_size)
    except mpi.MpiError as error:
        pytest.skip(str(error))
    return finish([*line, sys.executable, *arguments], folder, clean_environment(**environment))


def _end_all(mark: str) -> None:
    """Kill the processes with this mark, and those that they start meanwhile."""
    while found := list(_marked(mark)):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _marked(mark: str) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            alive = "\nState:\tZ" not in (folder / "status").read_text()
            if alive and mark.encode() in (folder / "environ").read_bytes():
                yield int(folder.name)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line of ours on stderr; the launcher's own text may follow."""
    ours = [line for line in done.stderr.splitlines() if line.startswith("dpsgd.run: error:")]
    assert len(ours) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return ours[0]
