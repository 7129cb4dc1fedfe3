"""Ctrl-C, a full disk, a stream that nobody reads, two runs in one folder: what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from collectives import guard
from dpsgd import run_folder
from dpsgd.errors import ConfigError
from helpers import Launch, clean_environment, finish, one_line
from launch.world import RANK_VARIABLES
from ranks_interrupt import PHASES

HERE = Path(__file__).parent
RUN = ("-m", "dpsgd.run")
LEFT = {
    "evaluate": {"metrics.jsonl", "unfinished"},
    "save": {"metrics.jsonl", "model.safetensors", "unfinished"},
}
"""What an interrupt leaves in the run folder, by phase; in all others there is no folder."""


def entries(ledger: Path) -> list[str]:
    return [json.loads(line)["entry"] for line in ledger.read_text().splitlines()]


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_is_one_line_whatever_is_going_on(
    python: Launch, tmp_path: Path, dataset: Path, phase: str
) -> None:
    done = python(HERE / "ranks_interrupt.py", phase, "--data", dataset, "--ledger", "l",
                  "--steps", "3", "--out", "run")  # fmt: skip
    assert done.returncode == 130
    assert done.stderr == (
        "dpsgd.run: interrupted; steps that are reserved in the ledger stay charged\n"
    )
    spent = phase in ("train", "evaluate", "save")
    assert entries(tmp_path / "l") == ["run", "reserve"] if spent else not (tmp_path / "l").exists()
    assert {file.name for file in tmp_path.glob("run/*")} == LEFT.get(phase, set())
    assert (tmp_path / "run").exists() == (phase in LEFT)


@pytest.mark.mpi
@pytest.mark.parametrize("phase", ["load", "train"])
def test_ctrl_c_on_all_ranks_ends_all_of_them(
    mpirun: Launch, tmp_path: Path, dataset: Path, phase: str
) -> None:
    done = mpirun(3, HERE / "ranks_interrupt.py", phase, "--data", dataset, "--ledger", "l",
                  "--steps", "3", "--out", "run")  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("dpsgd.run: interrupted") == 1


def test_after_an_interrupt_a_process_of_one_rank_can_be_interrupted_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A notebook that has called the command lives on."""
    alone = SimpleNamespace(rank=0, size=1)
    before = signal.getsignal(signal.SIGINT)
    assert guard.interrupted(alone, "stopped", 130) == 130  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("launched", [True, False])
