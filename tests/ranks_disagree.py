"""Run under mpirun by test_train: ranks that do not fit together must be refused, all of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from mpi4py import MPI

import dpsgd


def main(how: str, dataset_path: Path, ledger: Path) -> None:
    comm = MPI.COMM_WORLD
    last = comm.rank == comm.size - 1
    options = {"ledger": ledger, "steps": 5, "noise_multiplier": 2.0}
    dataset = dpsgd.load_dataset(dataset_path, MPI.COMM_SELF if how == "everything" else comm)
    if how == "clip" and last:
        options["max_grad_norm"] = 1000.0
    if how == "seed" and last:
        options["insecure_seed"] = 1
    if how == "collective" and last:
        options["allreduce"] = "tree"
    if how == "copy" and last:
        dataset = replace(dataset, content_sha256="another")
    if how == "twice" and last:
        dataset = replace(dataset, part=(0, comm.size))
    try:
        dpsgd.train(dpsgd.Config(**options), dataset, comm)
    except dpsgd.UserError as error:
        refused = comm.allgather((type(error).__name__, str(error)))
        if comm.rank == 0:
            assert len(set(refused)) == 1
            print(*refused[0], sep=": ")


main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
