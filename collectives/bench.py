"""How fast is each all-reduce here? mpirun -np 4 python -m collectives.bench

Prints the columns of nccl-tests for every algorithm and size, beside MPI's own all-reduce measured
in the same run. Algorithms take turns within one size, so that a slow moment of the machine hits
all of them; every time is the slowest rank's, and the median over the repeats is shown.

    algbw   bytes / seconds
    busbw   algbw * 2 (p - 1) / p: comparable between world sizes, the limit is the slowest link
    wrong   number of elements that differ from the exact sum, over all ranks
    ratio   seconds of MPI's own all-reduce / seconds of this one
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
DTYPES = ("int32", "int64", "float32", "float64")
DEFAULT_SIZES = "4K 64K 1M 16M 64M"
NATIVE = "mpi"
SECONDS_PER_REPEAT = 0.005


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
    if text not in ("all", *collectives.NAMES):
        raise argparse.ArgumentTypeError(
            f"allreduce must be all or one of {', '.join(collectives.NAMES)}, got {text!r}"
        )
    return text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m collectives.bench", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    made.add_argument("--allreduce", nargs="+", type=names, default=["all"], metavar="NAME")
    made.add_argument(
        "--bytes", nargs="+", type=num_bytes, metavar="SIZE",
        default=[num_bytes(size) for size in DEFAULT_SIZES.split()],
        help=f"sizes, K = 1024 (default {DEFAULT_SIZES})",
    )  # fmt: skip
    made.add_argument("--dtype", choices=DTYPES, default="int32")
    made.add_argument("--repeats", type=repeats, default=11, help="timed repeats (default 11)")
    made.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", type=writable, help="rows as JSON"
    )
    return made


def measure(
    comm: MPI.Intracomm, chosen: list[str], size: int, dtype: str, num_repeats: int
) -> list[dict[str, Any]]:
    """One row for each all-reduce in `chosen`, at one size. Every rank must call it."""
    import numpy as np

    length = size // np.dtype(dtype).itemsize
    plans = {name: collectives.make_plan(name, comm, length, dtype) for name in chosen}
    wrong = {name: _count_wrong(comm, plan) for name, plan in plans.items()}
    calls = {name: _calls(comm, plan) for name, plan in plans.items()}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(num_repeats):
        for name, plan in plans.items():
            seconds[name].append(_time(comm, plan, calls[name]))
    for plan in plans.values():
        plan.close()
    median = {name: statistics.median(times) for name, times in seconds.items()}
    moved = length * np.dtype(dtype).itemsize
    share = 2 * (comm.size - 1) / comm.size
    return [
        {
            "algorithm": name,
            "transport": plans[name].transport,
            "world_size": comm.size,
            "bytes": moved,
            "dtype": dtype,
            "seconds_median": median[name],
            "algbw_GBps": moved / median[name] / 1e9,
            "busbw_GBps": moved / median[name] / 1e9 * share,
            "ratio_to_native": median[NATIVE] / median[name],
            "wrong": wrong[name],
        }
        for name in chosen
    ]


def _count_wrong(comm: MPI.Intracomm, plan: collectives.AllReduce) -> int:
    """Sum small integers, whose sum is exact in every dtype, and compare with the closed form."""
    import numpy as np

    index = np.arange(len(plan.buffer))

    def contribution(rank: int) -> NDArray[np.int64]:
        return (index * 7 + rank * 13) % 101 - 50

    plan.buffer[:] = contribution(comm.rank)
    plan.run()
    expected = sum(contribution(rank) for rank in range(comm.size))
    wrong = int(np.count_nonzero(plan.buffer != expected))
    plan.buffer[:] = 0  # repeated sums of zeros neither grow nor overflow
    return int(comm.allreduce(wrong))


def _calls(comm: MPI.Intracomm, plan: collectives.AllReduce) -> int:
    """How many calls fill one repeat; equal on all ranks. Warms up as well."""
    once = min(_time(comm, plan, 1) for _ in range(3))
    return max(1, min(1000, int(SECONDS_PER_REPEAT / once)))


def _time(comm: MPI.Intracomm, plan: collectives.AllReduce, calls: int) -> float:
    """Seconds of one call: the slowest rank's mean over `calls` calls in a row."""
    comm.Barrier()
    start = time.perf_counter()
    for _ in range(calls):
        plan.run()
    seconds: list[float] = comm.allgather((time.perf_counter() - start) / calls)
    return max(seconds)


def _table(rows: list[dict[str, Any]], stream: Any) -> None:
    columns = ("bytes", "count", "dtype", "redop", "algorithm", "transport")
    head = "".join(f"{name:>12}" for name in columns)
    print(f"# {head}{'time(us)':>12}{'algbw(GB/s)':>13}{'busbw(GB/s)':>13}{'wrong':>7}{'ratio':>7}",
          file=stream)  # fmt: skip
    for row in rows:
        count = row["bytes"] // (4 if row["dtype"].endswith("32") else 8)
        cells = (row["bytes"], count, row["dtype"], "sum", row["algorithm"], row["transport"])
        print(
            "  " + "".join(f"{cell:>12}" for cell in cells)
            + f"{row['seconds_median'] * 1e6:>12.1f}{row['algbw_GBps']:>13.3f}"
            f"{row['busbw_GBps']:>13.3f}{row['wrong']:>7}{row['ratio_to_native']:>7.2f}",
            file=stream,
        )  # fmt: skip


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
    from collectives.transports.mpi import library_version

    chosen = list(collectives.NAMES) if "all" in options.allreduce else options.allreduce
    chosen = list(dict.fromkeys([*chosen, NATIVE]))
    people = sys.stderr if options.json == "-" else sys.stdout
    if comm.rank == 0:
        print(f"# {comm.size} ranks, {library_version()}", file=people)
    rows = []
    for number, size in enumerate(options.bytes):
        found = measure(comm, chosen, size, options.dtype, options.repeats)
        rows += found
        if comm.rank == 0:
            _table(found, people)
            print(f"# {number + 1} of {len(options.bytes)} sizes", file=people, flush=True)
    if comm.rank == 0 and options.json:
        text = json.dumps({"rows": rows}, allow_nan=False, indent=2)
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 1 if any(row["wrong"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
