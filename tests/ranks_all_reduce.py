"""Run under mpirun by test_collectives: the contract of every all-reduce, over real ranks."""

from __future__ import annotations

import time

import numpy as np

import collectives
from collectives.transports.mpi import world

LENGTHS = (0, 1, 2, 7, 1000, 100_003)
DTYPES = ("int32", "int64", "float32", "float64")


def contribution(rank: int, length: int, dtype: str) -> np.ndarray:
    generator = np.random.default_rng(rank)
    if dtype.startswith("int"):
        return generator.integers(-(2**28), 2**28, length).astype(dtype)
    return (generator.normal(size=length) * 10.0 ** generator.integers(-6, 6, length)).astype(dtype)


def main() -> None:
    comm = world()
    checks = 0
    for name in collectives.NAMES:
        for length in LENGTHS:
            for dtype in DTYPES:
                parts = [contribution(rank, length, dtype) for rank in range(comm.size)]
                results = []
                with collectives.make_plan(name, comm, length, dtype) as plan:
                    for late in (None, comm.size - 1):
                        if comm.rank == late and length == LENGTHS[-1]:
                            time.sleep(0.01)  # other arrival orders must not matter
                        plan.buffer[:] = parts[comm.rank]
                        plan.run()
                        results.append(plan.buffer.tobytes())
                where = f"{name}, {comm.size} ranks, {length} x {dtype}"
                exact = dtype.startswith("int")
                if exact:
                    expected = sum(parts, np.zeros(length, dtype)).tobytes()
                    assert results[0] == expected, f"the sum is not exact: {where}"
                else:
                    total = np.sum(np.array(parts, np.float64), axis=0)
                    scale = np.sum(np.abs(np.array(parts, np.float64)), axis=0)
                    error = np.abs(np.frombuffer(results[0], dtype) - total)
                    limit = comm.size * np.finfo(dtype).eps * scale
                    assert (error <= limit).all(), f"the sum is off: {where}"
                if exact or name not in collectives.VENDORS:
                    assert len(set(comm.allgather(results[0]))) == 1, f"ranks differ: {where}"
                    assert results[0] == results[1], f"timing changed the result: {where}"
                checks += 1
    if comm.rank == 0:
        print(f"{checks} checked")


main()
