"""The table of all-reduces over real MPI ranks, and the benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import collectives
from helpers import Launch

pytestmark = pytest.mark.mpi
HERE = Path(__file__).parent


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_the_contract_holds_over_real_ranks(mpirun: Launch, world_size: int) -> None:
    done = mpirun(world_size, HERE / "ranks_all_reduce.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{len(collectives.NAMES) * 6 * 4} checked\n"
    assert done.stderr == ""  # MPICH complains about requests that were not freed


def test_the_benchmark_writes_a_row_for_every_all_reduce_and_size(
    mpirun: Launch, tmp_path: Path
) -> None:
    done = mpirun(
        3, "-m", "collectives.bench", "--bytes", "4K", "100000", "--repeats", "1",
        "--json", tmp_path / "rows.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["bytes"] for row in rows] == [4096] * 4 + [100000] * 4
    assert {row["algorithm"] for row in rows} == set(collectives.NAMES)
    for row in rows:
        assert row["wrong"] == 0
        assert row["world_size"] == 3
        assert row["busbw_GBps"] == pytest.approx(row["algbw_GBps"] * 4 / 3)
        assert row["algbw_GBps"] == pytest.approx(row["bytes"] / row["seconds_median"] / 1e9)
    native = [row for row in rows if row["transport"] == "vendor"]
    assert [row["ratio_to_native"] for row in native] == [1.0, 1.0]


def test_json_without_a_file_is_alone_on_standard_output(mpirun: Launch) -> None:
    done = mpirun(
        2, "-m", "collectives.bench", "--allreduce", "ring", "--bytes", "64", "--repeats", "1",
        "--json",
    )  # fmt: skip
    assert {row["algorithm"] for row in json.loads(done.stdout)["rows"]} == {"ring", "mpi"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bytes", "4X"], "bytes must look like 4096, 64K or 1M, got '4X'"),
        (["--allreduce", "rnig"], "got 'rnig'"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_reported_once(
    mpirun: Launch, arguments: list[str], complaint: str
) -> None:
    done = mpirun(2, "-m", "collectives.bench", *arguments)
    assert done.returncode == 2
    assert done.stderr.count(complaint) == 1
