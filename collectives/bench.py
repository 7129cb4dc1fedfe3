"""How fast is each all-reduce here? mpirun -np 4 python -m collectives.bench

Prints the columns of nccl-tests for every algorithm, transport and size. Each is measured in turns
with MPI's own all-reduce, so that a slow moment of the machine hits both; every time is the slowest
rank's, and the median over the repeats is shown.

    algbw   bytes / seconds
    busbw   algbw * 2 (p - 1) / p: comparable between world sizes, the limit is the slowest link
    wrong   number of elements that differ from the exact sum, over all ranks
    ratio   seconds of MPI's own all-reduce, in place or not, whichever is faster / seconds of this
    limit   for shared memory: seconds of the additions and copies of a direct exchange alone, on
            all ranks at once with nobody waiting / seconds of this. More than 1 is possible, where
            another algorithm or a lucky order moves less through the caches

What is measured is kept for `--allreduce auto` (see collectives.select).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import collectives
from collectives.guard import WorldError, crash, interrupted, start
from launch.world import launched_rank

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray

UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}
DEFAULT_SIZES = "4K 64K 1M 16M 64M"
NATIVE = "mpi"
EVERY = "all"
SECONDS_PER_REPEAT = 0.02
SECONDS_PER_ROW = 3.0
FEWEST_REPEATS = 5


def num_bytes(text: str) -> int:
    """64K, 1M or a plain number of bytes."""
    factor = UNITS.get(text[-1:].upper(), 1)
    number = text[:-1] if factor > 1 else text
    if not number.isdecimal() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"bytes must look like 4096, 64K or 1M, got {text!r}")
    return int(number) * factor


def writable(text: str) -> str:
    """A file that can be written, or - for standard output."""
    file = Path(text)
    if text != "-" and (
        file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)
    ):
        raise argparse.ArgumentTypeError(f"must be a writable file, got {text}")
    return text


def repeats(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"repeats must be at least 1, got {text}")
    return int(text)


def names(text: str) -> str:
    """An all-reduce, or `all`."""
    if text == EVERY:
        return text
    if text == collectives.AUTO:
        raise argparse.ArgumentTypeError("auto is chosen by this benchmark, not measured by it")
    try:
        collectives.check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m collectives.bench", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    made.add_argument(
        "--allreduce", nargs="+", type=names, default=[EVERY], metavar="NAME",
        help=f"{EVERY} (default), or some of {', '.join(collectives.NAMES)}",
    )  # fmt: skip
    made.add_argument(
        "--transport", nargs="+", default=[EVERY],
        choices=[*collectives.TRANSPORTS, "vendor", EVERY],
    )  # fmt: skip
    made.add_argument(
        "--bytes", nargs="+", type=num_bytes, metavar="SIZE",
        default=[num_bytes(size) for size in DEFAULT_SIZES.split()],
        help=f"sizes, K = 1024 (default {DEFAULT_SIZES})",
    )  # fmt: skip
    made.add_argument("--dtype", choices=collectives.DTYPES, default="int32")
    made.add_argument(
        "--repeats", type=repeats, default=11, help="timed repeats, fewer if slow (default 11)"
    )
    made.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", type=writable, help="rows as JSON"
    )
    return made


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
    found, notes = [], []
    for name in wanted:
        if name in collectives.VENDORS:
            missing = collectives.VENDORS[name].missing()
            if missing:
                notes.append(f"left out: {missing}")
            elif "vendor" in ways and name != NATIVE:
                found.append(Route(name, "vendor"))
            continue
        for way in ways:
            shares = one_node or name.startswith("hierarchical")
            if way == "mpi" or (way == "shm" and shares):
                found.append(Route(name, way))
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
) -> list[dict[str, Any]]:
    """One row for each of `chosen` and for MPI's own, at one size. Every rank must call it."""
    import numpy as np

    length = size // np.dtype(dtype).itemsize
    moved = length * np.dtype(dtype).itemsize
    in_place = collectives.make_plan(NATIVE, comm, length, dtype)
    natives = [in_place.run, Native(comm, length, dtype).run]
    native_wrong = _count_wrong(comm, in_place)
    shares = one_node and any(route.transport == "shm" for route in chosen)
    limit = _MemoryLimit(comm, length, dtype, needed=shares)
    seconds_of_native: list[float] = []
    rows = []

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
            "memory_limit_fraction": None,
            "wrong": wrong,
        }

    for route in chosen:
        with collectives.make_plan(route.name, comm, length, dtype, transport=route.asked) as plan:
            wrong = _count_wrong(comm, plan)
            over_memory = plan.transport == "shm" and limit.run is not None
            turns = [plan.run, *natives, *([limit.run] if over_memory and limit.run else [])]
            ours, first, second, *alone = _medians(comm, turns, num_repeats)
            seconds_of_native += [first, min(first, second)]
            found = row(plan.name, plan.transport, ours, min(first, second), wrong)
            if alone:
                found["memory_limit_fraction"] = alone[0] / ours
            rows.append(found)
    if not rows:
        first, second = _medians(comm, natives, num_repeats)
        seconds_of_native = [first, min(first, second)]
    usual, best = (statistics.median(seconds_of_native[start::2]) for start in (0, 1))
    rows.append(row(NATIVE, in_place.transport, usual, best, native_wrong))
    limit.close()
    in_place.close()
    return rows


