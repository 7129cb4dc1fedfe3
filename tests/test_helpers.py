"""The helpers that other tests rely on when something hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import clean_environment, finish
from launch import mpi

HANGS = """
import os, subprocess, sys, time
from mpi4py import MPI
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(f"rank-{MPI.COMM_WORLD.rank}", "w").write(str(os.getpid()))
print("waiting", flush=True)
MPI.COMM_WORLD.recv(source=MPI.COMM_WORLD.rank)
"""


def is_alive(process: int) -> bool:
    """Whether it exists, and not only as a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.mpi
def test_of_a_command_that_takes_too_long_nothing_is_left(tmp_path: Path) -> None:
    """Neither the ranks nor what they started, though all of them hold the output open."""
    try:
        line = mpi.line_here(2)
    except mpi.MpiError as error:
        pytest.skip(str(error))
    words = ["sh", "-c", '"$@"; true', "-", *line, sys.executable, "-c", HANGS]
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        finish(words, tmp_path, clean_environment(), timeout=8)
    assert caught.value.stdout.split("waiting") in (["", "\n", "\n"], ["", "", "\n\n"])
    ranks = [int(file.read_text()) for file in tmp_path.glob("rank-*")]
    assert len(ranks) == 2
    deadline = time.monotonic() + 20  # a killed process takes a moment to end
    while left := [rank for rank in ranks if is_alive(rank)]:
        assert time.monotonic() < deadline, f"processes {left} are left"
        time.sleep(0.01)


def test_exit_code_and_both_outputs_come_back(tmp_path: Path) -> None:
    script = "import sys; print('said'); print('complained', file=sys.stderr); sys.exit(3)"
    done = finish([sys.executable, "-c", script], tmp_path, clean_environment())
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "complained\n")
