"""`auto`: the all-reduce that was the fastest here, or should be.

The benchmark leaves its rows in a table of its own for every place: hosts, nodes of the ranks, MPI.
Between measured sizes times are interpolated on logarithmic scales. Without a table for this place,
as long as some schedule is missing in it, or far from the sizes that are in it, the cost model
decides with round numbers for one message, one byte and one addition.

    $XDG_CACHE_HOME/dpsgd/all-reduce-<digest of the place>.json      (default ~/.cache)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collectives.algorithms import ALGORITHMS, find
from collectives.guard import on_root
from collectives.price import Link, predict
from collectives.transports.mpi import library_version, node_of

if TYPE_CHECKING:
    from mpi4py import MPI

MODEL = {
    "shm": Link(alpha=4e-6, overhead=5e-7, beta=5e-11, gamma=5e-11),
    "mpi": Link(alpha=1e-5, overhead=5e-6, beta=2.5e-10, gamma=5e-11),
    "network": Link(alpha=2e-5, overhead=5e-6, beta=8e-10, gamma=5e-11),
}
"""Between ranks of a node, by memory and by messages; and between nodes, at 10 Gb/s."""

FARTHEST = 16
"""How many times smaller or larger than all measured sizes a buffer may be."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a measured table is good for."""

    hosts: tuple[str, ...]
    nodes: tuple[int, ...]
    library: str

    @property
    def one_node(self) -> bool:
        """Whether all ranks can share memory."""
        return len(set(self.nodes)) == 1

    @property
    def table(self) -> Path:
        """Where the rows for this place are."""
        base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]
        return Path(base) / "dpsgd" / f"all-reduce-{digest}.json"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and why."""

    name: str
    transport: str
    reason: str


def place_of(comm: MPI.Intracomm) -> Place:
    """Where these ranks are. Every rank must call it."""
    hosts, nodes = zip(*comm.allgather((socket.gethostname(), node_of(comm))), strict=True)
    return Place(hosts=hosts, nodes=nodes, library=library_version())


def record(place: Place, rows: Sequence[Row]) -> str:
    """Add rows of the benchmark to the table of this place; a sentence that says what happened."""
    right = [row for row in rows if not row["wrong"]]
    known = {_key(row): row for row in [*_load(place), *right]}
    text = json.dumps({"place": asdict(place), "rows": list(known.values())}, indent=1)
    try:
        place.table.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=place.table.parent)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - it is open already
            file.write(text)
        Path(unfinished).replace(place.table)
    except OSError as error:
        return f"not kept for --allreduce auto: {place.table} cannot be written ({error.strerror})"
    except RuntimeError:
        return "not kept for --allreduce auto: there is no home folder; set XDG_CACHE_HOME"
    return f"kept for --allreduce auto in {place.table}"


def choose(
    comm: MPI.Intracomm,
    place: Place,
    num_bytes: int,
    dtype: str,
    transports: Sequence[str],
    halves: bool = False,
) -> Choice:
    """The fastest way to sum `num_bytes` here over one of `transports`. Every rank must call it.

    With `halves`, of those that can be run in two. `vendor` among the transports stands for MPI's
    own all-reduce. It is taken for integers only: for floating-point numbers it does not promise
    the same bits everywhere.
    """
    if comm.size == 1:
        return Choice(name="ring", transport=transports[0], reason="none: there is one rank")

    def best() -> Choice:
        return _measured(place, num_bytes, dtype, transports, halves) or _modelled(
            place, num_bytes, tuple(transports), halves
        )

    return on_root(comm, ValueError, best)


def _measured(
    place: Place, num_bytes: int, dtype: str, transports: Sequence[str], halves: bool
) -> Choice | None:
    """The fastest by rows of this dtype or else of any, if they have all that could be chosen."""
    rows = [row for row in _load(place) if not halves or _has_halves(row)]
    same = [row for row in rows if row["dtype"] == dtype]
    for known in (same, rows):
        seconds = _interpolations(known, num_bytes, dtype, transports)
        if seconds and seconds.keys() >= set(_schedules(place, transports, halves)):
            return _best(seconds, f"measured here with collectives.bench, {place.table}")
    return None


def _interpolations(
    rows: Sequence[Row], num_bytes: int, dtype: str, transports: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Seconds by (name, transport), where measured sizes are near."""
    times: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        ours = row["transport"] in transports
        exact = row["algorithm"] == "mpi" and dtype.startswith(("int", "uint"))
        if ours and (row["transport"] != "vendor" or exact):
            points = times.setdefault((row["algorithm"], row["transport"]), {})
            points[row["bytes"]] = row["seconds_median"]
    return {
        route: _interpolated(points, num_bytes)
        for route, points in times.items()
        if min(points) / FARTHEST <= num_bytes <= max(points) * FARTHEST
    }


