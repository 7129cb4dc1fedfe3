"""Opaque all-reduces of others, behind the same interface, to compare with and to fall back on.

`mpi`: MPI_Allreduce. `gloo`: torch.distributed's all-reduce on CPUs, by a process group of its own
whose ranks find each other through MPI. Both are exact for integers; neither promises one order of
floating-point additions, nor identical bits on all ranks.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from collectives.all_reduce import AllReduce

if TYPE_CHECKING:
    from mpi4py import MPI
    from numpy.typing import NDArray


class VendorMpi(AllReduce):
    """MPI's own all-reduce, in place."""

    name = "mpi"
    transport = "vendor"

    def __init__(self, comm: MPI.Intracomm, buffer: NDArray[Any]) -> None:
        from collectives.transports import mpi  # the names are listed before MPI is loaded

        self._mpi = mpi
        self._comm = comm.Dup()
        self._request: MPI.Request | None = None
        self._buffer = buffer

    @staticmethod
    def missing() -> None:
        """MPI is always here."""

    def _run(self) -> None:
        self._mpi.all_reduce_in_place(self._comm, self.buffer)

    def _start(self) -> None:
        self._request = self._mpi.start_all_reduce(self._comm, self.buffer)

    def _test(self) -> bool:
        assert self._request is not None
        return self._request.Test()

    def _wait(self) -> None:
        assert self._request is not None
        self._request.Wait()

    def _close(self) -> None:
        """Free the communicator; the buffer stays readable."""
        self._comm.Free()


class VendorGloo(AllReduce):
    """The all-reduce of torch.distributed on CPUs, in place."""

    name = "gloo"
    transport = "vendor"
    SIGNED: ClassVar = {"uint32": "int32", "uint64": "int64"}  # the same sums modulo the word size

    def __init__(self, comm: MPI.Intracomm, buffer: NDArray[Any]) -> None:
        import torch
        import torch.distributed

        distributed: Any = torch.distributed  # its names are not all declared
        self._store, local = torch_store(comm)
        with named_interface(local):
            self._group: Any = distributed.ProcessGroupGloo(
                self._store, comm.rank, comm.size, timedelta(minutes=30)
            )
        self._comm = comm.Dup()
        self._work: Any = None
        self._buffer = buffer
        dtype = self.SIGNED.get(str(buffer.dtype), str(buffer.dtype))
        self._tensor = torch.from_numpy(buffer.view(dtype))

    @staticmethod
    def missing() -> str | None:
        """torch is optional."""
        if importlib.util.find_spec("torch") is None:
            return "gloo needs torch: pip install 'dpsgd[torch]'"
        return None

    def _start(self) -> None:
        self._work = self._group.allreduce([self._tensor])

    def _test(self) -> bool:
        if not self._work.is_completed():
            return False
        self._work.wait()  # raises what went wrong
        return True

    def _wait(self) -> None:
        self._work.wait()

    def _close(self) -> None:
        """Forget the group, when no rank needs the store any more; the buffer stays readable."""
        self._comm.Barrier()
        self._comm.Free()
        self._work = self._group = self._store = None


def torch_store(comm: MPI.Intracomm) -> tuple[Any, bool]:
    """Where the ranks of `comm` meet for torch.distributed, and whether all are on one node.

    Every rank must call it. Rank 0 holds the store: it must outlive what the others do with it.
    """
    import torch.distributed

    from collectives.select import place_of

    make: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]
    local = place_of(comm).one_node
    host: str = comm.bcast("127.0.0.1" if local else socket.gethostname())
    server = make(host, 0, is_master=True, wait_for_workers=False) if comm.rank == 0 else None
    port: int = comm.bcast(server.port if server is not None else 0)
    return server or make(host, port, is_master=False), local


@contextlib.contextmanager
def named_interface(local: bool) -> Iterator[None]:
    """gloo looks up the name of this host, which often leads nowhere; one node needs no name."""
    name = "GLOO_SOCKET_IFNAME"
    before = os.environ.get(name)
    if local and before is None:
        os.environ[name] = "lo"
    try:
        yield
    finally:
        if local and before is None:
            del os.environ[name]


VENDORS: dict[str, type[VendorMpi] | type[VendorGloo]] = {
    one.name: one for one in (VendorMpi, VendorGloo)
}
"""Made with (comm, buffer); `missing` says what has to be installed, if anything."""
