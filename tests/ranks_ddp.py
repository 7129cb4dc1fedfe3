"""Run under mpirun by test_ddp: the engine two-pass with a ring, then inside DDP; prints hashes.

One case has two buckets, and more rows than one block; in another most batches are empty; in the
third some examples on one rank alone are not finite or huge, so that its forward passes are more;
the transformer has a buffer, which DDP would broadcast in every one of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import dpsgd
from collectives.transports.mpi import world

CASES = {
    "two-buckets": {"hidden": (500, 500), "sample_rate": 0.3},
    "empty-batches": {"hidden": (8,), "sample_rate": 0.0003},
    "odd-examples": {"noise": "local", "model": "logistic"},
    "transformer": {"model": "transformer", "sample_rate": 0.01},
}


def main(dataset_path: Path, ledger: Path) -> None:
    comm = world()
    for name, options in CASES.items():
        inputs = "levels" if name == "transformer" else "features"
        dataset = dpsgd.load_dataset(dataset_path, comm, inputs)
        if name == "odd-examples" and comm.rank == comm.size - 1:
            dataset.train.features[::7] = np.nan
            dataset.train.features[::11] *= 1e30
        for allreduce in ("ring", "ddp"):
            config = dpsgd.Config(
                allreduce=allreduce, engine="two-pass", insecure_seed=6, noise_multiplier=1.0,
                steps=3, ledger=ledger, **options,
            )  # fmt: skip
            result = dpsgd.train(config, dataset, comm)
            if comm.rank == 0:
                print(name, result.allreduce, result.engine, result.model_sha256)


main(Path(sys.argv[1]), Path(sys.argv[2]))
