"""Run under mpirun by test_collectives: the contract of every all-reduce, over real ranks.

Arguments are lengths, to be used instead of LENGTHS.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

import collectives
from collectives.schedule import Setting
from collectives.select import place_of
from collectives.transports import shm
from collectives.transports.base import CHUNK_BYTES
from collectives.transports.mpi import world  # the first to load MPI

if TYPE_CHECKING:
    from mpi4py import MPI

LENGTHS = (0, 1, 2, 7, 1000, 100_003)
MORE = ("butterfly:2", "butterfly:2,2", "hierarchical:tree,ring", "tree:3")
HALVES_DTYPES = ("int32", "float64")
UNSIGNED_RANKS = 4
"""With more ranks, on few cores, signed integers stand for unsigned ones: their sums have the same
bits."""
GLOO_LENGTHS = (0, 1000)
GLOO_RANKS = 4
"""torch takes seconds to load on every rank, and each plan makes a process group."""


@functools.cache
def contribution(rank: int, length: int, dtype: str) -> np.ndarray:
    """Integers of the whole range; floating-point numbers over twelve orders of magnitude."""
    generator = np.random.default_rng(rank)
    if "int" in dtype:
        lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
        return generator.integers(lowest, highest, length, dtype, endpoint=True)
    return (generator.normal(size=length) * 10.0 ** generator.integers(-6, 6, length)).astype(dtype)


@functools.cache
def exact_sum(world_size: int, length: int, dtype: str) -> np.ndarray:
    """Modulo the word size."""
    total = np.zeros(length, dtype)
    for rank in range(world_size):
        total += contribution(rank, length, dtype)
    return total


def is_close(found: np.ndarray, world_size: int) -> bool:
    """Whether no element is further off than additions in any order can be."""
    parts = [contribution(rank, len(found), str(found.dtype)) for rank in range(world_size)]
    wide = np.array(parts, np.float64).reshape(world_size, -1)
    limit = world_size * np.finfo(found.dtype).eps * np.abs(wide).sum(axis=0)
    return bool((np.abs(found - wide.sum(axis=0)) <= limit).all())


def transports(name: str, one_node: bool) -> list[str]:
    """The transports that this all-reduce can use here."""
    if name in collectives.VENDORS:
        return ["auto"]
    return ["mpi", "shm"] if one_node or name.startswith("hierarchical") else ["mpi"]


def check(comm: MPI.Intracomm, name: str, transport: str, length: int, dtype: str) -> bytes:
    """The sum over all ranks, after holding it to the contract."""
    where = f"{name} over {transport}, {comm.size} ranks, {length} x {dtype}"
    results = []
    with collectives.make_plan(name, comm, length, dtype, transport=transport) as plan:
        for late in (None, comm.size - 1):
            if comm.rank == late and length > 1000:
                time.sleep(0.01)  # other arrival orders must not matter
            plan.buffer[:] = contribution(comm.rank, length, dtype)
            if late is None:
                plan.run()
            else:
                plan.start()
                while not plan.test():
                    os.sched_yield()
            results.append(plan.buffer.tobytes())
            plan.buffer[:] = 1  # at once: nobody may still be reading
            if plan.has_halves and late is None and dtype in HALVES_DTYPES:
                check_halves(plan, comm, results[0], where)
        if plan.transport != "vendor":
            setting = Setting(num_bytes=plan.buffer.nbytes, nodes=place_of(comm).nodes)
            told = collectives.find(name).adapted(setting).traffic(comm.size).scratch
            spare = 0 if "int" in dtype else CHUNK_BYTES  # for the order of additions
            most = told * plan.buffer.nbytes + spare + 8 * comm.size  # parts differ by an element
            assert plan.scratch_bytes <= most, f"{plan.scratch_bytes} bytes of scratch: {where}"
    if "int" in dtype:
        expected = exact_sum(comm.size, length, dtype).tobytes()
        assert results[0] == expected, f"the sum is not exact: {where}"
    else:
        assert is_close(np.frombuffer(results[0], dtype), comm.size), f"the sum is off: {where}"
    if "int" in dtype or name not in collectives.VENDORS:
        digests = comm.allgather(hashlib.sha256(results[0]).digest())
        assert len(set(digests)) == 1, f"ranks differ: {where}"
        assert results[0] == results[1], f"timing changed the result: {where}"
    return results[0]


def check_halves(
    plan: collectives.AllReduce, comm: MPI.Intracomm, whole: bytes, where: str
) -> None:
    """What the owners add between the halves is in every rank's result, and nothing else is."""
    length, dtype, owned = len(plan.buffer), str(plan.buffer.dtype), plan.owned
    plan.buffer[:] = contribution(comm.rank, length, dtype)
    plan.reduce_scatter()
    finished = plan.buffer[owned].copy()
    plan.buffer[:] = 77  # the whole buffer belongs to the caller here
    plan.buffer[owned] = finished + plan.buffer.dtype.type(1)
    if length > 1000 and dtype == "int32" and comm.rank == 0:
        time.sleep(0.01)
    plan.all_gather()
    expected = np.frombuffer(whole, dtype) + plan.buffer.dtype.type(1)
    assert plan.buffer.tobytes() == expected.tobytes(), f"halves: {where}"
    plan.buffer[:] = 1


def main() -> None:
    """Check everything in the table, and some names with arguments."""
    comm = world()
    lengths = [int(text) for text in sys.argv[1:]] or LENGTHS
    one_node = place_of(comm).one_node
    few = comm.size <= UNSIGNED_RANKS
    dtypes = [dtype for dtype in collectives.DTYPES if few or not dtype.startswith("u")]
    checked = []
    for name in (*collectives.NAMES, *MORE):
        if name in collectives.VENDORS and collectives.VENDORS[name].missing():
            continue
        if name == "gloo" and (comm.size > GLOO_RANKS or len(sys.argv) > 1):
            continue
        with_halves = name in collectives.NAMES and collectives.has_halves(name)
        word, _, arguments = name.partition(":")
        degrees = map(int, arguments.split(",")) if word == "butterfly" and arguments else ()
        if math.prod(degrees) > comm.size:
            continue
        ways = transports(name, one_node)
        for length in GLOO_LENGTHS if name == "gloo" else lengths:
            for dtype in dtypes:
                bits = {check(comm, name, way, length, dtype) for way in ways}
                assert len(bits) == 1, f"the transport changed the bits: {name}, {length} x {dtype}"
        checked += [f"{name}/{way}" for way in ways]
        checked += [f"{name}/{way}/halves" for way in ways if with_halves]
    assert not shm._KEPT, "windows were not freed"
    if comm.rank == 0:
        print(f"{len(checked)} checked: {' '.join(checked)}")


main()
