"""Run under mpirun by test_train: clipped SGD without noise, by the first 1, 2, ... of the ranks.

With an insecure seed all worlds draw the same records. The engine `loop` sums in float64, so that
what is left is the rounding of each rank's sum to the grid.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dpsgd
from collectives.transports.mpi import world

if TYPE_CHECKING:
    from mpi4py import MPI


def main(dataset_path: Path, folder: Path) -> None:
    everybody = world()
    for world_size in range(1, everybody.size + 1):
        comm = everybody.Split(int(everybody.rank < world_size))
        if everybody.rank < world_size:
            train(comm, dataset_path, folder)
        everybody.Barrier()


def train(comm: MPI.Intracomm, dataset_path: Path, folder: Path) -> None:
    dataset = dpsgd.load_dataset(dataset_path, comm)
    config = dpsgd.Config(
        ledger=folder / f"ledger-{comm.size}", insecure_seed=4, noise_multiplier=0.0, steps=3,
        sample_rate=0.02, max_grad_norm=0.3, optimizer="sgd", learning_rate=1.0, averaging=0.0,
        engine="loop",
    )  # fmt: skip
    result = dpsgd.train(config, dataset, comm)
    if comm.rank == 0:
        result.params.tofile(folder / f"params-{comm.size}")
        (folder / f"spacing-{comm.size}").write_text(repr(result.run.grid.spacing))


main(Path(sys.argv[1]), Path(sys.argv[2]))
