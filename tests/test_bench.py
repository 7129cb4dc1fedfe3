"""The benchmark of the steps, the main job and the profile: small tries of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dpsgd import engines
from dpsgd.bench import __main__ as bench
from dpsgd.bench import job as bench_job
from dpsgd.bench import show as bench_show
from dpsgd.bench.workloads import WORKLOADS
from dpsgd.errors import ConfigError
from helpers import Launch

COLUMNS = {
    "workload", "engine", "batch_size", "threads", "ms_per_step", "ratio_to_sgd",
    "ratio_to_own_plain",
}  # fmt: skip
SMALL = """
import json, sys
from collectives.guard import start
from dpsgd.bench import floor as bench_floor, parts as bench_parts, steps as bench_steps
from dpsgd.bench.workloads import WORKLOADS, Workload
comm, small = start(), WORKLOADS["mlp64-256"]
small = Workload(name="small", batch_size=8, make=small.make)
image = Workload(name="image", batch_size=2, make=WORKLOADS["cnn-256"].make)
found = {
    "rows": bench_steps.measure(small, ["fused", "bookkeeping"], 1, comm, 0.05),
    "image": bench_steps.measure(image, ["fused"], 1, comm, 0.05),
    "breakdown": [bench_parts.breakdown(one, comm, 0.05) for one in (small, image)],
    "floor": bench_floor.floor(small, 0.05),
    "products": bench_floor.products(small),
    "attention": len(bench_floor.products(WORKLOADS["transformer-64"])),
}
print(json.dumps(found))
"""
NO_TORCH = """
import sys
from dpsgd.bench import __main__ as bench
code = bench.main(sys.argv[1:])
print(code, [name for name in ("torch", "numpy", "mpi4py") if name in sys.modules])
"""


@pytest.mark.mpi
def test_engines_are_compared_on_the_same_step(python: Launch, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the baseline is PyTorch's")
    program = tmp_path / "small.py"
    program.write_text(SMALL)
    done = python("-W", "error", program, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows, notes = found["rows"]
    assert [row["engine"] for row in rows] == ["torch-sgd", "plain", "fused", "bookkeeping"]
    assert notes[1:] == ["plain is fused without clipping and noise"]
    for row in rows:
        assert set(row) >= COLUMNS and row["ms_per_step"] > 0 and row["steps"] >= 2
        for key, base in (("ratio_to_sgd", rows[0]), ("ratio_to_own_plain", rows[1])):
            assert row[key] == pytest.approx(row["ms_per_step"] / base["ms_per_step"])
    rows, notes = found["image"]
    assert [row["engine"] for row in rows] == ["torch-sgd", "plain"]
    assert notes[-1].startswith("left out: engine fused is for dense models")
    for one, engine in zip(found["breakdown"], ("fused", "bookkeeping"), strict=True):
        assert one["engine"] == engine
        assert min(one["us"][part] for part in one["us"] if part != "other") > 0
    assert found["floor"]["num_products"] == len(found["products"]) == 8
    assert found["attention"] == 2 * (4 * 3 + 6) + 3
    three_maps = 3 * (16 * 64 + 64 * 64 + 64) - 16 * 64  # no gradient of the features
    assert sum(m * k * n for _, m, k, n in found["products"]) == 8 * three_maps


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--workloads", "mlp64-265"], "did you mean mlp64-256?"),
        (["--engines", "fusd"], "did you mean fused?"),
        (["--enginse", "fused"], "did you mean --engines?"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--rows", "10"], "--rows must be given with --job"),
        (["--job", "--rows", "10"], "--batch-size must be at most 10, got 256"),
        (["--json", "no/such/file"], "--json must be a writable file"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    python: Launch, words: list[str], expected: str
) -> None:
    done = python("-c", NO_TORCH, *words)
    assert done.stdout.split() == ["2", "[]"], done.stderr
    assert len(done.stderr.splitlines()) == 1 and expected in done.stderr


def test_every_engine_and_workload_can_be_asked_for() -> None:
    assert set(bench.ENGINES) >= set(engines.NAMES)
    asked = bench.parse(["--engines", *bench.ENGINES, "--workloads", *WORKLOADS])
    assert asked.engines == list(bench.ENGINES) and asked.workloads == list(WORKLOADS)
    with pytest.raises(ConfigError, match="must be one of torch-sgd, plain"):
        bench.parse(["--engines", "nothing-like-it"])


@pytest.mark.mpi
def test_the_main_job_reports_start_epoch_and_phases() -> None:
    row = bench_job.measure("plain", num_ranks=2, num_rows=4000, batch_size=200)
    assert (row["job"], row["ranks"], row["num_examples"], row["steps"]) == ("plain", 2, 4000, 20)
    assert row["seconds_in_all"] > row["seconds_to_first_step"] > row["seconds_for_data"] > 0
    assert row["examples_per_second"] == pytest.approx(4000 / row["seconds"])
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert row["shares"]["communicate"] > 0
    assert not row["torch_loaded"], "the fused engine does without"
    assert len(bench_show.job(row)) == len(bench_show.JOB_HEAD)


def test_a_job_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_job, "launcher", lambda ranks: [sys.executable, "-c", "1/0"])
    with pytest.raises(bench_job.JobError, match=r"(?s)ended with code 1.*ZeroDivisionError"):
        bench_job.measure("plain", num_ranks=2, num_rows=4000, batch_size=200)


@pytest.mark.mpi
def test_a_profile_is_a_table_and_a_trace(mpirun: Launch, tmp_path: Path) -> None:
    done = mpirun(
        *(2, "-W", "error", "-m", "dpsgd.profile", "--steps", "5", "--top", "7"),
        *("--hidden", "8", "--no-privacy", "--sample-rate", "0.0001", "--output", "out"),
    )
    assert done.returncode == 0, done.stderr
    hot = json.loads((tmp_path / "out/hot.json").read_text())
    assert (hot["steps"], hot["world_size"], len(hot["rows"])) == (5, 2, 7)
    assert hot["config"]["hidden"] == [8] and hot["config"]["batch_size"] is None
    assert sum(row["share"] for row in hot["rows"]) <= 1
    for row in hot["rows"]:
        assert row["function"] in done.stdout
    events = json.loads((tmp_path / "out/trace.json").read_text())["traceEvents"]
    for rank in range(2):
        spans = [event for event in events if event["ph"] == "X" and event["pid"] == rank]
        steps = [span for span in spans if span["name"].startswith("step ")]
        assert [step["name"] for step in steps] == [f"step {n}" for n in range(1, 6)]
        end = max(step["ts"] + step["dur"] for step in steps)
        assert {"sample", "compute", "noise", "communicate", "update"} <= {
            span["name"] for span in spans
        }
        assert all(span["ts"] >= 0 and span["ts"] + span["dur"] <= end + 1 for span in spans)


def test_a_profile_refuses_what_it_cannot_do(python: Launch) -> None:
    for words, expected in (
        (["--steps", "1"], "--steps must be at least 2, got 1"),
        (["--hiden", "8"], "did you mean --hidden?"),
        (["--engine", "fusd"], "did you mean fused?"),
    ):
        done = python("-m", "dpsgd.profile", *words)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and expected in done.stderr
