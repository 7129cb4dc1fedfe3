"""Run under mpirun by test_train: one private step, recomputed from its definition.

Nothing of the trainer, the release or the accounting is used to compute what is expected.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import dpsgd
from collectives.transports.mpi import world
from dpsgd import streams
from dpsgd.engines import build

SEED, RATE, SIGMA, CLIP, LEARNING_RATE = 11, 0.25, 1.5, 0.7, 0.5


def digits_below(draw: np.ndarray) -> np.ndarray:
    """RATE is one base-256 digit, 64: a row is drawn if its byte is below it."""
    assert RATE * 256 == 64
    return np.flatnonzero(draw < 64)


def main(dataset_path: Path, ledger: Path) -> None:
    comm = world()
    dataset = dpsgd.load_dataset(dataset_path, comm)
    streams.fresh = lambda: streams.insecure(SEED, comm.rank)  # of every rank, as in earnest
    config = dpsgd.Config(
        ledger=ledger, sample_rate=RATE, noise_multiplier=SIGMA, steps=1,
        max_grad_norm=CLIP, optimizer="sgd", learning_rate=LEARNING_RATE, averaging=0.0,
    )  # fmt: skip
    result = dpsgd.train(config, dataset, comm)
    model, grid = result.run.model, result.run.grid
    initial = model.initial(result.run.seed)

    rows = digits_below(
        streams.insecure(SEED, comm.rank).sampling.bytes(0, len(dataset.train.labels))
    )
    local = np.zeros(model.num_params)
    build("fused", model, CLIP).clipped_sum(
        initial, dataset.train.features[rows], dataset.train.labels[rows], local
    )
    deviation = SIGMA * grid.sensitivity / np.sqrt(comm.size) / grid.spacing
    stream = streams.insecure(SEED, comm.rank).noise
    noise = stream.gaussians(0, model.num_params, deviation=deviation)
    total = sum(comm.allgather(np.rint(local / grid.spacing) + np.rint(noise)))
    mean = total * (grid.spacing / (RATE * dataset.num_examples))
    expected = initial - np.float32(LEARNING_RATE) * mean.astype(np.float32)
    np.testing.assert_array_equal(result.params, expected)
    assert len(set(comm.allgather(result.params.tobytes()))) == 1, "ranks differ"
    drawn = comm.allgather(tuple(rows))
    assert len(set(drawn)) == comm.size, "ranks share a sampling stream"
    if comm.rank == 0:
        print("one step as defined")


main(Path(sys.argv[1]), Path(sys.argv[2]))
