"""Run under mpirun by test_ddp: the engine two-pass with a ring, then inside DDP; prints hashes.

One case has two buckets, and more rows than one block; in the other most batches are empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

import dpsgd
from collectives.transports.mpi import world

CASES = {
    "two-buckets": {"hidden": (500, 500), "sample_rate": 0.3},
    "empty-batches": {"hidden": (8,), "sample_rate": 0.0003},
    "local-noise": {"noise": "local", "model": "logistic"},
}


def main(dataset_path: Path, ledger: Path) -> None:
    comm = world()
    dataset = dpsgd.load_dataset(dataset_path, comm)
    for name, options in CASES.items():
        for allreduce in ("ring", "ddp"):
            config = dpsgd.Config(
                allreduce=allreduce, engine="two-pass", insecure_seed=6, noise_multiplier=1.0,
                steps=3, ledger=ledger, **options,
            )  # fmt: skip
            result = dpsgd.train(config, dataset, comm)
            if comm.rank == 0:
                print(name, result.allreduce, result.engine, result.model_sha256)


main(Path(sys.argv[1]), Path(sys.argv[2]))
