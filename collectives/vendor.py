"""Opaque all-reduces of others, behind the same interface, to compare with and to fall back on.

`mpi`: MPI_Allreduce. Exact for integers; MPI promises neither one order of floating-point additions
nor identical bits on all ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collectives.all_reduce import AllReduce

if TYPE_CHECKING:
    from mpi4py import MPI
    from numpy.typing import DTypeLike, NDArray


class VendorMpi(AllReduce):
    """MPI's own all-reduce, in place."""

    name = "mpi"
    transport = "vendor"

    def __init__(self, comm: MPI.Intracomm, length: int, dtype: DTypeLike) -> None:
        import numpy as np  # the names in VENDORS are listed before numpy is loaded

        from collectives.transports.mpi import all_reduce_in_place

        self._all_reduce_in_place = all_reduce_in_place
        self._comm = comm.Dup()
        self.buffer: NDArray[Any] = np.zeros(length, dtype)

    def run(self) -> None:
        """Replace the buffer by the sum over all ranks. Every rank must call it."""
        self._all_reduce_in_place(self._comm, self.buffer)

    def close(self) -> None:
        """Free the communicator; the buffer stays readable."""
        self._comm.Free()


VENDORS = {"mpi": VendorMpi}
