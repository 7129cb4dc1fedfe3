"""Who is the fastest where; and the command that tells it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives import ALGORITHMS, cost, find
from collectives.cost_table import shown_bytes, shown_seconds
from collectives.crossover import GRID, Curve, crossovers, fastest
from collectives.price import Link, predict

NAMES = [*ALGORITHMS, "tree:3", "hierarchical:ring,recursive-doubling"]
ETHERNET = cost.PLAIN_10_GBPS


def curves(world_size: int, link: Link = ETHERNET) -> list[Curve]:
    names = list(ALGORITHMS)
    return [Curve(name, ALGORITHMS[name], world_size, link) for name in names]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 9), st.integers(1, 1 << 33))
def test_a_curve_is_what_is_predicted(name: str, world_size: int, num_bytes: int) -> None:
    curve = Curve(name, find(name), world_size, ETHERNET)
    told = predict(find(name), world_size, num_bytes, ETHERNET)
    assert curve.seconds(num_bytes) == pytest.approx(told, rel=1e-12)


@pytest.mark.parametrize("world_size", [2, 4, 6, 13])
@pytest.mark.parametrize("link", [ETHERNET, Link(alpha=1e-6, beta=1e-8, gamma=1e-8)])
def test_at_a_crossover_the_winner_changes_to_the_byte(world_size: int, link: Link) -> None:
    all_curves = curves(world_size, link)
    changes = crossovers(all_curves)
    assert changes[0][0] == 1
    assert [size for size, _ in changes] == sorted({size for size, _ in changes})
    for (_, before), (size, after) in itertools.pairwise(changes):
        assert before != after
        assert fastest(all_curves, size - 1) == before
        assert fastest(all_curves, size) == after


@pytest.mark.parametrize("world_size", [4, 6])
def test_between_crossovers_nobody_is_faster_than_the_winner(world_size: int) -> None:
    all_curves = curves(world_size)
    changes = crossovers(all_curves)
    for num_bytes in GRID[::5]:
        winner = [name for size, name in changes if size <= num_bytes][-1]
        seconds = {curve.name: curve.seconds(num_bytes) for curve in all_curves}
        assert seconds[winner] == min(seconds.values())


def test_the_crossover_of_two_straight_lines_is_where_they_meet() -> None:
    """2 (alpha + n beta) = 4 alpha + 1.5 n beta: recursive doubling and halving-doubling, p = 4."""
    link = Link(alpha=1000, beta=1, gamma=0)
    pair = [Curve(n, ALGORITHMS[n], 4, link) for n in ("recursive-doubling", "halving-doubling")]
    assert crossovers(pair) == [(1, "recursive-doubling"), (4001, "halving-doubling")]


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib is not installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


SMALL = ["--world-sizes", "4", "6", "--bytes", "4K", "1M"]


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What --json says alone on standard output."""
    assert cost.main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("no_picture")
def test_every_row_is_a_prediction_and_says_where_it_comes_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = report_of(capsys, "--world-sizes", "4", "65536", "--bytes", "4K", "1M")
    assert report["link"] == {
        "alpha": 20e-6, "beta": 1 / 1.25e9, "gamma": 1 / 4e9, "overhead": 20e-6,
    }  # fmt: skip
    names = list(ALGORITHMS)
    assert len(report["rows"]) == 2 * 2 * len(names)
    for row in report["rows"]:
        told = predict(find(row["algorithm"]), row["world_size"], row["bytes"], ETHERNET)
        assert row["seconds"] == pytest.approx(told, rel=1e-12)
        assert row["source"] == {4: "walk", 65536: "closed-form"}[row["world_size"]]
    assert [one for one in report["crossovers"] if one["world_size"] == 4] == [
        {"world_size": 4, "bytes": 1, "algorithm": "recursive-doubling"},
        {"world_size": 4, "bytes": 56141, "algorithm": "halving-doubling"},
    ]


