"""The measurements of collectives.bench: what is compared, in turns, and how the time is taken."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import collectives

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray

NATIVE = "mpi"
EVERY = "all"
SECONDS_PER_REPEAT = 0.02
SECONDS_PER_ROW = 3.0
FEWEST_REPEATS = 5


@dataclass(frozen=True)
class Route:
    """An all-reduce and how its bytes travel."""

    name: str
    transport: str

    @property
    def asked(self) -> str:
        """The argument of `make_plan`."""
        return collectives.AUTO if self.transport == "vendor" else self.transport


def routes(
    asked: list[str], transports: list[str], one_node: bool
) -> tuple[list[Route], list[str]]:
    """All routes but MPI's own, which is always measured, and notes on what is left out."""
    everything = EVERY in asked
    wanted = collectives.NAMES if everything else tuple(dict.fromkeys(asked))
    ways = (*collectives.TRANSPORTS, "vendor") if EVERY in transports else tuple(transports)
    found: list[Route] = []
    notes: list[str] = []
    for name in wanted:
        before = len(found)
        if name in collectives.VENDORS:
            missing = collectives.VENDORS[name].missing()
            if missing:
                notes.append(f"left out: {missing}")
            elif "vendor" in ways and name != NATIVE:
                found.append(Route(name, "vendor"))
        else:
            shares = one_node or name.startswith("hierarchical")
            usable = [way for way in ways if way == "mpi" or (way == "shm" and shares)]
            found += [Route(name, way) for way in usable]
        if len(found) == before and not everything and name != NATIVE:
            notes.append(f"left out: {name} over {' or '.join(ways)}, which cannot be here")
    if not one_node and "shm" in ways:
        notes.append("shm is measured for hierarchical only: the ranks are on several nodes")
    return found, notes


class Native:
    """MPI's own all-reduce from one buffer into another, the other way to call it."""

    def __init__(self, comm: MPI.Intracomm, length: int, dtype: str) -> None:
        import numpy as np

        from collectives.transports.mpi import all_reduce_between

        self._all_reduce_between = all_reduce_between
        self._comm = comm
        self._source, self._target = np.zeros(length, dtype), np.zeros(length, dtype)

    def run(self) -> None:
        """Sum."""
        self._all_reduce_between(self._comm, self._source, self._target)


