"""Sums a flat buffer over ranks, by a schedule that you choose and can prove.

    schedule      the language: exchanges, rounds, parts of a buffer
    algorithms/   alltoall, ring, tree: one file each, pure functions of (rank, world_size)
    verify        runs all ranks of a schedule in one process and checks every promise
    all_reduce    what every all-reduce can do, ours or another's
    plan          a schedule bound to a buffer and a transport
    transports/   who moves the bytes
    vendor        MPI's own all-reduce behind the same interface
    guard         agreement between ranks, waiting without spinning
    bench         python -m collectives.bench

Nothing here knows about learning or privacy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.python import require_python

require_python()

from collectives.algorithms import ALGORITHMS  # noqa: E402
from collectives.all_reduce import AllReduce  # noqa: E402
from collectives.vendor import VENDORS  # noqa: E402

if TYPE_CHECKING:
    from mpi4py import MPI
    from numpy.typing import DTypeLike


NAMES: tuple[str, ...] = (*ALGORITHMS, *VENDORS)
"""Every all-reduce by name: our schedules, then the vendors'."""

__all__ = ["ALGORITHMS", "NAMES", "VENDORS", "AllReduce", "make_plan"]


def make_plan(name: str, comm: MPI.Intracomm, length: int, dtype: DTypeLike) -> AllReduce:
    """An all-reduce (sum) of `length` elements over the ranks of `comm`, ready to run.

    Every rank must call it with the same arguments. Raises ValueError for an unknown name.
    """
    if name in VENDORS:
        return VENDORS[name](comm, length, dtype)
    if name not in ALGORITHMS:
        raise ValueError(f"allreduce must be one of {', '.join(NAMES)}, got {name!r}")
    from collectives.plan import Plan  # numpy and MPI are loaded only for those who run something
    from collectives.transports.mpi import MpiTransport

    return Plan(ALGORITHMS[name], MpiTransport(comm), length, dtype)