def _schedules(place: Place, transports: Sequence[str], halves: bool) -> list[tuple[str, str]]:
    """All (name, transport) that could be chosen here; vendors are opaque."""
    return [
        (name, transport)
        for transport in transports
        for name in ALGORITHMS
        if ALGORITHMS[name].has_halves or not halves
        if transport == "mpi" or (transport == "shm" and (place.one_node or name == "hierarchical"))
    ]


@lru_cache  # a second or more for a hundred ranks
def _modelled(
    place: Place, num_bytes: int, transports: tuple[str, ...], halves: bool = False
) -> Choice:
    world_size = len(place.hosts)
    one_node = place.one_node
    shared = not one_node and len(set(place.nodes)) < world_size
    seconds = {}
    for name, transport in _schedules(place, transports, halves):
        inside = MODEL[transport]
        between = inside if one_node else MODEL["network"]
        with contextlib.suppress(ValueError):  # too large a world for this one
            seconds[name, transport] = predict(
                ALGORITHMS[name], world_size, num_bytes, between, nodes=place.nodes,
                inside=inside if shared else None,
            )  # fmt: skip
    why = "by the cost model; python -m collectives.bench measures instead"
    return (
        _best(seconds, why)
        if seconds
        else Choice(
            name="butterfly" if one_node or halves else "hierarchical",
            transport=transports[0],
            reason="none: this world is too large for the cost model",
        )
    )


def _best(seconds: dict[tuple[str, str], float], why: str) -> Choice:
    name, transport = min(seconds, key=lambda route: seconds[route])
    time = seconds[name, transport]
    over = "" if transport == "vendor" else f" over {transport}"
    return Choice(
        name=name,
        transport="auto" if transport == "vendor" else transport,
        reason=f"{name}{over}, {time * 1e6:.3g} us expected ({why})",
    )


def _interpolated(points: dict[int, float], num_bytes: int) -> float:
    """Seconds for `num_bytes`, on logarithmic scales; beyond the largest, in proportion."""
    sizes = sorted(points)
    if num_bytes <= sizes[0]:
        return points[sizes[0]]
    if num_bytes >= sizes[-1]:
        return points[sizes[-1]] * num_bytes / sizes[-1]
    above = next(size for size in sizes if size >= num_bytes)
    below = sizes[sizes.index(above) - 1]
    share = math.log(num_bytes / below) / math.log(above / below)
    return float(points[below] ** (1 - share) * points[above] ** share)


def _load(place: Place) -> list[Row]:
    """The rows of the table; none if there is no table, or none that can be read."""
    try:
        rows = json.loads(place.table.read_text(encoding="utf-8"))["rows"]
        return [row for row in rows if _is_sound(row)]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # the last: no home folder
        return []


def _has_halves(row: Row) -> bool:
    return row["transport"] != "vendor" and find(row["algorithm"]).has_halves


def _is_sound(row: Row) -> bool:
    """Whether a row can be used. Its algorithm may have been renamed since it was measured."""
    if not all(isinstance(row[name], str) for name in ("algorithm", "transport", "dtype")):
        return False
    if row["transport"] != "vendor":
        try:
            find(row["algorithm"])
        except ValueError:
            return False
    return isinstance(row["bytes"], int) and row["bytes"] > 0 and row["seconds_median"] > 0


def _key(row: Row) -> tuple[Any, ...]:
    return row["algorithm"], row["transport"], row["bytes"], row["dtype"]
