"""Programs over several hosts, under each MPI. The hosts are emulated on this machine."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import collectives
import emulated_switch
from emulated_hosts import LATENCY_SECONDS, RATE, Hosts, bytes_per_second, emulated_hosts, possible
from emulated_mpi import ENVIRONMENTS, HostsError, python_of
from helpers import clean_environment

pytestmark = pytest.mark.cluster
HERE = Path(__file__).parent
SCRIPT = HERE / "emulated_hosts.py"
LENGTHS = ("0", "1", "7", "1000")
WAIT_FOR_EVER = """
from mpi4py import MPI
if MPI.COMM_WORLD.rank == 0:
    print("waiting", flush=True)
MPI.COMM_WORLD.recv(source=MPI.COMM_WORLD.rank)
"""
NEIGHBOURS = """
import os
from mpi4py import MPI
near = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
found = MPI.COMM_WORLD.gather((os.uname().nodename, near.size))
if MPI.COMM_WORLD.rank == 0:
    print(found)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := possible():
        pytest.skip(reason)
    with emulated_hosts(4) as up:
        yield up


@pytest.fixture(params=ENVIRONMENTS)
def mpi(request: pytest.FixtureRequest) -> str:
    try:
        python_of(request.param)
    except HostsError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture
def run(hosts: Hosts, mpi: str, tmp_path: Path) -> Run:
    """Run a program over the hosts, under one MPI."""

    def start(*program: str | Path, **places: int) -> subprocess.CompletedProcess[str]:
        options = {"env": clean_environment(), "cwd": tmp_path, "timeout": 280}
        return hosts.run(mpi, *program, **places, **options, capture_output=True)

    return start


def test_the_contract_holds_over_four_hosts(run: Run) -> None:
    done = run(HERE / "ranks_all_reduce.py", *LENGTHS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked" in done.stdout


def test_the_contract_holds_with_two_ranks_on_each_of_two_hosts(run: Run) -> None:
    done = run(HERE / "ranks_all_reduce.py", *LENGTHS, num_hosts=2, ranks_per_host=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked" in done.stdout


def test_ranks_share_memory_with_those_of_their_host_only(run: Run) -> None:
    done = run("-c", NEIGHBOURS, num_hosts=2, ranks_per_host=2)
    assert done.stdout == "[('h0', 2), ('h0', 2), ('h1', 2), ('h1', 2)]\n", done.stderr


def test_links_have_their_rate_each_way_and_their_latency(run: Run) -> None:
    done = run(HERE / "ranks_link.py", "4", "1048576", num_hosts=2)
    assert done.returncode == 0, done.stderr
    short, long = map(json.loads, done.stdout.splitlines())
    assert short["one_way_seconds"] >= LATENCY_SECONDS
    seconds = LATENCY_SECONDS + 1048576 / bytes_per_second(RATE)
    assert long["one_way_seconds"] == pytest.approx(seconds, rel=0.25)
    assert long["exchange_seconds"] == pytest.approx(seconds, rel=0.25)


def test_the_benchmark_finds_every_sum_right_over_four_hosts(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = run(
        "-m", "collectives.bench", "--transport", "mpi", "--bytes", "4K", "64K", "1M",
        "--repeats", "1", "--json", file,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["bytes"] for row in rows} == {4096, 65536, 1048576}
    assert {row["algorithm"] for row in rows} == {*collectives.ALGORITHMS, "mpi"}
    assert all(row["wrong"] == 0 and row["world_size"] == 4 for row in rows)


def test_the_exit_code_is_that_of_the_program(hosts: Hosts, mpi: str) -> None:
    words = [sys.executable, str(SCRIPT), "--mpi", mpi, "--hosts", "2", "--"]
    done = subprocess.run([*words, "-c", "raise SystemExit(75)"], capture_output=True, timeout=60)
    assert done.returncode == 75


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_behind_however_it_ends(
    hosts: Hosts, mpi: str, how: signal.Signals, code: int
) -> None:
    words = [sys.executable, str(SCRIPT), "--mpi", mpi, "--hosts", "2", "--", "-c", WAIT_FOR_EVER]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline() == "waiting\n"
        switch = int(Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[0])
        names = emulated_switch.names(emulated_switch.prefix_of(switch), 2)
        running = [switch, *(rank for name in names for rank in emulated_switch.processes(name))]
        assert len(running) >= 3
        ends = [os.pidfd_open(process) for process in running]
        job.send_signal(how)
        assert job.wait(timeout=30) == code
    for end in ends:
        assert select.select([end], [], [], 30)[0], "a process is left"
        os.close(end)
    assert not [name for name in names if Path("/run/netns", name).exists()]
    assert not emulated_switch.folder_of(emulated_switch.prefix_of(switch)).exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "5", "--", "-V"], "rate must look like 200mbit or 1gbit, got '5'"),
        (["--hosts", "0", "--", "-V"], "num_hosts must be in [1, 200], got 0"),
        (["--mpi", "mpich"], "needs either -- PROGRAM or --report"),
    ],
)
def test_a_wrong_argument_is_one_line(hosts: Hosts, arguments: list[str], complaint: str) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert complaint in done.stderr.splitlines()[-1]
