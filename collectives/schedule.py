"""The language in which collectives are written: schedules, which are data.

A flat buffer is cut into `parts` equal pieces. A *schedule* is what one rank does, as a sequence of
rounds; a *round* is a list of exchanges that may overlap; an *exchange* sends one range of parts to
a peer, receives another range from a peer, or both:

    Exchange(send_to=1, send_parts=(0, 1), recv_from=3, recv_parts=(2, 3), combine=ADD)

Meaning of one round, which every interpreter (verifier, plan, cost, picture) shares:

1. All sends and receives of the round are posted together. What is sent is the value that the part
   had when the round began.
2. When all of them are complete, received parts are combined into the buffer: COPY overwrites, ADD
   adds. If several ranks' values are added to one part in one round, they are summed in the order
   of the ranks, the rank's own value at its own place. Floating-point sums therefore have one
   order, whatever arrives first.
3. Then the next round begins. There is no barrier: each rank goes at its own pace.

An algorithm is a set of pure functions of (rank, world_size). Those with two halves give them
separately, so that something can happen on the finished parts between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

Parts = tuple[int, int]
"""A half-open range of parts, `(first, one past the last)`."""


class Combine(Enum):
    """What happens to received parts."""

    ADD = "add"
    COPY = "copy"


ADD, COPY = Combine.ADD, Combine.COPY


@dataclass(frozen=True, slots=True)
class Exchange:
    """One send, one receive, or one of each. `None` as a peer means that this half is absent."""

    send_to: int | None = None
    send_parts: Parts = (0, 0)
    recv_from: int | None = None
    recv_parts: Parts = (0, 0)
    combine: Combine = ADD


def send(to: int, parts: Parts) -> Exchange:
    """Only send."""
    return Exchange(send_to=to, send_parts=parts)


def recv(source: int, parts: Parts, combine: Combine) -> Exchange:
    """Only receive."""
    return Exchange(recv_from=source, recv_parts=parts, combine=combine)


Round = list[Exchange]
Rounds = Callable[[int, int], Iterator[Round]]
"""A function `(rank, world_size) -> rounds of that rank`."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the busiest rank does. A fraction of 1.5 means one and a half buffers.

    `scratch` is the memory for contributions that have come but are not added yet. With `bound`,
    the figures are upper bounds.
    """

    rounds: int
    messages: int
    sent: float
    scratch: float
    bound: bool = False


@dataclass(frozen=True, kw_only=True)
class Price:
    """What happens one after another on the critical path, a buffer being n bytes: `alpha` messages
    that are waited for, `overhead` further ones that only keep a port busy before one of these
    begins, `beta` buffers sent and `gamma` buffers added up.
    """

    alpha: float
    beta: float
    gamma: float
    overhead: float = 0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a schedule is going to run: `nodes` has the node of each rank."""

    num_bytes: int
    nodes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One all-reduce. Give `all_reduce`, or both halves and the parts owned between them, or all.

    `num_parts(world_size)` is the number of pieces of the buffer. `traffic(world_size)` is what the
    algorithm promises of its busiest rank. `owned(rank, world_size)` is the range of parts that a
    rank holds finished after `reduce_scatter`. Where `all_reduce` is not given, it is one half
    after the other.

    `price(world_size)` is the price in closed form, for worlds that are too large to be walked
    through. `configure(arguments)` gives the algorithm that `name:arguments` stands for, and
    `adapt(setting)` the form that suits a place; both raise ValueError where there is none.
    """

    name: str
    num_parts: Callable[[int], int]
    traffic: Callable[[int], Traffic]
    all_reduce: Rounds | None = None
    reduce_scatter: Rounds | None = None
    all_gather: Rounds | None = None
    owned: Callable[[int, int], Parts] | None = None
    price: Callable[[int], Price] | None = None
    configure: Callable[[str], Algorithm] | None = None
    adapt: Callable[[Setting], Algorithm] | None = None

    def __post_init__(self) -> None:
        halves = [half is not None for half in (self.reduce_scatter, self.all_gather, self.owned)]
        if any(halves) != all(halves) or not (self.all_reduce or all(halves)):
            raise TypeError(f"algorithm {self.name!r}: give all_reduce, or both halves and owned")

    @property
    def has_halves(self) -> bool:
        """Whether `reduce_scatter` and `all_gather` exist separately."""
        return self.reduce_scatter is not None

    @property
    def halves(self) -> tuple[Algorithm, Algorithm]:
        """`reduce_scatter` and `all_gather`, each as an algorithm of its own."""
        first, second = (
            replace(self, all_reduce=half, reduce_scatter=None, all_gather=None, owned=None)
            for half in (self.reduce_scatter, self.all_gather)
        )
        return first, second

    def rounds(self, rank: int, world_size: int) -> Iterator[Round]:
        """The whole all-reduce of one rank."""
        if self.all_reduce is not None:
            yield from self.all_reduce(rank, world_size)
        elif self.reduce_scatter is not None and self.all_gather is not None:
            yield from self.reduce_scatter(rank, world_size)
            yield from self.all_gather(rank, world_size)

    def adapted(self, setting: Setting) -> Algorithm:
        """The form that suits `setting`, often this one. Raises ValueError where there is none."""
        return self.adapt(setting) if self.adapt is not None else self


def ceil_lg(number: int) -> int:
    """The least k for which 2^k is at least `number`."""
    return (number - 1).bit_length()


# Some algorithms want a world of a certain size, their *core*. The other ranks are folded onto it:
# rank r gives its buffer to rank r mod core before, and gets the sum from there afterwards.


def fold(rank: int, world_size: int, core: int, whole: Parts) -> Iterator[Round]:
    """The ranks outside the core hand in their buffers."""
    if rank >= core:
        yield [send(rank % core, whole)]
    elif extras := range(rank + core, world_size, core):
        yield [recv(extra, whole, ADD) for extra in extras]


def unfold(rank: int, world_size: int, core: int, whole: Parts) -> Iterator[Round]:
    """The ranks outside the core get the sum."""
    if rank >= core:
        yield [recv(rank % core, whole, COPY)]
    elif extras := range(rank + core, world_size, core):
        yield [send(extra, whole) for extra in extras]


def folds(world_size: int, core: int) -> int:
    """How many ranks are folded onto the busiest rank of the core."""
    return -(-(world_size - core) // core)


def part_bounds(length: int, num_parts: int) -> list[int]:
    """Cut `length` elements into `num_parts` nearly equal pieces: piece i is `[b[i], b[i + 1])`."""
    return [length * i // num_parts for i in range(num_parts + 1)]
