"""Batches in pieces: the same sum, whatever the size of the pieces, and when memory runs out."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpsgd import engines, microbatch, models
from dpsgd.microbatch import Microbatched, fitting
from helpers import clean_environment, finish

MODEL = models.build("mlp", 10, (8,))


def batch(rows: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, rows).astype(np.float32)
    return generator.normal(size=(rows, 10)).astype(np.float32), labels


def summed(engine: Any, rows: int) -> NDArray[np.float64]:
    out = np.full(MODEL.num_params, 7.0)
    engine.clipped_sum(MODEL.initial(0), *batch(rows), out)
    return out


@pytest.mark.parametrize("name", engines.NAMES)
@pytest.mark.parametrize(("size", "rows"), [
    (7, 0), (1, 1), (7, 100), (128, 500), (512, 1100), (1000, 500), ("auto", 100)])  # fmt: skip
def test_the_size_of_the_pieces_does_not_change_the_sum(
    name: str, size: int | str, rows: int
) -> None:
    pytest.importorskip("torch", reason="most engines need the extra torch")
    engine = engines.build(name, MODEL, 0.5)
    found = summed(Microbatched(engine, size), rows)
    np.testing.assert_allclose(found, summed(engine, rows), rtol=1e-5, atol=1e-6 * 0.5 * rows)


class Small:
    """An engine with memory for few rows; remembers the batches that it was asked for."""

    rho = 0.0

    def __init__(self, room: int, complaint: Exception) -> None:
        self.room, self.complaint = room, complaint
        self.asked: list[int] = []

    def clipped_sum(self, params: Any, features: Any, labels: Any, out: Any) -> None:
        self.asked.append(len(labels))
        if len(labels) > self.room:
            out[:] = 99  # whatever was written before memory ran out
            raise self.complaint
        out[:] = features.sum(dtype=np.float64)


@pytest.mark.parametrize(
    "complaint",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_where_memory_runs_out_the_same_rows_are_summed_in_halves(complaint: Exception) -> None:
    engine = Small(30, complaint)
    made = Microbatched(engine, "auto")
    assert summed(made, 100) == pytest.approx(batch(100)[0].sum(dtype=np.float64))
    assert engine.asked == [100, 50, 25, 25, 25, 25]
    assert made.size == 25
    engine.asked.clear()
    summed(made, 60)
    assert engine.asked == [25, 25, 10], "what was learnt is kept"


def test_pieces_are_halved_to_whole_groups_of_what_is_summed_together() -> None:
    engine = Small(600, MemoryError())
    made = Microbatched(engine, "auto")
    summed(made, 3000)
    assert engine.asked[:3] == [3000, 1024, 512], "half of 3000, cut to whole groups"


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        summed(Microbatched(Small(30, RuntimeError("shapes cannot be multiplied")), "auto"), 100)


def test_without_room_for_one_row_it_ends() -> None:
    with pytest.raises(MemoryError, match="microbatches of 1 rows"):
        summed(Microbatched(Small(0, MemoryError()), "auto"), 100)


def test_a_sum_that_is_on_its_way_is_not_begun_again() -> None:
    class Half(Small):
        def stages(self, params: Any, features: Any, labels: Any, out: Any) -> Iterator[slice]:
            yield slice(0, 1)
            raise MemoryError

    engine = Microbatched(Half(1000, MemoryError()), "auto")
    parts = engine.stages(MODEL.initial(0), *batch(10), np.empty(MODEL.num_params))
    assert next(parts) == slice(0, 1)
    with pytest.raises(MemoryError, match="microbatches of 10 rows"):
        next(parts)


def test_auto_takes_whole_groups_of_what_a_quarter_of_the_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine: Any = Small(1, MemoryError())
    engine.bytes_per_example = per_row = 777
    for ranks, rows, expected in (
        (1, 2000, 1024),
        (1, 5000, 4096),
        (2, 4200, 2048),
        (1, 100, 100),
        (1, 0, 1),
    ):
        monkeypatch.setattr(microbatch, "free_bytes", lambda rows=rows: 4 * per_row * rows + 3)
        monkeypatch.setattr(microbatch, "ranks_on_this_node", lambda ranks=ranks: ranks)
        assert fitting(engine) == expected


STARVED = """
import resource, sys
from pathlib import Path
import dpsgd
from collectives.transports.mpi import world
from dpsgd import accounting, microbatch
dataset = dpsgd.load_dataset(sys.argv[1], world())
steps = accounting.Steps(sample_rate=1.0, noise_multiplier=2.0, count=3)
accounting.epsilon([steps], 1e-5)  # imports what it needs
options = dict(noise_multiplier=2.0, sample_rate=1.0, engine="bookkeeping", ledger=sys.argv[2])
dpsgd.train(dpsgd.Config(steps=1, **options), dataset, world())  # libraries take their memory
microbatch.fitting = lambda engine: 2**30  # as if there was room for everything
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 90 * 2**20, resource.RLIM_INFINITY))
config = dpsgd.Config(steps=3, hidden=(2000,), **options)
print(dpsgd.train(config, dataset, world()).microbatch)
"""


def test_a_training_without_enough_memory_goes_on_and_is_charged_once(
    dataset: Path, tmp_path: Path
) -> None:
    """3,200 rows times 2,000 hidden units take 25 MB an array, of which there are four."""
    ledger = tmp_path / "ledger"
    done = finish([sys.executable, "-c", STARVED, dataset, ledger], tmp_path,
                  clean_environment(OPENBLAS_NUM_THREADS="1"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) <= 1600
    *_, last = ledger.read_text().splitlines()
    assert ledger.read_text().count('"reserve"') == 2, "one of each run"
    assert '"events": 3' in last


FAULTS = """
import resource
import numpy as np
from dpsgd.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [np.ones(2**20) for _ in range(16)]  # 8 MiB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = [faults() for _ in range(4)]
keep_freed_memory()
kept = [faults() for _ in range(4)]
print(min(default), min(kept))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of another library")
def test_freed_memory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True,
                          check=True, env=clean_environment())  # fmt: skip
    default, kept = map(int, done.stdout.split())
    assert default > 100 > kept