def measure(
    comm: MPI.Intracomm,
    chosen: list[Route],
    size: int,
    dtype: str,
    num_repeats: int,
    one_node: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each of `chosen` and for MPI's own, at one size. Every rank must call it.

    Also notes on what had to be left out: the shared memory of a container is often small.
    """
    import numpy as np

    length = size // np.dtype(dtype).itemsize
    if length == 0:
        raise ValueError(
            f"bytes must be at least {np.dtype(dtype).itemsize} for {dtype}, got {size}"
        )
    moved = length * np.dtype(dtype).itemsize
    in_place = collectives.make_plan(NATIVE, comm, length, dtype)
    natives = [in_place.run, Native(comm, length, dtype).run]
    native_wrong = _count_wrong(comm, in_place)
    limit = _MemoryLimit(comm, length, dtype)
    seconds_of_native: list[float] = []
    rows = []
    notes: list[str] = []

    def row(name: str, transport: str, seconds: float, best: float, wrong: int) -> dict[str, Any]:
        return {
            "algorithm": name,
            "transport": transport,
            "world_size": comm.size,
            "bytes": moved,
            "dtype": dtype,
            "seconds_median": seconds,
            "algbw_GBps": moved / seconds / 1e9,
            "busbw_GBps": moved / seconds / 1e9 * 2 * (comm.size - 1) / comm.size,
            "ratio_to_native": best / seconds,
            "memory_limit_seconds": None,
            "memory_limit_fraction": None,
            "wrong": wrong,
        }

    for route in chosen:
        try:
            made = _make(comm, route, length, dtype, limit)
        except ValueError as error:
            if route.transport != "shm":
                raise
            notes.append(f"left out: {route.name}: {error}")
            continue
        with made as plan:
            wrong = _count_wrong(comm, plan)
            work = limit.work() if plan.transport == "shm" and one_node else None
            turns = [plan.run, *natives, *([work] if work is not None else [])]
            ours, first, second, *alone = _medians(comm, turns, num_repeats)
            seconds_of_native += [first, min(first, second)]
            found = row(plan.name, plan.transport, ours, min(first, second), wrong)
            if alone:
                found["memory_limit_seconds"] = alone[0]
                found["memory_limit_fraction"] = alone[0] / ours
            rows.append(found)
    if not rows:
        first, second = _medians(comm, natives, num_repeats)
        seconds_of_native = [first, min(first, second)]
    usual, best = (statistics.median(seconds_of_native[start::2]) for start in (0, 1))
    rows.append(row(NATIVE, in_place.transport, usual, best, native_wrong))
    limit.close()
    in_place.close()
    return rows, notes


class _MemoryLimit:
    """The additions and copies of a direct exchange through shared memory, with nobody waiting."""

    def __init__(self, comm: MPI.Intracomm, length: int, dtype: str) -> None:
        self._arguments = f"butterfly:{comm.size}" if comm.size > 1 else "", comm, length, dtype
        self._plan: Any = None

    def work(self) -> Callable[[], None] | None:
        """Do it once; None where there is no room for its buffers. Every rank must call it."""
        if self._plan is None and self._arguments[0]:
            with contextlib.suppress(ValueError):  # the same on all ranks
                self._plan = collectives.make_plan(*self._arguments, transport="shm")
        return None if self._plan is None else self._plan.work_alone

    def close(self) -> bool:
        """Give the memory back; whether there was any."""
        plan, self._plan = self._plan, None
        if plan is not None:
            plan.close()
        return plan is not None


def _make(
    comm: MPI.Intracomm, route: Route, length: int, dtype: str, limit: _MemoryLimit
) -> collectives.AllReduce:
    """The plan of a route, which has the shared memory before the limit has."""
    try:
        return collectives.make_plan(route.name, comm, length, dtype, transport=route.asked)
    except ValueError:
        if route.transport != "shm" or not limit.close():
            raise
    return collectives.make_plan(route.name, comm, length, dtype, transport=route.asked)


def _medians(comm: MPI.Intracomm, turns: list[Callable[[], None]], num_repeats: int) -> list[float]:
    """The median seconds of a call of each, all taking turns. Every rank must call it."""
    calls = []
    for run in turns:
        once = min(_time(comm, run, 1) for _ in range(3))
        calls.append(max(1, min(1000, int(SECONDS_PER_REPEAT / once))))
    seconds: list[list[float]] = [[] for _ in turns]
    begin = time.perf_counter()
    for number in range(num_repeats):
        for index, run in enumerate(turns):
            seconds[index].append(_time(comm, run, calls[index]))
        late = time.perf_counter() - begin > SECONDS_PER_ROW
        if number + 1 >= FEWEST_REPEATS and comm.bcast(late):
            break
    return [statistics.median(times) for times in seconds]


def _count_wrong(comm: MPI.Intracomm, plan: collectives.AllReduce) -> int:
    """Sum small integers, whose sum is exact in every dtype, and compare with the closed form."""
    import numpy as np

    index = np.arange(len(plan.buffer))

    def contribution(rank: int) -> NDArray[np.int64]:
        return (index * 7 + rank * 13) % 101

    plan.buffer[:] = contribution(comm.rank)
    plan.run()
    expected = sum(contribution(rank) for rank in range(comm.size))
    wrong = int(np.count_nonzero(plan.buffer != expected))
    plan.buffer[:] = 0  # repeated sums of zeros neither grow nor overflow
    return int(comm.allreduce(wrong))


def _time(comm: MPI.Intracomm, run: Callable[[], None], calls: int) -> float:
    """Seconds of one call: the slowest rank's mean over `calls` calls in a row."""
    comm.Barrier()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    seconds: list[float] = comm.allgather((time.perf_counter() - start) / calls)
    return max(seconds)