@pytest.mark.usefixtures("no_picture")
def test_people_read_the_costs_and_a_table_for_each_world(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cost.main([*SMALL, "--allreduce", "ring"]) == 0
    said = capsys.readouterr().out
    assert "a plain 10 Gb/s network: alpha 20 us a message, overhead 20 us" in said
    assert said.count("predicted time") == 2
    assert ["ring", "126", "us", "1.57", "ms"] in [line.split() for line in said.splitlines()]


@pytest.mark.usefixtures("no_picture")
def test_the_overhead_is_alpha_until_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--world-sizes", "4", "--bytes", "4K", "--allreduce", "alltoall", "--alpha", "1e-4"]
    hockney = report_of(capsys, *here)
    assert hockney["link"]["overhead"] == hockney["link"]["alpha"] == 1e-4
    logp = report_of(capsys, *here, "--overhead", "1e-6")
    saved = hockney["rows"][0]["seconds"] - logp["rows"][0]["seconds"]
    assert saved == pytest.approx(2 * (1e-4 - 1e-6))


@pytest.mark.usefixtures("no_picture")
def test_nodes_are_priced_with_links_of_two_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--world-sizes", "8", "256", "--bytes", "64K", "--ranks-per-node", "4"]
    report = report_of(capsys, *arguments, "--allreduce", "ring", "hierarchical")
    assert report["inside"]["alpha"] == cost.INSIDE_A_NODE.alpha
    priced = {(row["algorithm"], row["world_size"]) for row in report["rows"]}
    assert ("hierarchical", 8) in priced
    assert ("ring", 8) in priced
    assert ("ring", 256) not in priced  # too many messages, and no closed form for two links


def bench_file(folder: Path, **links: Link) -> Path:
    """As the bench would write it on machines that behave as the model says."""
    rows: list[dict[str, Any]] = [
        {"algorithm": name, "transport": transport, "world_size": 4, "bytes": size,
         "seconds_median": predict(find(name), 4, size, link)}
        for transport, link in links.items()
        for name in ("ring", "tree", "alltoall", "recursive-doubling")
        for size in (4096, 1024**2)
    ]  # fmt: skip
    rows.append(rows[0] | {"algorithm": "mpi", "transport": "vendor"})
    file = folder / "bench.json"
    file.write_text(json.dumps({"rows": rows}))
    return file


@pytest.mark.usefixtures("no_picture")
def test_a_fit_prices_every_transport_and_shows_its_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    links = {
        "mpi": Link(alpha=3e-6, beta=2e-10, gamma=1e-10),
        "shm": Link(alpha=1e-6, beta=0, gamma=1e-10),
    }
    file = bench_file(tmp_path, **links)
    report = report_of(capsys, *SMALL, "--fit", str(file))
    assert list(report["links"]) == ["mpi", "shm"]
    assert report["links"]["mpi"]["alpha"] == pytest.approx(3e-6)
    assert {row["transport"] for row in report["rows"]} == {"mpi", "shm"}
    assert len(report["fit"]) == 16
    assert all(abs(row["relative_error"]) < 1e-6 for row in report["fit"])
    assert cost.main([*SMALL, "--fit", str(file)]) == 0
    assert "median error 0%, largest 0%" in capsys.readouterr().out


def test_the_picture_has_a_line_for_every_algorithm_and_is_the_same_every_time(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs the extra report")
    files = []
    for folder in (tmp_path / "a", tmp_path / "b" / "c"):
        assert cost.main([*SMALL, "--out", str(folder)]) == 0
        assert (folder / "cost.png").read_bytes().startswith(b"\x89PNG")
        files.append((folder / "cost.svg").read_bytes())
    assert files[0] == files[1]
    ElementTree.fromstring(files[0])


@pytest.mark.usefixtures("no_picture")
def test_without_matplotlib_the_tables_are_there_and_one_line_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost.main([*SMALL, "--out", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    assert "pip install 'dpsgd[report]'" in said.splitlines()[-1]
    assert "6 ranks, predicted time" in said
    assert not (tmp_path / "none").exists()


def test_exposure_is_shown_instead(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, "--exposure", "--world-sizes", "4", "--allreduce", "tree")
    assert report == {
        "rows": [
            {"algorithm": "tree", "transport": "mpi", "world_size": 4, "public": 4, "ranks": 1,
             "link": 1, "colluding": 1, "ranks_that_see_one": 2},
            {"algorithm": "tree", "transport": "shm", "world_size": 4, "public": 4, "ranks": 1,
             "link": 1, "colluding": 1, "ranks_that_see_one": 4},
        ]
    }  # fmt: skip


def test_exposure_to_colluding_ranks_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "--exposure", "--world-sizes", "4", "--allreduce", "ring", "--colluding", "2"
    report = report_of(capsys, *asked)
    assert [(row["colluding"], row["ranks"]) for row in report["rows"]] == [(2, 1), (2, 1)]
    assert cost.main([*asked]) == 0
    assert "worst 2 ranks together" in capsys.readouterr().out


@pytest.mark.usefixtures("no_picture")
def test_json_goes_to_a_file_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cost.json"
    assert cost.main([*SMALL, "--json", str(file)]) == 0
    assert "predicted time" in capsys.readouterr().out
    assert json.loads(file.read_text())["rows"]


@pytest.mark.usefixtures("no_picture")
def test_a_report_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cost.main([*SMALL, "--json", "/dev/full"])
    assert end.value.code == 2
    complaint = "error: --json /dev/full cannot be written: No space left on device\n"
    assert capsys.readouterr().err.endswith(complaint)


WRONG = {
    "--world-sizes 0": "argument --world-sizes: must be an integer of at least 1, got '0'",
    "--world-sizes 1": "world sizes must be from 2 to 100000, got 1",
    "--world-sizes 100001": "world sizes must be from 2 to 100000, got 100001",
    "--exposure --world-sizes 65": "world sizes must be from 2 to 64 with --exposure, got 65",
    "--exposure --world-sizes 4 --colluding 4": "colluding must be from 1 to 3 of 4 ranks, got 4",
    "--exposure --fit few.json": "--exposure needs no costs of a link: leave out --fit",
    "--alpha 0 --beta 0 --gamma 0": "one of --alpha, --beta, --gamma must be more than 0",
    "--colluding 2": "--colluding asks who sees what: give --exposure as well",
    "--bytes 0": "argument --bytes: bytes must look like 4096, 64K or 1M, got '0'",
    "--allreduce rang": "argument --allreduce: algorithm must be one of",
    "--allreduce ring:3": "ring takes no arguments",
    "--allreduce butterfly:4,2 --world-sizes 4": "butterfly:4,2 needs at least 8 ranks, got 4",
    "--alpha=-1": "argument --alpha: must be 0 or more seconds, such as 2e-5, got '-1'",
    "--overhead 1": "overhead must be at most alpha, 2e-05 seconds, got 1.0",
    "--beta inf": "argument --beta: must be 0 or more seconds, such as 2e-5, got 'inf'",
    "--ranks-per-node 0": "argument --ranks-per-node: must be an integer of at least 1, got '0'",
    "--fit none.json": "fit must be a file to read, got none.json: No such file",
    "--fit bad.json": "fit must be JSON of collectives.bench, got bad.json: not JSON",
    "--fit empty.json": "fit must be JSON of collectives.bench, got empty.json: no rows",
    "--fit odd.json": "got odd.json: row 1 is none of collectives.bench: KeyError('transport')",
    "--fit few.json": "alpha, beta and gamma need 3 or more rows",
    "--fit few.json --alpha 1": "--fit finds the costs of a link: leave out --fit or --alpha",
    "--json nowhere/cost.json": "argument --json: must be a writable file, got 'nowhere/cost.json'",
    "--out bad.json": "out must be a folder, got bad.json: File exists",
}  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG)
def test_what_is_wrong_is_said_in_one_line(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "--out" in arguments:
        pytest.importorskip("matplotlib", reason="without it there is no folder")
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("[")
    Path("empty.json").write_text('{"rows": []}')
    Path("odd.json").write_text('{"rows": [{"algorithm": "ring"}]}')
    row = {"algorithm": "ring", "transport": "mpi", "world_size": 4, "bytes": 1}
    Path("few.json").write_text(json.dumps({"rows": [row | {"seconds_median": 1}]}))
    with pytest.raises(SystemExit) as end:
        cost.main(arguments.split())
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("python -m collectives.cost: error: ")
    assert said.err.count("\n") == 1
    assert WRONG[arguments] in said.err


def test_a_mistake_is_told_before_anything_heavy_is_loaded() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "collectives.cost", "--alpha", "much"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip() for line in imports}
    assert not loaded & {"numpy", "matplotlib", "mpi4py", "torch"}
    (said,) = (line for line in done.stderr.splitlines() if line not in imports)
    assert said.startswith("python -m collectives.cost: error: argument --alpha")


def test_numbers_are_shown_as_people_write_them() -> None:
    seconds = [0, 3e-9, 56.13e-6, 999.6e-6, 1.234, 12345]
    assert [shown_seconds(one) for one in seconds] == [
        "0 ns", "3 ns", "56.1 us", "1 ms", "1.23 s", "12345 s",
    ]  # fmt: skip
    assert [shown_bytes(one) for one in (1, 4096, 4097, 1 << 20, 3 << 30)] == [
        "1", "4K", "4097", "1M", "3G",
    ]  # fmt: skip
