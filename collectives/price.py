"""What a schedule costs: the alpha-beta-gamma price of its critical path.

    alpha   seconds that a message takes, however short it is
    beta    seconds that a byte takes on its way
    gamma   seconds that it takes to add one byte to a sum

The schedule is walked through on simulated clocks (see `clocks`), and what the critical path
consists of is its price: for a ring of 4 ranks 6 messages, 1.5 buffers sent and 0.75 added up. The
path, unlike the time, stays the same over wide ranges of sizes. Worlds too large to be walked
through are priced by the algorithm's closed form.

Left out: a switch or a cable that several ranks share, several ranks of a node behind one network
card, and the incast of many senders on one receiver, which real networks punish with lost packets.
So all-to-all is priced too low for most networks.

Reference: Hockney, "The communication challenge for MPP: Intel Paragon and Meiko CS-2" (1994);
Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH"
(2005), section 3, for gamma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from collectives.clocks import Clocks, Costs, Message
from collectives.schedule import Algorithm, Price, Setting

WALKED_MESSAGES = 50_000
"""The most messages, of all ranks, that are walked through: a good half second."""


class UnpricedError(ValueError):
    """Too many messages to be walked through, and no closed form for this place."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Seconds a message (alpha), a byte sent (beta), and a byte added (gamma)."""

    alpha: float
    beta: float
    gamma: float

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more seconds, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Path:
    """What a critical path consists of. All additions count as `outside`."""

    outside: Price
    inside: Price = Price(alpha=0, beta=0, gamma=0)

    def seconds(self, num_bytes: float, link: Link, inside: Link | None = None) -> float:
        """The time for a buffer of `num_bytes`."""
        out, near, inside = self.outside, self.inside, inside or link
        return (
            out.alpha * link.alpha + near.alpha * inside.alpha
            + num_bytes * (out.beta * link.beta + near.beta * inside.beta + out.gamma * link.gamma)
        )  # fmt: skip


def critical_path(
    algorithm: Algorithm,
    world_size: int,
    num_bytes: float,
    link: Link,
    *,
    nodes: tuple[int, ...] | None = None,
    inside: Link | None = None,
    observe: Callable[[Message], None] = lambda message: None,
) -> Path:
    """Walk the schedule as it is, with parts that are equal shares of `num_bytes`.

    `nodes` has the node of each rank; messages between ranks of one node take what they take over
    `inside`, additions what they take by `link`. `observe` is called when a message begins. Raises
    ValueError if the schedule waits for ever.
    """
    num_parts = algorithm.num_parts(world_size)
    part = num_bytes / num_parts
    near = link if inside is None else inside
    costs = Costs(
        message=link.alpha, part=link.beta * part, near_message=near.alpha,
        near_part=near.beta * part, addition=link.gamma * part,
    )  # fmt: skip
    where = range(world_size) if nodes is None or inside is None else nodes
    clocks = Clocks(algorithm, world_size, costs, where, observe)
    _, messages, sent, near_messages, near_sent, added = clocks.run()
    return Path(
        outside=Price(alpha=messages, beta=sent / num_parts, gamma=added / num_parts),
        inside=Price(alpha=near_messages, beta=near_sent / num_parts, gamma=0),
    )


def nodes_of(world_size: int, ranks_per_node: int = 1) -> tuple[int, ...]:
    """The node of each rank if ranks in a row share nodes."""
    return tuple(rank // ranks_per_node for rank in range(world_size))


def adapted(
    algorithm: Algorithm, world_size: int, num_bytes: float, nodes: tuple[int, ...] | None = None
) -> Algorithm:
    """The form that suits the place; without `nodes` every rank is a node of its own."""
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, got {world_size}")
    if nodes is not None and len(nodes) != world_size:
        raise ValueError(
            f"nodes must name one node for each of {world_size} ranks, got {len(nodes)}"
        )
    where = Setting(
        world_size=world_size, num_bytes=math.ceil(num_bytes), nodes=nodes or nodes_of(world_size)
    )
    return algorithm.adapted(where)


def walk(
    algorithm: Algorithm,
    world_size: int,
    num_bytes: float,
    link: Link,
    *,
    nodes: tuple[int, ...] | None = None,
    inside: Link | None = None,
) -> float:
    """Predicted seconds, however long the walk; see `critical_path`."""
    here = adapted(algorithm, world_size, num_bytes, nodes)
    path = critical_path(here, world_size, num_bytes, link, nodes=nodes, inside=inside)
    return path.seconds(num_bytes, link, inside)


def is_walked(algorithm: Algorithm, world_size: int) -> bool:
    """Whether the schedule is small enough to be walked through."""
    return world_size * algorithm.traffic(world_size).messages <= WALKED_MESSAGES


def find_path(
    algorithm: Algorithm,
    world_size: int,
    num_bytes: float,
    link: Link,
    *,
    nodes: tuple[int, ...] | None = None,
    inside: Link | None = None,
) -> tuple[Path, bool]:
    """The critical path in this place, and whether it was walked; see `predict`."""
    here = adapted(algorithm, world_size, num_bytes, nodes)
    if is_walked(here, world_size):
        return critical_path(here, world_size, num_bytes, link, nodes=nodes, inside=inside), True
    why = f"{algorithm.name} on {world_size} ranks sends too many messages to be walked through"
    if here.price is None:
        raise UnpricedError(f"{why}, and has no closed form")
    if inside is not None and nodes is not None:
        raise UnpricedError(f"{why}, and its closed form knows one kind of link only")
    return Path(outside=here.price(world_size)), False


def predict(
    algorithm: Algorithm,
    world_size: int,
    num_bytes: float,
    link: Link,
    *,
    nodes: tuple[int, ...] | None = None,
    inside: Link | None = None,
) -> float:
    """Predicted seconds: by a walk of at most WALKED_MESSAGES, else by the closed form.

    Raises UnpricedError if there is neither, ValueError if the algorithm does not suit this world.
    """
    path, _ = find_path(algorithm, world_size, num_bytes, link, nodes=nodes, inside=inside)
    return path.seconds(num_bytes, link, inside)
