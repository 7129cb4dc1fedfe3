"""The data of the main job, made in memory on each rank from a public seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from collectives.schedule import part_bounds
from dpsgd.bench.workloads import NUM_FEATURES
from dpsgd.data import Dataset, Rows

NUM_TEST_ROWS = 1000
SEED = 1


def random_dataset(path: Path, rank: int, world_size: int, num_rows: int) -> Dataset:
    """This rank's part of `num_rows` normal features and fair labels; `path` names the ledger."""
    parts = {}
    for number, total in enumerate((num_rows, NUM_TEST_ROWS)):
        bounds = part_bounds(total, world_size)
        rows = bounds[rank + 1] - bounds[rank]
        generator = np.random.default_rng((SEED, rank, number))
        parts[number] = Rows(
            features=generator.standard_normal((rows, NUM_FEATURES), np.float32),
            labels=generator.integers(0, 2, rows).astype(np.float32),
        )
    return Dataset(
        path=path,
        part=(rank, world_size),
        content_sha256=f"random {SEED} {num_rows}",
        schema={},
        unit="record",
        num_examples=num_rows,
        num_features=NUM_FEATURES,
        levels=(),
        statistics=None,
        inputs="features",
        train=parts[0],
        test=parts[1],
    )
