"""The main job over real ranks: what it leaves behind, what it promises, and how it fails."""

from __future__ import annotations

import json
import math
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import collectives
from helpers import ROOT, Launch, clean_environment, finish, one_line

pytestmark = pytest.mark.mpi
HERE = Path(__file__).parent
RUN = ("-m", "dpsgd.run")


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{path.name} holds {constant}, which is not JSON")

    loaded: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return loaded


def run_json(done: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    return strict_json(folder / "run.json")


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_the_verbatim_command_trains_on_the_demos_data(
    mpirun: Launch, tmp_path: Path, dataset: Path, world_size: int
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo").symlink_to(dataset)
    ledger = tmp_path / "ledger.jsonl"  # the data set is shared between tests
    done = mpirun(world_size, *RUN, DPSGD_LEDGER=str(ledger))
    assert done.stderr == "", "only our own lines may be on stderr, and none in a good run"
    (folder,) = (tmp_path / "runs").iterdir()
    run = run_json(done, folder)
    assert run["world_size"] == world_size
    assert (run["config"]["allreduce"], run["steps"]) == ("auto", 600)
    assert run["allreduce"] in collectives.NAMES
    assert run["transport"] in (*collectives.TRANSPORTS, "vendor")
    assert "all-reduce: " in done.stdout
    assert run["privacy"]["private"] is True
    assert 2.99 < run["privacy"]["epsilon"] <= 3
    assert run["metrics"]["accuracy"] > run["metrics"]["majority_accuracy"] + 0.03
    assert set(run["phases"]) == {"sample", "compute", "noise", "communicate", "update"}
    expected = run["privacy"]["sample_rate"] * run["privacy"]["num_examples"]
    assert run["examples_per_second"] == pytest.approx(expected * 600 / run["seconds"])
    reserved = [json.loads(line).get("events", 0) for line in ledger.read_text().splitlines()]
    assert sum(reserved) == 600


def test_the_demo_shows_nothing_but_our_own_lines(tmp_path: Path) -> None:
    """`make demo` in an empty folder, with this environment in place of a new one."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    command = ["make", "-f", ROOT / "Makefile", "-o", ".venv/.core", "demo"]
    done = finish(command, tmp_path, clean_environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "25,000 records read" in done.stdout
    assert "differentially private" in " ".join(done.stdout.split())
    assert (tmp_path / "data/demo.ledger.jsonl").exists()


def test_a_run_folder_is_complete_and_its_owners_only(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    out = tmp_path / "deep/er/run"
    done = mpirun(2, *RUN, "--data", dataset, "--out", out, "--ledger", tmp_path / "l", "--steps",
                  "30", "--noise-multiplier", "2")  # fmt: skip
    run = run_json(done, out)
    names = {"config.json", "environment.json", "metrics.jsonl", "model.safetensors",
             "privacy.json", "privacy.md", "run.json", "schema.json"}  # fmt: skip
    assert {file.name for file in out.iterdir()} == names
    for file in out.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert strict_json(out / "privacy.json") == run["privacy"]
    assert strict_json(out / "config.json") == run["config"]
    shown = math.ceil(run["privacy"]["epsilon"] * 1000) / 1000
    assert f"({shown:.4g}, 1e-05)-differentially private" in (out / "privacy.md").read_text()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    allowed = {"step", "seconds", "examples_per_second", "epsilon"}
    assert all(set(line) == allowed for line in lines[:-1]), "progress shows public facts only"
    again = mpirun(2, *RUN, "--data", dataset, "--out", out)
    assert again.returncode == 2
    assert f"out folder {out} is not empty" in one_line(again)


def test_the_model_file_is_what_was_hashed_and_scored(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    import hashlib

    import numpy as np
    from safetensors import safe_open

    from dpsgd import metrics, models
    from dpsgd.data import encode
    from preprocess import shards
    from preprocess.schema import from_schema

    out = tmp_path / "run"
    run = run_json(
        mpirun(3, *RUN, "--data", dataset, "--out", out, "--ledger", tmp_path / "l"), out
    )
    with safe_open(out / "model.safetensors", "numpy") as file:
        tensors = [
            file.get_tensor(f"layers.{n}.{kind}") for n in (0, 1) for kind in ("weight", "bias")
        ]
        schema = json.loads(file.metadata()["schema"])
    params = np.concatenate([tensor.ravel() for tensor in tensors])
    assert hashlib.sha256(params.astype("<f4").tobytes()).hexdigest() == run["model_sha256"]
    manifest = shards.read_manifest(dataset)
    codes = shards.read_rows(dataset, manifest, "test", 0, shards.num_rows(manifest, "test"))
    model = models.build("mlp", 124, (64,))
    logits = model.logits(params, encode(codes, from_schema(schema)))
    found = metrics.evaluate(logits, codes["employed"].astype(np.float32))
    assert found == pytest.approx(run["metrics"], abs=1e-4)  # rounding differs with the batch


def test_every_all_reduce_gives_the_same_model(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    out = tmp_path / "run"
    done = mpirun(3, *RUN, "--data", dataset, "--out", out, "--ledger", tmp_path / "l",
                  "--insecure-seed", "5", "--steps", "40", "--allreduce", "tree",
                  "--transport", "mpi")  # fmt: skip
    run = run_json(done, out)
    assert (run["allreduce"], run["transport"]) == ("tree", "mpi")
    assert run["privacy"]["private"] is False
    assert run["privacy"]["epsilon"] is None
    assert "NOT PRIVATE" in done.stdout
    assert "NOT PRIVATE" in (out / "privacy.md").read_text()
    others = mpirun(3, HERE / "ranks_same_model.py", dataset, tmp_path / "ledger")
    lines = [line.split() for line in others.stdout.splitlines()]
    assert {name for name, *_ in lines} >= {"auto", *collectives.ALGORITHMS, "mpi", "butterfly:3"}
    assert {used for *_, used, _ in lines} >= set(collectives.TRANSPORTS)
    assert {sha for *_, sha in lines} == {run["model_sha256"]}, others.stdout + others.stderr


def test_without_a_seed_two_runs_differ(mpirun: Launch, tmp_path: Path, dataset: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        done = mpirun(2, *RUN, "--data", dataset, "--out", tmp_path / name, "--ledger",
                      tmp_path / "l", "--steps", "3", "--noise-multiplier", "2")  # fmt: skip
        hashes.add(run_json(done, tmp_path / name)["model_sha256"])
    assert len(hashes) == 2


def test_plain_training_says_everywhere_that_it_is_not_private(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    out = tmp_path / "plain"
    done = mpirun(2, *RUN, "--data", dataset, "--out", out, "--ledger", tmp_path / "l",
                  "--no-privacy", "--steps", "200", "--json")  # fmt: skip
    run = run_json(done, out)
    assert json.loads(done.stdout)["model_sha256"] == run["model_sha256"]
    assert done.stderr.count("NOT PRIVATE") >= 12, "every progress line says so"
    assert run["privacy"]["epsilon"] is None
    assert run["privacy"]["epsilon_all_runs"] == "inf"
    assert "carries no privacy guarantee" in (out / "privacy.md").read_text()


def test_the_loop_engine_trains_the_same_model_up_to_rounding(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    pytest.importorskip("torch", reason="the reference engine needs the extra torch")
    losses = []
    for engine in ("fused", "loop"):
        out = tmp_path / engine
        done = mpirun(2, *RUN, "--data", dataset, "--out", out, "--ledger", tmp_path / "l",
                      "--insecure-seed", "5", "--steps", "8", "--noise-multiplier", "2",
                      "--batch-size", "100", "--averaging", "0", "--engine", engine)  # fmt: skip
        losses.append(run_json(done, out)["metrics"]["log_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=5e-3)


def test_a_training_that_diverges_still_leaves_its_model(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    done = mpirun(2, *RUN, "--data", dataset, "--out", "run", "--ledger", "l", "--steps", "5",
                  "--noise-multiplier", "2", "--learning-rate", "1e38")  # fmt: skip
    run = run_json(done, tmp_path / "run")
    assert run["metrics"]["log_loss"] is None
    assert run["privacy"]["epsilon"] > 0
    assert (tmp_path / "run/model.safetensors").exists()


def test_ranks_without_rows_take_part(mpirun: Launch, python: Launch, tmp_path: Path) -> None:
    python("-m", "preprocess.synthetic", "--rows", "4", "--seed", "1", "--output", "few.csv")
    made = python("-m", "preprocess", "--input", "few.csv", "--output", "few")
    assert made.returncode == 0, made.stderr
    done = mpirun(5, *RUN, "--data", "few", "--out", "run", "--steps", "5",
                  "--noise-multiplier", "2")  # fmt: skip
    run = run_json(done, tmp_path / "run")
    assert run["privacy"]["num_examples"] < 5


def test_the_library_call_is_all_that_the_command_line_does(
    python: Launch, tmp_path: Path, dataset: Path
) -> None:
    script = (
        "import dpsgd\n"
        "from collectives.transports.mpi import world\n"
        f"dataset = dpsgd.load_dataset({str(dataset)!r}, world())\n"
        "config = dpsgd.Config(ledger='l', insecure_seed=4, steps=20, noise_multiplier=2.0)\n"
        "print(dpsgd.train(config, dataset, world()).model_sha256)\n"
    )
    called = python("-c", script, OPENBLAS_NUM_THREADS="1")  # as the command line has it
    typed = python(*RUN, "--data", dataset, "--ledger", "l", "--out", "run", "--insecure-seed", "4",
                   "--steps", "20", "--noise-multiplier", "2")  # fmt: skip
    assert called.stdout.strip() == run_json(typed, tmp_path / "run")["model_sha256"]


def test_help_and_version_come_once(mpirun: Launch) -> None:
    shown = mpirun(3, *RUN, "--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: ")
    assert shown.stdout.count("usage: ") == 1
    assert shown.stderr == ""
    assert mpirun(3, *RUN, "--version").stdout.count("dpsgd ") == 1


def test_the_real_file_reaches_a_useful_model(
    mpirun: Launch, python: Launch, tmp_path: Path, fulton: Path
) -> None:
    """One split only, so the bound is loose; `make accuracy` gives means over splits."""
    made = python("-m", "preprocess", "--input", fulton, "--output", "fulton")
    assert made.returncode == 0, made.stderr
    run = run_json(mpirun(4, *RUN, "--data", "fulton", "--out", "run"), tmp_path / "run")
    assert run["privacy"]["epsilon"] <= 3
    assert run["metrics"]["accuracy"] > 0.735
    assert run["metrics"]["auc"] > 0.805
