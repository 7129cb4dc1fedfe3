"""How fast is each all-reduce here? mpirun -np 4 python -m collectives.bench

Prints the columns of nccl-tests for every algorithm, transport and size. Each is measured in turns
with MPI's own all-reduce, so that a slow moment of the machine hits both; every time is the slowest
rank's, and the median over the repeats is shown.

    algbw   bytes / seconds
    busbw   algbw * 2 (p - 1) / p: comparable between world sizes, the limit is the slowest link
    wrong   number of elements that differ from the exact sum, over all ranks
    ratio   seconds of MPI's own all-reduce, in place or not, whichever is faster, measured in turns
            with this one / seconds of this one
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
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import collectives
from collectives.arguments import Parser, count, num_bytes, writable
from collectives.guard import WorldError, crash, interrupted, on_root, start
from collectives.measure import EVERY, Route, measure, routes
from launch.world import launched_rank

if TYPE_CHECKING:
    from mpi4py import MPI

DEFAULT_SIZES = "4K 64K 1M 16M 64M"


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
    made = Parser(
        prog="python -m collectives.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--allreduce", nargs="+", type=names, default=[EVERY], metavar="NAME",
        help=f"{EVERY} (default), or some of {', '.join(collectives.NAMES)}",
    )  # fmt: skip
    made.add_argument(
        "--transport", nargs="+", default=[EVERY],
        choices=[*collectives.TRANSPORTS, "vendor", EVERY], help=f"default {EVERY}",
    )  # fmt: skip
    made.add_argument(
        "--bytes", nargs="+", type=num_bytes, metavar="SIZE",
        default=[num_bytes(size) for size in DEFAULT_SIZES.split()],
        help=f"sizes, K = 1024 (default {DEFAULT_SIZES})",
    )  # fmt: skip
    made.add_argument("--dtype", choices=collectives.DTYPES, default="int32", help="default int32")
    made.add_argument(
        "--repeats", type=count, default=11, help="timed repeats, fewer if slow (default 11)"
    )
    made.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", type=writable, help="rows as JSON"
    )
    return made


HEAD = (
    f"# {'bytes':>10}{'count':>10}{'dtype':>9}  {'algorithm':<20} {'transport':<10}{'time(us)':>11}"
    f"{'algbw(GB/s)':>13}{'busbw(GB/s)':>13}{'wrong':>7}{'ratio':>8}{'limit':>8}"
)


def _line(row: dict[str, Any]) -> str:
    count = row["bytes"] // (4 if row["dtype"].endswith("32") else 8)
    limit = row["memory_limit_fraction"]
    return (
        f"  {row['bytes']:>10}{count:>10}{row['dtype']:>9}  {row['algorithm']:<20} "
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
    ranks = "1 rank (mpirun -np N starts N)" if comm.size == 1 else f"{comm.size} ranks"
    say(f"# {ranks} on {on}, {place.library}")
    chosen, notes = routes(options.allreduce, options.transport, num_nodes == 1)
    for note in notes:
        say(f"# {note}")
    rows: list[dict[str, Any]] = []
    try:
        _check(comm.size, chosen)
        for number, size in enumerate(options.bytes):
            say(HEAD)
            measured = comm, chosen, size, options.dtype, options.repeats, place.one_node
            found, notes = measure(*measured)
            rows += found
            for row in found:
                say(_line(row))
            for note in notes:
                say(f"# {note}")
            limits = [row["memory_limit_seconds"] for row in found if row["memory_limit_seconds"]]
            if limits:
                limit = statistics.median(limits)
                rate = size / limit / 1e9
                say(f"# limit of the memory: {limit * 1e6:.1f} us, algbw {rate:.3f} GB/s")
            say(f"# {number + 1} of {len(options.bytes)} sizes")
            if comm.rank == 0:
                kept = select.record(place, rows)
            on_root(comm, ValueError, partial(_write, options.json, rows))
    except ValueError as error:  # the same on all ranks: it does not fit this world
        if comm.rank == 0:
            print(f"python -m collectives.bench: error: {error}", file=sys.stderr)
        return 2
    if comm.rank == 0:
        say(f"# {kept}")
        if options.json == "-":
            print(_json(rows))
    return 1 if any(row["wrong"] for row in rows) else 0


def _check(world_size: int, chosen: list[Route]) -> None:
    """Raise ValueError for a schedule that does not fit, or would hang or go wrong."""
    from collectives.verify import refuse_wrong

    for name in {route.name for route in chosen if route.transport != "vendor"}:
        algorithm = collectives.find(name)
        algorithm.num_parts(world_size)
        refuse_wrong(algorithm, world_size)


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps({"rows": rows}, allow_nan=False, indent=2)


def _write(target: str | None, rows: list[dict[str, Any]]) -> None:
    """Write what there is so far; an interrupted benchmark keeps its finished sizes."""
    if target in (None, "-"):
        return
    try:
        Path(target).write_text(_json(rows) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--json {target} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
