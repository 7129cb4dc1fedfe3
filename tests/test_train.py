"""The training step against its definition, and ranks that do not fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import Launch

pytestmark = pytest.mark.mpi
HERE = Path(__file__).parent


@pytest.mark.parametrize("world_size", [1, 3])
def test_one_step_is_exactly_as_defined(
    mpirun: Launch, tmp_path: Path, dataset: Path, world_size: int
) -> None:
    """Own streams for sampling and noise on every rank, the constant denominator, the grid."""
    done = mpirun(world_size, HERE / "ranks_train.py", dataset, tmp_path / "ledger")
    assert done.stdout == "one step as defined\n", done.stderr


def test_world_size_does_not_change_the_model(
    mpirun: Launch, tmp_path: Path, dataset: Path
) -> None:
    """Without noise all worlds agree within the grid: 3 steps, half a spacing for each rank."""
    done = mpirun(4, HERE / "ranks_world_size.py", dataset, tmp_path)
    assert done.returncode == 0, done.stderr
    found = {n: np.fromfile(tmp_path / f"params-{n}", np.float32) for n in (1, 2, 3, 4)}
    spacing = max(float((tmp_path / f"spacing-{n}").read_text()) for n in found)
    assert np.abs(found[1]).max() > 1e-3, "nothing was learnt"
    for world_size, params in found.items():
        ulp = np.spacing(np.abs(found[1]).astype(np.float32))
        assert (np.abs(params - found[1]) <= 3 * (world_size * spacing + ulp)).all()


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("clip", "ConfigError: max_grad_norm must be the same on all ranks, got 1.0 on rank 0 and"),
        ("seed", "ConfigError: insecure_seed must be the same on all ranks, got None on rank 0"),
        ("collective", "ConfigError: allreduce must be the same on all ranks"),
        ("everything", "DatasetError: the ranks must hold the 3 parts of one data set"),
        ("copy", "DatasetError: the ranks must hold the 3 parts of one data set"),
        ("twice", "DatasetError: the ranks must hold the 3 parts of one data set"),
    ],
)
def test_ranks_that_do_not_fit_together_are_refused_before_anything_is_charged(
    mpirun: Launch, tmp_path: Path, dataset: Path, how: str, complaint: str
) -> None:
    done = mpirun(3, HERE / "ranks_disagree.py", how, dataset, tmp_path / "ledger")
    assert done.returncode == 0, done.stderr
    assert complaint in done.stdout
    assert not (tmp_path / "ledger").exists()