def test_until_all_ranks_have_met_an_interrupt_is_deadly(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if launched:
        monkeypatch.setenv("PMI_RANK", "1")
    before = signal.getsignal(signal.SIGINT)
    with guard._deadly_interrupts():
        assert (signal.getsignal(signal.SIGINT) is signal.SIG_DFL) == launched
    assert signal.getsignal(signal.SIGINT) is before


def on_small_disk(tmp_path: Path, size: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments; the folder `small` is a file system of that size."""
    (tmp_path / "small").mkdir()
    space = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    mount = f"mount -t tmpfs -o size={size} tmpfs small"
    try:
        subprocess.run([*space, "sh", "-c", mount], check=True, cwd=tmp_path, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    script = f'{mount} && "$@"; code=$?; ls -A small; exit $code'
    words = [*space, "sh", "-c", script, "-", sys.executable, *command]
    return finish(words, tmp_path, clean_environment())


def test_a_disk_without_room_for_the_model_is_noticed_before_anything_is_charged(
    tmp_path: Path, dataset: Path
) -> None:
    done = on_small_disk(tmp_path, "512k", *RUN, "--data", str(dataset), "--ledger", "l",
                         "--out", "small/run")  # fmt: skip
    assert done.returncode == 2
    assert "out folder small/run cannot be used: No space left on device" in one_line(done)
    assert done.stdout == "", "the folder is gone again, and training did not begin"
    assert not (tmp_path / "l").exists()


def test_a_full_disk_for_the_data_set_is_one_line_and_leaves_nothing(
    tmp_path: Path, raw: Path
) -> None:
    done = on_small_disk(tmp_path, "16k", "-m", "preprocess", "--input", str(raw), "--output",
                         "small/set")  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("preprocess: error: output must be writable, got ")
    assert done.stderr.endswith("small/set: No space left on device\n")


def test_a_full_disk_at_the_end_is_one_line(tmp_path: Path, dataset: Path, python: Launch) -> None:
    script = (
        "import errno, os, sys\n"
        "from dpsgd import run, run_folder\n"
        "def full(*given):\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "run_folder.write_json = full\n"
        "sys.exit(run.main(sys.argv[1:]))\n"
    )
    done = python("-c", script, "--data", dataset, "--ledger", "l", "--steps", "3", "--out", "run")
    assert done.returncode == 2
    assert "out folder run cannot be written: No space left on device; the steps" in one_line(done)
    assert (tmp_path / "run/model.safetensors").exists(), "what privacy was spent on is kept"


@pytest.mark.parametrize("stream", ["/dev/full", "closed pipe"])
def test_a_stream_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, dataset: Path, stream: str
) -> None:
    command = [sys.executable, *RUN, "--data", str(dataset), "--ledger", "l", "--steps", "20",
               "--out", "run"]  # fmt: skip
    if stream == "/dev/full":
        out = os.open(stream, os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run(
            command, cwd=tmp_path, env=clean_environment(), stdout=out, stderr=subprocess.PIPE,
            text=True, timeout=240,
        )  # fmt: skip
    finally:
        os.close(out)
    assert done.returncode == 0
    complaint = "dpsgd.run: output cannot be written (No space left on device); the run goes on\n"
    assert done.stderr == (complaint if stream == "/dev/full" else "")
    assert (tmp_path / "run/run.json").exists()


def test_of_two_runs_in_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_folder.create(folder, 10)
    with pytest.raises(ConfigError, match="belongs to a run that is not finished, or was killed"):
        run_folder.create(folder, 10)
    run_folder.discard(folder, made=True)
    assert not folder.exists()


def test_a_run_that_left_something_keeps_its_folder_and_a_users_folder_stays(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert run_folder.create(folder, 10) is False, "it was there before"
    run_folder.discard(folder, made=False)
    assert list(tmp_path.rglob("*")) == [folder]
    run_folder.create(folder, 10)
    (folder / "metrics.jsonl").write_text("{}\n")
    run_folder.discard(folder, made=True)
    assert {file.name: file.stat().st_size for file in folder.iterdir()} == {
        "metrics.jsonl": 3,
        "unfinished": 0,
    }


@pytest.mark.parametrize(
    "harmed", ["l", "options.toml", "run/model.safetensors", "set/schema.json"]
)
def test_json_does_not_replace_what_a_run_needs(
    python: Launch, tmp_path: Path, dataset: Path, harmed: str
) -> None:
    (tmp_path / "set").symlink_to(dataset)
    (tmp_path / "run").mkdir()
    for name in ("l", "options.toml"):
        (tmp_path / name).write_text("")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    files = ("--config", "options.toml", "--data", "set", "--ledger", "l", "--out", "run")
    done = python(*RUN, *files, "--json", harmed)
    assert done.returncode == 2
    assert f"--json must be a file of its own, got {harmed}: it is part of" in one_line(done)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_only_one_of_many_runs_gets_the_folder_when_they_start_at_once(tmp_path: Path) -> None:
    racers = 8
    line = threading.Barrier(racers)

    def race(folder: Path) -> str:
        line.wait()
        try:
            run_folder.create(folder, 10)
        except ConfigError as error:
            return str(error)
        return "mine"

    with ThreadPoolExecutor(racers) as pool:
        for heat in range(20):
            said = list(pool.map(race, [tmp_path / str(heat)] * racers))
            assert said.count("mine") == 1, said
            assert all("out folder" in text for text in said if text != "mine")
