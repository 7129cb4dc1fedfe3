"""Run under mpirun by test_run: one training by every all-reduce; prints the models' hashes."""

from __future__ import annotations

import sys
from pathlib import Path

import collectives
import dpsgd
from collectives.transports.mpi import world


def main(dataset_path: Path, ledger: Path) -> None:
    comm = world()
    dataset = dpsgd.load_dataset(dataset_path, comm)
    names = [
        name
        for name in ("auto", *collectives.NAMES, f"butterfly:{comm.size}")
        if name not in collectives.VENDORS or not collectives.VENDORS[name].missing()
    ]
    ways = [(name, "auto") for name in names] + [(name, "mpi") for name in collectives.ALGORITHMS]
    for name, transport in ways:
        config = dpsgd.Config(
            allreduce=name, transport=transport, insecure_seed=5, steps=40, ledger=ledger
        )
        result = dpsgd.train(config, dataset, comm)
        if comm.rank == 0:
            print(name, transport, result.transport, result.model_sha256)


main(Path(sys.argv[1]), Path(sys.argv[2]))
