"""MPI point-to-point messages as persistent requests: matched and checked once, started often.

The only file that imports `mpi4py.MPI`, which starts MPI. Others get what they need of it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mpi4py
import numpy as np

from collectives.guard import WorldError
from collectives.transports.base import Message
from launch.world import foreign_launcher, world_mismatch

mpi4py.rc.initialize, mpi4py.rc.finalize = False, True  # not before its vendor is known

from mpi4py import MPI  # noqa: E402

if not MPI.Is_initialized():
    if reason := foreign_launcher(MPI.get_vendor()[0]):
        raise WorldError(reason)
    MPI.Init_thread()


def world() -> MPI.Intracomm:
    """All ranks that the launcher started together.

    Raises WorldError if the launcher meant another world: N ranks that do not find each other would
    train N models, each on all of the data.
    """
    if mismatch := world_mismatch(MPI.COMM_WORLD.size):
        raise WorldError(mismatch)
    return MPI.COMM_WORLD


def library_version() -> str:
    """Name and version of the MPI library, one line."""
    return MPI.Get_library_version().splitlines()[0].strip("\x00 ,")


def all_reduce_in_place(comm: MPI.Intracomm, buffer: np.ndarray[Any, np.dtype[Any]]) -> None:
    """MPI's own all-reduce (sum)."""
    comm.Allreduce(MPI.IN_PLACE, buffer)


class MpiBatch:
    """Persistent requests of one round."""

    def __init__(self, requests: list[MPI.Prequest]) -> None:
        self._requests = requests

    def start(self) -> None:
        """Post all sends and receives."""
        MPI.Prequest.Startall(self._requests)

    def wait(self) -> None:
        """Return when all of them are complete."""
        MPI.Request.Waitall(self._requests)

    def free(self) -> None:
        """Free the requests: MPICH prints a line for each that is forgotten."""
        for request in self._requests:
            request.Free()
        self._requests = []


class MpiTransport:
    """Messages over a duplicate of `comm`, so that they never meet the caller's own."""

    name = "mpi"

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm.Dup()
        self.rank: int = comm.rank
        self.world_size: int = comm.size

    def prepare(self, sends: Sequence[Message], receives: Sequence[Message]) -> MpiBatch:
        """Bind the messages of one round to their memory; receives are posted first."""
        requests = [self._comm.Recv_init(array, source=peer) for peer, array in receives]
        requests += [self._comm.Send_init(array, dest=peer) for peer, array in sends]
        return MpiBatch(requests)

    def close(self) -> None:
        """Free the communicator."""
        self._comm.Free()
