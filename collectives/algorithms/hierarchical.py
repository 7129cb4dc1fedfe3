"""Hierarchical: one algorithm inside every node, another between the nodes.

Inside a node memory is shared or links are fast; between nodes every byte is dear. So the ranks of
a node first reduce and scatter among themselves; then the ranks that own the same parts, one in
each node, all-reduce those over the network; then every node hands its parts out. What leaves a
node is one buffer, whatever the number of its ranks, and all of them send at once.

Two nodes of two ranks, `hierarchical:round-robin,ring`, four parts:

    step                     | ranks        | parts
    -------------------------+--------------+--------------------------
    reduce_scatter in a node | 0 1,   2 3   | 0 and 2: 0-1, 1 and 3: 2-3
    all_reduce between nodes | 0 2,   1 3   | the same
    all_gather in a node     | 0 1,   2 3   | all

If nodes have different numbers of ranks, the smallest counts: on the others, the ranks beyond it
are folded onto the first ones of their node.

Cost with nodes of m ranks and k nodes: the inner halves for m ranks plus the outer all-reduce for k
ranks and n / m bytes. `hierarchical` takes butterfly inside and halving-doubling between; any
algorithm with halves can be the inner, any but this one the outer. Where the nodes are not known,
four ranks in a row are taken for one.

Reference: Karonis et al., "Exploiting hierarchy in parallel computer networks to optimize
collective operation performance" (2000).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from collectives.algorithms import butterfly, halving_doubling
from collectives.schedule import (
    Algorithm,
    Exchange,
    Parts,
    Price,
    Round,
    Setting,
    Traffic,
    fold,
    folds,
    unfold,
)

RANKS_IN_A_ROW = 4
Nodes = tuple[int, ...]
NodesOf = Callable[[int], Nodes]


@dataclass(frozen=True)
class _Place:
    """Where a rank stands: the ranks of its node, its index there, and its counterparts."""

    node: list[int]
    index: int
    core: int
    counterparts: list[int]

    @property
    def is_core(self) -> bool:
        return self.index < self.core


def _place(rank: int, nodes: Nodes) -> _Place:
    members: dict[int, list[int]] = {}
    for one, node in enumerate(nodes):
        members.setdefault(node, []).append(one)
    mine = members[nodes[rank]]
    index, core = mine.index(rank), min(map(len, members.values()))
    counterparts = [ranks[index] for ranks in members.values()] if index < core else []
    return _Place(mine, index, core, counterparts)


def _translated(
    rounds: Iterator[Round], ranks: list[int], first: int, width: int
) -> Iterator[Round]:
    """The rounds of an algorithm among `ranks`; its parts are `width` parts wide, from `first`."""

    def parts(of: Parts) -> Parts:
        return first + of[0] * width, first + of[1] * width

    for exchanges in rounds:
        yield [
            Exchange(
                None if e.send_to is None else ranks[e.send_to], parts(e.send_parts),
                None if e.recv_from is None else ranks[e.recv_from], parts(e.recv_parts),
                e.combine,
            )
            for e in exchanges
        ]  # fmt: skip


def hierarchy(name: str, inner: Algorithm, outer: Algorithm, nodes_of: NodesOf) -> Algorithm:
    """`inner` inside the nodes that `nodes_of` a world size gives, `outer` between them."""
    assert inner.reduce_scatter and inner.all_gather and inner.owned  # who configures it has looked
    scatter, gather, owned = inner.reduce_scatter, inner.all_gather, inner.owned

    def shape(world_size: int) -> tuple[int, int, int]:
        """Ranks of the smallest node, ranks of the largest, number of nodes."""
        nodes = nodes_of(world_size)
        sizes = Counter(nodes).values()
        return min(sizes), max(sizes), len(sizes)

    def largest_share(core: int) -> float:
        """Of the buffer: what a rank carries to the other nodes at most."""
        parts = (owned(rank, core) for rank in range(core))
        return max(last - first for first, last in parts) / inner.num_parts(core)

    def num_parts(world_size: int) -> int:
        core, _, num_nodes = shape(world_size)
        return inner.num_parts(core) * outer.num_parts(num_nodes)

    def all_reduce(rank: int, world_size: int) -> Iterator[Round]:
        here = _place(rank, nodes_of(world_size))
        core, _, num_nodes = shape(world_size)
        width = outer.num_parts(num_nodes)
        whole = 0, num_parts(world_size)
        yield from _translated(fold(here.index, len(here.node), core, whole), here.node, 0, 1)
        if here.is_core:
            yield from _translated(scatter(here.index, core), here.node, 0, width)
            first, last = owned(here.index, core)
            if last > first:
                node = here.counterparts.index(rank)
                rounds = outer.rounds(node, num_nodes)
                yield from _translated(rounds, here.counterparts, first * width, last - first)
            yield from _translated(gather(here.index, core), here.node, 0, width)
        yield from _translated(unfold(here.index, len(here.node), core, whole), here.node, 0, 1)

    def traffic(world_size: int) -> Traffic:
        core, largest, num_nodes = shape(world_size)
        inside, between = inner.traffic(core), outer.traffic(num_nodes)
        extras = folds(largest, core)
        share = largest_share(core)
        return Traffic(
            rounds=inside.rounds + between.rounds + 2 * (extras > 0),
            messages=inside.messages + between.messages + extras,
            sent=inside.sent + between.sent * share + extras,
            scratch=max(inside.scratch, between.scratch * share, extras),
            bound=inside.bound or between.bound or largest > core,  # no one rank need have it all
        )

    def price(world_size: int) -> Price:
        """If every node has the same number of ranks and all links are equal."""
        assert inner.price and outer.price
        core, largest, num_nodes = shape(world_size)
        inside, between, extras = inner.price(core), outer.price(num_nodes), folds(largest, core)
        share = largest_share(core)
        return Price(
            alpha=inside.alpha + between.alpha + 2 * (extras > 0),
            overhead=inside.overhead + between.overhead + 2 * max(0, extras - 1),
            beta=inside.beta + between.beta * share + 2 * extras,
            gamma=inside.gamma + between.gamma * share + extras,
        )

    return Algorithm(
        name=name,
        num_parts=num_parts,
        traffic=traffic,
        all_reduce=all_reduce,
        price=price if inner.price and outer.price else None,
        adapt=lambda setting: _adapted(name, inner, outer, setting),
    )


def _in_a_row(world_size: int) -> Nodes:
    return tuple(rank // RANKS_IN_A_ROW for rank in range(world_size))


def _adapted(name: str, inner: Algorithm, outer: Algorithm, setting: Setting) -> Algorithm:
    nodes = setting.nodes
    sizes = Counter(nodes).values()
    outside = Setting(num_bytes=setting.num_bytes // min(sizes), nodes=tuple(range(len(sizes))))
    return hierarchy(name, inner, outer.adapted(outside), lambda world_size: nodes)


def configure(arguments: str) -> Algorithm:
    """`round-robin,ring`: the algorithm inside a node, and that between nodes."""
    from collectives.algorithms import ALGORITHMS  # complete by now; this file is a part of it

    name = f"hierarchical:{arguments}"
    others = {key: one for key, one in ALGORITHMS.items() if key != ALGORITHM.name}
    words = arguments.split(",")
    if len(words) != 2 or not all(word in others for word in words):
        raise ValueError(
            f"the algorithms inside and between nodes must be two of {', '.join(others)}, such as "
            f"hierarchical:round-robin,ring, got {name!r}"
        )
    inner, outer = (others[word] for word in words)
    if not inner.has_halves:
        able = ", ".join(key for key, one in others.items() if one.has_halves)
        raise ValueError(f"the algorithm inside a node must have two halves ({able}), got {name!r}")
    return hierarchy(name, inner, outer, _in_a_row)


ALGORITHM = replace(
    hierarchy("hierarchical", butterfly.ALGORITHM, halving_doubling.ALGORITHM, _in_a_row),
    configure=configure,
)