class _MemoryLimit:
    """The additions and copies of a direct exchange through shared memory, with nobody waiting."""

    def __init__(self, comm: MPI.Intracomm, length: int, dtype: str, *, needed: bool) -> None:
        self._plan: Any = None
        self.run: Callable[[], None] | None = None
        if needed and comm.size > 1:
            name = f"butterfly:{comm.size}"
            self._plan = collectives.make_plan(name, comm, length, dtype, transport="shm")
            self.run = self._plan.work_alone

    def close(self) -> None:
        """Give the memory back."""
        if self._plan is not None:
            self._plan.close()


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


HEAD = (
    f"# {'bytes':>10}{'count':>10}{'dtype':>9}  {'algorithm':<20}{'transport':<10}{'time(us)':>11}"
    f"{'algbw(GB/s)':>13}{'busbw(GB/s)':>13}{'wrong':>7}{'ratio':>8}{'limit':>8}"
)


def _line(row: dict[str, Any]) -> str:
    count = row["bytes"] // (4 if row["dtype"].endswith("32") else 8)
    limit = row["memory_limit_fraction"]
    return (
        f"  {row['bytes']:>10}{count:>10}{row['dtype']:>9}  {row['algorithm']:<20}"
        f"{row['transport']:<10}{row['seconds_median'] * 1e6:>11.1f}{row['algbw_GBps']:>13.3f}"
        f"{row['busbw_GBps']:>13.3f}{row['wrong']:>7}{row['ratio_to_native']:>8.2f}"
        + ("" if limit is None else f"{limit:>8.2f}")
    )


def main() -> int:
    """Run the benchmark; 1 if any sum was wrong."""
    if launched_rank() == 0:
        options = parser().parse_args()
    else:  # rank 0 alone speaks about wrong arguments, and its exit code ends the job
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                options = parser().parse_args()
            except SystemExit:
                return 0
    try:
        comm = start()
    except WorldError as error:
        if launched_rank() == 0:
            print(f"collectives.bench: error: {error}", file=sys.stderr)
            return 4
        return 0
    try:
        return _run(comm, options)
    except KeyboardInterrupt:
        return interrupted(comm, "collectives.bench: interrupted", 130)
    except BaseException:
        crash(comm, "collectives.bench", 70)


def _run(comm: MPI.Intracomm, options: argparse.Namespace) -> int:
    from collectives import select

    people = sys.stderr if options.json == "-" else sys.stdout

    def say(text: str) -> None:
        if comm.rank == 0:
            print(text, file=people, flush=True)

    place = select.place_of(comm)
    num_nodes = len(set(place.nodes))
    on = "1 node" if num_nodes == 1 else f"{num_nodes} nodes"
    say(f"# {comm.size} ranks on {on}, {place.library}")
    chosen, notes = routes(options.allreduce, options.transport, num_nodes == 1)
    for note in notes:
        say(f"# {note}")
    rows = []
    for number, size in enumerate(options.bytes):
        say(HEAD)
        try:
            found = measure(comm, chosen, size, options.dtype, options.repeats, place.one_node)
        except ValueError as error:  # the same on all ranks: it does not fit this world
            if comm.rank == 0:
                print(f"python -m collectives.bench: error: {error}", file=sys.stderr)
            return 2
        rows += found
        for row in found:
            say(_line(row))
        say(f"# {number + 1} of {len(options.bytes)} sizes")
    if comm.rank == 0:
        say(f"# {select.record(place, rows)}")
        if options.json:
            text = json.dumps({"rows": rows}, allow_nan=False, indent=2)
            if options.json == "-":
                print(text)
            else:
                Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 1 if any(row["wrong"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
