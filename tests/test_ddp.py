"""DistributedDataParallel as an all-reduce of the trainer: the same model, bit for bit."""

from __future__ import annotations

from pathlib import Path

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
    assert len(found) == 3
    for hashes in found.values():
        assert hashes["ddp"] == hashes["ring"]
    assert len({hashes["ddp"] for hashes in found.values()}) == 3, "the cases do not differ"


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
