"""The benchmark of the all-reduces, and the choice that `auto` makes from its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import collectives
from collectives.measure import Route, routes
from helpers import Launch, clean_environment, finish
from launch import mpi

pytestmark = pytest.mark.mpi
QUICK = ("-m", "collectives.bench", "--repeats", "1")
SHOW = """
import sys, collectives
from collectives.transports.mpi import world
with collectives.make_plan("auto", world(), int(sys.argv[1]), sys.argv[2]) as plan:
    if world().rank == 0:
        print(plan.name, plan.transport, plan.choice, sep="; ")
"""


def bench(mpirun: Launch, world_size: int, tmp_path: Path, *arguments: str) -> list[dict]:
    """Rows of a short run, which leaves its table under tmp_path."""
    file = tmp_path / "rows.json"
    done = mpirun(world_size, *QUICK, *arguments, "--json", file, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())["rows"]


def test_there_is_a_row_for_every_all_reduce_transport_and_size(
    mpirun: Launch, tmp_path: Path
) -> None:
    rows = bench(mpirun, 3, tmp_path, "--bytes", "4K", "100000")
    missing = {name for name, one in collectives.VENDORS.items() if one.missing()}
    expected = {(name, way) for name in collectives.ALGORITHMS for way in collectives.TRANSPORTS}
    expected |= {(name, "vendor") for name in collectives.VENDORS if name not in missing}
    for size in (4096, 100000):
        found = [(r["algorithm"], r["transport"]) for r in rows if r["bytes"] == size]
        assert len(found) == len(set(found)) and set(found) == expected
    for row in rows:
        assert row["wrong"] == 0
        assert row["world_size"] == 3
        assert row["busbw_GBps"] == pytest.approx(row["algbw_GBps"] * 4 / 3)
        assert row["algbw_GBps"] == pytest.approx(row["bytes"] / row["seconds_median"] / 1e9)
        assert (row["memory_limit_fraction"] is not None) == (row["transport"] == "shm")
        assert 0 < row["ratio_to_native"] <= (1 if row["algorithm"] == "mpi" else 1e9)


@pytest.mark.parametrize("dtype", ["uint64", "float64"])
def test_every_type_can_be_measured(mpirun: Launch, tmp_path: Path, dtype: str) -> None:
    rows = bench(
        mpirun, 2, tmp_path, "--bytes", "100", "--dtype", dtype, "--allreduce", "butterfly:2"
    )
    assert {(r["algorithm"], r["dtype"], r["bytes"], r["wrong"]) for r in rows} == {
        ("butterfly:2", dtype, 96, 0), ("mpi", dtype, 96, 0),
    }  # fmt: skip


def test_transports_can_be_chosen() -> None:
    everything, notes = routes(["all"], ["all"], one_node=True)
    assert Route("ring", "shm") in everything and Route("mpi", "vendor") not in everything
    assert {route.transport for route in routes(["all"], ["shm"], one_node=True)[0]} == {"shm"}
    assert routes(["ring", "ring"], ["mpi"], one_node=True) == ([Route("ring", "mpi")], [])
    apart, notes = routes(["ring", "hierarchical"], ["all"], one_node=False)
    assert [(r.name, r.transport) for r in apart] == [
        ("ring", "mpi"), ("hierarchical", "mpi"), ("hierarchical", "shm"),
    ]  # fmt: skip
    assert len(notes) == 1


@pytest.mark.parametrize(("megabytes", "fits"), [(24, False), (44, True)])
def test_little_shared_memory_costs_rows_not_the_benchmark(
    tmp_path: Path, megabytes: int, fits: bool
) -> None:
    """As in a container: 2 buffers of 16 MB and what MPI needs itself; never room for the limit."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("a file system cannot be mounted here (unshare --mount, as root)")
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm && exec "$@"'
    job = ["--allreduce", "ring", "--bytes", "4K", "16M", "--json", "rows.json"]
    words = [*mpi.line_here(2), sys.executable, *QUICK, *job]
    environment = clean_environment(XDG_CACHE_HOME=str(tmp_path))
    done = finish(["unshare", "--mount", "sh", "-c", mount, "-", *words], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rows.json").read_text())["rows"]
    large = [row for row in found if row["bytes"] == 16 * 1024**2]
    assert {row["transport"] for row in large} == {"mpi", "vendor"} | ({"shm"} if fits else set())
    assert all(row["memory_limit_fraction"] is None for row in large)
    assert ("# left out: ring: transport shm needs 33554432 bytes" in done.stdout) != fits


def test_json_without_a_file_is_alone_on_standard_output(mpirun: Launch, tmp_path: Path) -> None:
    done = mpirun(
        2, *QUICK, "--allreduce", "ring", "--bytes", "64", "--json", XDG_CACHE_HOME=str(tmp_path)
    )
    assert {row["algorithm"] for row in json.loads(done.stdout)["rows"]} == {"ring", "mpi"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bytes", "4X"], "bytes must look like 4096, 64K or 1M, got '4X'"),
        (["--allreduce", "rnig"], "got 'rnig'"),
        (["--allreduce", "auto"], "auto is chosen by this benchmark"),
        (["--allreduce", "butterfly:x"], "got 'butterfly:x'"),
        (["--allreduce", "butterfly:4,2"], "butterfly:4,2 needs at least 8 ranks, got 2"),
        (["--transport", "tcp"], "invalid choice: 'tcp'"),
        (["--repeats", "0"], "must be an integer of at least 1, got '0'"),
    ],
)
def test_wrong_arguments_are_reported_once(
    mpirun: Launch, arguments: list[str], complaint: str
) -> None:
    done = mpirun(2, "-m", "collectives.bench", *arguments)
    assert done.returncode == 2
    assert done.stderr.count(complaint) == 1


