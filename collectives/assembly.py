"""From names to an all-reduce: the ranks agree, an algorithm meets a transport and a buffer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

import collectives
from collectives import select
from collectives.calls import same_calls
from collectives.guard import agree
from collectives.plan import Plan
from collectives.schedule import Algorithm, Setting
from collectives.transports.mpi import MpiTransport
from collectives.transports.shm import SHARED_MEMORY, ShmTransport
from collectives.vendor import VENDORS
from collectives.verify import refuse_wrong

if TYPE_CHECKING:
    from mpi4py import MPI
    from numpy.typing import DTypeLike, NDArray

    from collectives.all_reduce import AllReduce
    from collectives.transports.base import Transport


def assemble(
    name: str,
    comm: MPI.Intracomm,
    length: int,
    dtype: DTypeLike,
    transport: str,
    buffer: NDArray[Any] | None,
    halves: bool,
    debug: bool,
) -> AllReduce:
    """What `collectives.make_plan` promises."""

    def facts() -> dict[str, Any]:
        if not isinstance(name, str):
            raise ValueError(f"allreduce must be a name, got {name!r}")
        collectives.check_name(name, transport)
        if halves:
            collectives.check_halves(name)
        kind = _checked_dtype(dtype)
        _check_length(length)
        if transport not in (collectives.AUTO, *collectives.TRANSPORTS):
            choices = ", ".join((collectives.AUTO, *collectives.TRANSPORTS))
            raise ValueError(f"transport must be one of {choices}, got {transport!r}")
        if buffer is not None:
            _check_buffer(buffer, length, kind, transport)
        return {
            "allreduce": name,
            "transport": transport,
            "length": int(length),
            "dtype": kind.name,
            "buffer": "the plan's own" if buffer is None else "yours",
            "halves": bool(halves),
            "debug": debug,
        }

    agree(comm, facts)
    kind, length = np.dtype(dtype), int(length)  # a numpy integer of few bits would overflow
    num_bytes = length * kind.itemsize
    place = select.place_of(comm)
    usable: list[str] = []
    if name not in VENDORS:
        usable = _usable(comm, transport, name, place, num_bytes, buffer, halves)
    choice = None
    if name == collectives.AUTO:
        choice = select.choose(comm, place, num_bytes, kind.name, usable, halves)
        name, usable = choice.name, [choice.transport]
    if name in VENDORS:
        made: AllReduce = VENDORS[name](comm, np.zeros(length, kind) if buffer is None else buffer)
    else:
        setting = Setting(num_bytes=num_bytes, nodes=place.nodes)
        algorithm = _adapted(comm, name, setting, debug)
        mover: Transport = ShmTransport(comm) if usable[0] == "shm" else MpiTransport(comm)
        made = Plan(algorithm, mover, length, kind, buffer, halves)
    made.choice = choice.reason if choice is not None else None
    if debug:
        made.before_each_call = same_calls(comm, str(made))
    return made


def _adapted(comm: MPI.Intracomm, name: str, setting: Setting, debug: bool) -> Algorithm:
    """The algorithm for this world; arguments that do not fit it, or a bug, are refused."""
    algorithm = collectives.find(name).adapted(setting)
    algorithm.num_parts(comm.size)  # raises ValueError, the same one on all ranks
    if debug:
        refuse_wrong(algorithm, comm.size)
    return algorithm


def _usable(
    comm: MPI.Intracomm,
    transport: str,
    name: str,
    place: select.Place,
    num_bytes: int,
    buffer: NDArray[Any] | None,
    halves: bool,
) -> list[str]:
    """The transports that can be used for this all-reduce, the preferred one first.

    `vendor`, MPI's own all-reduce, is one that only `auto` can choose.
    """
    if transport == "mpi":
        return ["mpi"]
    vendor = ["vendor"] if transport == collectives.AUTO and not halves else []
    if buffer is not None or (transport == collectives.AUTO and comm.size == 1):
        return ["mpi", *vendor]
    reason = None
    knows_nodes = name.partition(":")[0] in ("hierarchical", collectives.AUTO) and not halves
    if not place.one_node and not knows_nodes:
        reason = (
            f"transport shm needs all ranks on one node, or the all-reduce hierarchical; the "
            f"{comm.size} ranks are on {len(set(place.nodes))} nodes and the all-reduce is {name}"
        )
    elif len(set(place.nodes)) < comm.size or transport == "shm":
        reason = _lacking_memory(comm, place, num_bytes)
    if transport == "shm":
        if reason is not None:
            raise ValueError(reason)
        return ["shm"]
    shares = reason is None and len(set(place.nodes)) < comm.size
    return ["shm", "mpi", *vendor] if shares else ["mpi", *vendor]


def _lacking_memory(comm: MPI.Intracomm, place: select.Place, num_bytes: int) -> str | None:
    """None, or why the shared memory of some node has no room for the buffers of its ranks."""
    free = None
    if os.path.isdir(SHARED_MEMORY):  # noqa: PTH112 - no reason to make a Path of a constant
        status = os.statvfs(SHARED_MEMORY)
        free = status.f_bavail * status.f_frsize
    for rank, there in enumerate(comm.allgather(free)):
        local = place.nodes.count(place.nodes[rank])
        if there is not None and there < local * num_bytes:
            return (
                f"transport shm needs {local * num_bytes} bytes in {SHARED_MEMORY} for the buffers "
                f"of {local} ranks, but rank {rank} finds {there} bytes free"
            )
    return None


def _checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        kind = None if dtype is None else np.dtype(dtype)  # numpy takes None for float64
    except TypeError:
        kind = None
    if kind is None or kind.name not in collectives.DTYPES or not kind.isnative:
        raise ValueError(f"dtype must be one of {', '.join(collectives.DTYPES)}, got {dtype!r}")
    return kind


def _check_length(length: int) -> None:
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 0:
        raise ValueError(f"length must be an integer of at least 0, got {length!r}")


def _check_buffer(buffer: Any, length: int, kind: np.dtype[Any], transport: str) -> None:
    if not isinstance(buffer, np.ndarray):
        raise ValueError(f"buffer must be a numpy array, got {type(buffer).__name__}")
    if buffer.shape != (length,) or buffer.dtype != kind:
        raise ValueError(
            f"buffer must have shape ({length},) and dtype {kind}, got {buffer.shape} and "
            f"{buffer.dtype}"
        )
    if not buffer.flags.c_contiguous:
        raise ValueError(f"buffer must be contiguous, got strides of {buffer.strides[0]} bytes")
    if not buffer.flags.aligned:
        raise ValueError("buffer must be aligned, got an array at an odd address")
    if not buffer.flags.writeable:
        raise ValueError("buffer must be writable, got a read-only array")
    if transport == "shm":
        raise ValueError(
            "transport shm sums in its own shared memory: leave out buffer, or use mpi"
        )
