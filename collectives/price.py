"""What a schedule costs: the price of its critical path, in four parameters.

    alpha      seconds that a message takes, however short it is
    overhead   of these: seconds for which it keeps a port busy; then the next one may begin
    beta       seconds that a byte takes on its way
    gamma      seconds that it takes to add one byte to a sum

Messages of one round are on their way together, so k of them take alpha + (k - 1) overhead. Where
nothing is known of the overhead it is alpha, which is Hockney's model: one after the other.

The schedule is walked through on simulated clocks (see `clocks`), and what the critical path
consists of is its price: for a ring of 4 ranks 6 messages, 1.5 buffers sent and 0.75 added up. The
path, unlike the time, stays the same over wide ranges of sizes. Worlds too large to be walked
through are priced by the algorithm's closed form.

Left out: a switch or a cable that several ranks share, several ranks of a node behind one network
card, and the incast of many senders on one receiver, which real networks punish with lost packets.
So all-to-all is priced too low for most networks.

Reference: Hockney, "The communication challenge for MPP: Intel Paragon and Meiko CS-2" (1994);
Alexandrov, Ionescu, Schauser and Scheiman, "LogGP: incorporating long messages into the LogP model"
(1995), for the overhead, which is their o and g in one: their L + 2 o is alpha, their G is beta;
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
    """Seconds a message (alpha), a byte sent (beta), a byte added (gamma), and of alpha those for
    which a message keeps a port busy (overhead; None becomes alpha).
    """

    alpha: float
    beta: float
    gamma: float
    overhead: float = None  # type: ignore[assignment]  # it is a number as soon as the link exists

    def __post_init__(self) -> None:
        if self.overhead is None:
            object.__setattr__(self, "overhead", self.alpha)
        for name in ("alpha", "beta", "gamma", "overhead"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more seconds, got {getattr(self, name)}")
        if self.overhead > self.alpha:
            raise ValueError(
                f"overhead must be at most alpha, {self.alpha} seconds, got {self.overhead}"
            )

    @property
    def flight(self) -> float:
        """Seconds that a message is on its way when its ports are free again."""
        return self.alpha - self.overhead

    def seconds(self, num_bytes: float, price: Price) -> float:
        """The time for a buffer of `num_bytes`. With overhead = alpha it depends, to the last bit,
        only on the sum of both counts.
        """
        return (
            (price.alpha + price.overhead) * self.overhead + price.alpha * self.flight
            + num_bytes * (price.beta * self.beta + price.gamma * self.gamma)
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Path:
    """What a critical path consists of. All additions count as `outside`."""

    outside: Price
    inside: Price = Price(alpha=0, beta=0, gamma=0)

    def seconds(self, num_bytes: float, link: Link, inside: Link | None = None) -> float:
        """The time for a buffer of `num_bytes`."""
        near = (inside or link).seconds(num_bytes, self.inside)
        return link.seconds(num_bytes, self.outside) + near


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
        message=link.overhead, part=link.beta * part, flight=link.flight,
        near_message=near.overhead, near_part=near.beta * part, near_flight=near.flight,
        addition=link.gamma * part,
    )  # fmt: skip
    where = range(world_size) if nodes is None or inside is None else nodes
    clocks = Clocks(algorithm, world_size, costs, where, observe)
    _, messages, sent, flights, near_messages, near_sent, near_flights, added = clocks.run()
    return Path(
        outside=Price(
            alpha=flights, beta=sent / num_parts, gamma=added / num_parts,
            overhead=messages - flights,
        ),
        inside=Price(
            alpha=near_flights, beta=near_sent / num_parts, gamma=0,
            overhead=near_messages - near_flights,
        ),
    )  # fmt: skip


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
    where = Setting(num_bytes=math.ceil(num_bytes), nodes=nodes or nodes_of(world_size))
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
