"""DistributedDataParallel as an all-reduce of the trainer: the same model, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpsgd
from helpers import Launch

HERE = Path(__file__).parent


@pytest.mark.mpi
def test_inside_ddp_the_model_is_that_of_every_other_all_reduce(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    pytest.importorskip("torch", reason="DDP needs the extra torch")
    done = mpirun(2, HERE / "ranks_ddp.py", dataset, tmp_path / "ledger")
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        name, allreduce, engine, sha = line.split()
        assert engine == "two-pass"
        found.setdefault(name, {})[allreduce] = sha
    assert len(found) == 4
    for hashes in found.values():
        assert hashes["ddp"] == hashes["ring"]
    assert len({hashes["ddp"] for hashes in found.values()}) == 4, "the cases do not differ"


def test_a_rank_without_usable_examples_does_not_spoil_its_other_blocks() -> None:
    """Weights may have diverged so far that even the backward pass over public rows is no number.

    What DDP then hears is NaN; the sum must hold the blocks before it all the same.
    """
    pytest.importorskip("torch", reason="DDP needs the extra torch")
    from dpsgd import engines, models

    model = models.build("mlp", 10, (8,), activation="relu")
    params = model.initial(0)
    weight = model.tensors[0].place
    params[weight] = np.sign(params[weight]) * np.float32(2e38)
    features = model.probe(129) * np.float32(1e-37)  # the rows of DDP's own are not so small
    features[128] = np.nan  # the last block has nothing else
    labels = np.zeros(129, np.float32)
    expected, found = np.zeros(model.num_params), np.zeros(model.num_params)
    engines.build("two-pass", model, 0.5).clipped_sum(params, features, labels, expected)
    engine: Any = engines.build("two-pass", model, 0.5)
    engine.wrap(engine.module.module)
    assert not [*engine.stages(params, features, labels, found)]
    assert np.linalg.norm(expected) > 0.5, "nothing was summed"
    assert np.array_equal(found, expected)
    heard = [parameter.grad for parameter in engine.module.parameters]
    assert not all(np.isfinite(one.numpy()).all() for one in heard), "this tests nothing"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"engine": "bookkeeping"}, "engine must be auto or two-pass with allreduce ddp, got book"),
        ({"transport": "shm"}, "transport must be auto with allreduce ddp, got shm"),
        ({"microbatch": 64}, "microbatch must be auto with allreduce ddp, got 64"),
        ({"noise": "sharded"}, "noise must be split or local with allreduce ddp, got sharded"),
        ({"wire": "float32"}, "wire must be auto or int32 or int64 with allreduce ddp, got float"),
    ],
)
def test_what_ddp_does_by_itself_cannot_be_chosen(
    options: dict[str, object], complaint: str
) -> None:
    pytest.importorskip("torch", reason="DDP needs the extra torch")
    with pytest.raises(dpsgd.UserError, match=complaint):
        dpsgd.Config(allreduce="ddp", **options)  # type: ignore[arg-type]