def chosen(mpirun: Launch, tmp_path: Path, length: int = 1000, dtype: str = "int32") -> list[str]:
    """Name, transport and reason of `auto` on two ranks."""
    program = tmp_path / "show.py"
    program.write_text(SHOW)
    done = mpirun(2, program, str(length), dtype, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("; ", 2)


def change_table(tmp_path: Path, seconds: dict[tuple[str, str], float]) -> None:
    """Let the table of the only place say that these routes take so long, and all others 1 s."""
    (table,) = (tmp_path / "dpsgd").glob("all-reduce-*.json")
    content = json.loads(table.read_text())
    for row in content["rows"]:
        row["seconds_median"] = seconds.get((row["algorithm"], row["transport"]), 1.0)
    table.write_text(json.dumps(content))


def test_auto_takes_what_was_the_fastest_here(mpirun: Launch, tmp_path: Path) -> None:
    name, transport, reason = chosen(mpirun, tmp_path)
    assert transport == "shm" and name in collectives.ALGORITHMS
    assert "by the cost model; python -m collectives.bench measures instead" in reason
    bench(mpirun, 2, tmp_path, "--bytes", "4K", "--allreduce", "ring", "tree")
    assert "by the cost model" in chosen(mpirun, tmp_path)[2], "others may be faster"
    bench(mpirun, 2, tmp_path, "--bytes", "4K", "64K")
    change_table(tmp_path, {("tree", "mpi"): 1e-3, ("ring", "shm"): 2e-3})
    name, transport, reason = chosen(mpirun, tmp_path)
    assert (name, transport) == ("tree", "mpi")
    assert "1e+03 us expected (measured here with collectives.bench" in reason
    change_table(tmp_path, {("mpi", "vendor"): 1e-4, ("tree", "mpi"): 1e-3})
    assert chosen(mpirun, tmp_path)[:2] == ["mpi", "vendor"]
    floats = chosen(mpirun, tmp_path, dtype="float32")  # MPI does not promise equal bits
    assert floats[:2] == ["tree", "mpi"]
    far = chosen(mpirun, tmp_path, length=2**23)  # 32 MB, measured up to 64 KB
    assert "cost model" in far[2]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"rows": 3}',
        '{"rows": [{"algorithm": "ring"}]}',
        '{"rows": [{"algorithm": "ring", "transport": "shm", "bytes": 4096, "seconds_median": 1}]}',
        '{"rows": [{"algorithm": "ring", "transport": "shm", "bytes": "4K", "dtype": "int32", '
        '"seconds_median": 1}]}',
    ],
)
def test_a_damaged_table_is_as_good_as_none(mpirun: Launch, tmp_path: Path, content: str) -> None:
    bench(mpirun, 2, tmp_path, "--bytes", "4K", "--allreduce", "ring")
    (table,) = (tmp_path / "dpsgd").glob("all-reduce-*.json")
    table.write_text(content)
    assert "cost model" in chosen(mpirun, tmp_path)[2]


def test_rows_of_a_wrong_sum_are_not_kept(tmp_path: Path, monkeypatch) -> None:
    from collectives import select

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = select.Place(hosts=("a", "a"), nodes=(0, 0), library="x")
    row = {"algorithm": "ring", "transport": "shm", "bytes": 4, "dtype": "int32",
           "seconds_median": 1.0, "wrong": 0}  # fmt: skip
    select.record(place, [row, row | {"algorithm": "tree", "wrong": 3}])
    assert [one["algorithm"] for one in select._load(place)] == ["ring"]
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(select.Path, "expanduser", raise_runtime_error)
    assert select._load(place) == []
    assert "there is no home folder" in select.record(place, [row])


def raise_runtime_error(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(("num_hosts", "per_host"), [(4, 1), (4096, 1), (2, 2), (64, 8)])
def test_the_model_chooses_for_any_number_of_hosts(num_hosts: int, per_host: int) -> None:
    from collectives import select

    ranks = num_hosts * per_host
    nodes = tuple(rank // per_host for rank in range(ranks))
    place = select.Place(hosts=tuple(map(str, nodes)), nodes=nodes, library="x")
    ways = ("shm", "mpi") if per_host > 1 else ("mpi",)
    small, large = (select._modelled(place, size, ways) for size in (4, 2**24))
    assert large.name in ("halving-doubling", "butterfly", "hierarchical", "ring")
    assert small.name in collectives.ALGORITHMS


def test_a_cache_that_cannot_be_written_does_no_harm(mpirun: Launch, tmp_path: Path) -> None:
    (tmp_path / "dpsgd").write_text("a file where a folder should be")
    done = mpirun(2, *QUICK, "--allreduce", "ring", "--bytes", "64", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0
    assert "not kept for --allreduce auto" in done.stdout
