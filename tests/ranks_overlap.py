"""Run on emulated hosts by hand or by `emulated_hosts.py`: a step beside its longer half.

    python tests/emulated_hosts.py -- tests/ranks_overlap.py

For some models: seconds of one step, of the same step on every rank alone (*compute*), and of the
all-reduce alone (*wire*), medians on rank 0. With perfect overlap a step takes the longer of both.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the hosts share the cores of one machine
# isort: split
import numpy as np
from mpi4py import MPI

import collectives
import dpsgd
import dpsgd.models
from collectives.transports.mpi import world
from dpsgd.data import Dataset, Rows

STEPS = 20
FEATURES = 124
CASES = ((64,), (256,), (256, 256), (512, 512))
BATCHES = (256, 4096)


def dataset(comm: MPI.Intracomm, num_rows: int) -> Dataset:
    """Random rows, `num_rows` on every rank."""
    generator = np.random.default_rng(comm.rank)
    rows = Rows(
        features=generator.standard_normal((num_rows, FEATURES), np.float32),
        labels=generator.integers(0, 2, num_rows).astype(np.float32),
    )
    test = Rows(features=rows.features[:1], labels=rows.labels[:1])
    return Dataset(
        path=Path("random"), part=(comm.rank, comm.size), content_sha256="random", schema={},
        unit="record", num_examples=num_rows * comm.size, num_features=FEATURES, levels=(),
        inputs="features", statistics=None, train=rows, test=test,
    )  # fmt: skip


def step_seconds(
    comm: MPI.Intracomm, hidden: tuple[int, ...], batch_size: int
) -> tuple[float, str]:
    """Median seconds from one step to the next, on rank 0, and the type of the integers."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = dpsgd.Config(
            hidden=hidden, batch_size=batch_size, steps=STEPS, insecure_seed=1,
            noise_multiplier=1.0, ledger=Path(comm.bcast(folder)) / f"ledger-{comm.rank}",
        )  # fmt: skip
        config = comm.bcast(config)
        result = dpsgd.train(
            config, dataset(comm, 20_000), comm, lambda now: ends.append(now.seconds)
        )
        comm.Barrier()
    return float(np.median(np.diff(ends))) if ends else 0.0, result.run.grid.wire


def wire_seconds(comm: MPI.Intracomm, length: int, dtype: str) -> float:
    """Median seconds of the all-reduce that the trainer chooses."""
    found = []
    with collectives.make_plan("auto", comm, length, dtype) as plan:
        for _ in range(STEPS):
            comm.Barrier()
            start = time.perf_counter()
            plan.run()
            found.append(time.perf_counter() - start)
    return median(found)


def main() -> None:
    comm = world()
    if comm.rank == 0:
        print("hidden       batch   parameters   compute ms   wire ms   step ms   step / longer")
    for hidden in CASES:
        for batch_size in BATCHES:
            length = dpsgd.models.build("mlp", FEATURES, hidden).num_params
            compute, _ = step_seconds(MPI.COMM_SELF, hidden, batch_size // comm.size)
            comm.Barrier()
            step, dtype = step_seconds(comm, hidden, batch_size)
            wire = wire_seconds(comm, length, dtype)
            if comm.rank == 0:
                ratio = step / max(compute, wire)
                print(
                    f"{hidden!s:10} {batch_size:7} {length:12,} {compute * 1e3:12.2f} "
                    f"{wire * 1e3:9.2f} {step * 1e3:9.2f} {ratio:15.2f}",
                    flush=True,
                )


main()
