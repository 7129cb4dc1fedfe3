"""Prove a schedule right for one world size, without MPI: run all its ranks in one process.

The buffer of each rank holds, for every part, how many times each rank's contribution is in it, and
in which order they were added: a hash of the expression tree, in which a + b equals b + a but
(a + b) + c differs from a + (b + c). Equal trees on all ranks mean identical floating-point bits.
Messages are delivered by rendezvous, the strictest MPI: a send completes only when its receive is
posted, messages between two ranks keep their order, and a rank goes on when all exchanges of its
round are complete. A schedule that survives this cannot deadlock under any buffering.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from collectives.schedule import ADD, COPY, Algorithm, Exchange, Parts, Round, Rounds, Traffic

BITS = 16
"""Bits of a counter: how often one rank's contribution is in a part. One integer has them all."""

MOST_RANKS_TRIED = 64

Observer = Callable[[int, int, Parts, list[int]], None]
"""Called with source, destination, parts and their counters for every message."""


class ScheduleError(Exception):
    """A schedule is wrong; the message says for which ranks and where."""


@dataclass(slots=True)
class _Message:
    """What a part is made of, on its way."""

    source: int
    sent: Exchange
    counts: list[int]
    trees: list[int]


@dataclass(slots=True)
class _Rank:
    """State of one simulated rank: what each part is made of, the round it is in, its mail."""

    rank: int
    rounds: list[Round]
    counts: list[int]
    trees: list[int]
    current: int = 0
    open_halves: int = 0
    messages: int = 0
    parts_sent: int = 0
    arrived: list[tuple[_Message, Exchange]] = field(default_factory=list)


def contributors(count: int, world_size: int) -> list[int]:
    """How often each rank's contribution is in a part with counters `count`."""
    return [count >> BITS * rank & (1 << BITS) - 1 for rank in range(world_size)]


def verify(algorithm: Algorithm, world_size: int, observe: Observer | None = None) -> Traffic:
    """Run `algorithm` on `world_size` simulated ranks and check every promise.

    Raises ScheduleError unless every part ends with exactly one contribution of each rank, added in
    the same order, on every rank, every send meets a receive of the same parts, no exchange reads
    or writes a part that another of its round overwrites, and nothing waits for ever. Where the
    algorithm has halves, the owned parts must be finished between them and cover the buffer once,
    and the two halves one after the other must be an all-reduce, too.

    Returns what the busiest rank really did.
    """
    num_parts = algorithm.num_parts(world_size)
    if algorithm.reduce_scatter and algorithm.all_gather:
        scatter, gather = algorithm.reduce_scatter, algorithm.all_gather
        _verify_ownership(algorithm, scatter, world_size)
        if algorithm.all_reduce:
            halves = f"{algorithm.name} (its halves)"
            _run(
                halves, num_parts, world_size,
                lambda rank, size: iter([*scatter(rank, size), *gather(rank, size)]),
            )  # fmt: skip
    ranks = _run(algorithm.name, num_parts, world_size, algorithm.rounds, observe)
    return Traffic(
        rounds=max(len(state.rounds) for state in ranks),
        messages=max(state.messages for state in ranks),
        sent=max(state.parts_sent for state in ranks) / num_parts,
        scratch=max(_scratch(one) for state in ranks for one in [[], *state.rounds]) / num_parts,
    )


def refuse_wrong(algorithm: Algorithm, world_size: int) -> None:
    """Raise ValueError if the schedule is wrong. Large worlds, which take long, are not tried."""
    if world_size > MOST_RANKS_TRIED:
        return
    try:
        verify(algorithm, world_size)
    except ScheduleError as error:
        raise ValueError(f"the schedule is wrong: {error}") from None


def _run(
    name: str, num_parts: int, world_size: int, rounds: Rounds, observe: Observer | None = None
) -> list[_Rank]:
    """Every rank must end with one contribution of each, added in the same order everywhere."""
    ranks = _start(name, num_parts, world_size, rounds)
    _deliver(ranks, name, observe)
    once = sum(1 << BITS * rank for rank in range(world_size))
    for state in ranks:
        for part, count in enumerate(state.counts):
            if count != once:
                raise ScheduleError(
                    f"{name}, {world_size} ranks: part {part} ends on rank {state.rank} with "
                    f"contributions {contributors(count, world_size)}, expected one of each rank"
                )
        if state.trees != ranks[0].trees:
            raise ScheduleError(
                f"{name}, {world_size} ranks: ranks 0 and {state.rank} add in different orders, so "
                f"their floating-point bits can differ"
            )
    return ranks


def _verify_ownership(algorithm: Algorithm, scatter: Rounds, world_size: int) -> None:
    assert algorithm.owned  # the caller looked
    name = f"{algorithm.name} (reduce_scatter)"
    num_parts = algorithm.num_parts(world_size)
    ranks = _start(name, num_parts, world_size, scatter)
    _deliver(ranks, name, None)
    once = sum(1 << BITS * rank for rank in range(world_size))
    owners = [0] * num_parts
    for state in ranks:
        for part in range(*algorithm.owned(state.rank, world_size)):
            owners[part] += 1
            if state.counts[part] != once:
                raise ScheduleError(
                    f"{name}, {world_size} ranks: rank {state.rank} owns unfinished parts"
                )
    if owners != [1] * num_parts:
        raise ScheduleError(
            f"{name}, {world_size} ranks: owners of each part {owners}, expected one"
        )


def _start(name: str, num_parts: int, world_size: int, rounds_of: Rounds) -> list[_Rank]:
    ranks = []
    for rank in range(world_size):
        rounds = list(rounds_of(rank, world_size))
        for number, exchanges in enumerate(rounds):
            check_round(exchanges, f"{name}, rank {rank}, round {number}", num_parts, world_size)
        ranks.append(
            _Rank(rank, rounds, [1 << BITS * rank] * num_parts, [hash((rank,))] * num_parts)
        )
    return ranks


def check_round(exchanges: Round, where: str, num_parts: int, world_size: int) -> None:
    """Raise ScheduleError unless the exchanges of a round can overlap.

    Peers and parts exist, what is overwritten is not used otherwise, and ranges that are added are
    equal or apart.
    """
    used: list[Parts] = []  # sent, or added to
    added: set[Parts] = set()
    copied: list[Parts] = []
    for e in exchanges:
        for peer, (first, last) in ((e.send_to, e.send_parts), (e.recv_from, e.recv_parts)):
            if peer is not None and not 0 <= first < last <= num_parts:
                raise ScheduleError(f"{where}: parts {(first, last)} of {num_parts} do not exist")
            if peer is not None and not 0 <= peer < world_size:
                raise ScheduleError(f"{where}: there is no rank {peer} among {world_size}")
        if e.send_to is not None:
            used.append(e.send_parts)
        if e.recv_from is not None and e.combine is ADD:
            added.add(e.recv_parts)
        elif e.recv_from is not None:
            copied.append(e.recv_parts)
    if _overlap(sorted(added)):
        raise ScheduleError(f"{where}: ranges {sorted(added)} overlap without being equal")
    if not copied:
        return
    together = sorted([*copied, *added, *set(used)])
    if _overlap(sorted(copied)) or (_overlap(together) and _any_overlap(copied, [*added, *used])):
        raise ScheduleError(f"{where}: a part is overwritten while it is sent or received")


def _overlap(ranges: list[Parts]) -> bool:
    """Whether any two of these ranges, in ascending order, share a part."""
    return any(before[1] > after[0] for before, after in itertools.pairwise(ranges))


def _any_overlap(some: list[Parts], others: list[Parts]) -> bool:
    return any(a[0] < b[1] and b[0] < a[1] for a in some for b in others)


def _scratch(exchanges: Round) -> int:
    """Parts that wait to be added at the end of a round."""
    incoming = [e.recv_parts for e in exchanges if e.recv_from is not None and e.combine is ADD]
    return sum(last - first for first, last in incoming)


def _deliver(ranks: list[_Rank], name: str, observe: Observer | None) -> None:
    """Advance all ranks until they are done; raise if none can move."""
    world_size = len(ranks)
    sends: dict[tuple[int, int], deque[_Message]] = {}
    receives: dict[tuple[int, int], deque[Exchange]] = {}

    def meet(message: _Message, received: Exchange, pair: tuple[int, int]) -> None:
        if message.sent.send_parts != received.recv_parts:
            raise ScheduleError(
                f"{name}: rank {pair[0]} sends parts {message.sent.send_parts} to rank {pair[1]}, "
                f"which receives them as parts {received.recv_parts}"
            )
        if observe is not None:
            observe(*pair, received.recv_parts, message.counts)
        ranks[pair[1]].arrived.append((message, received))
        for one in pair:
            ranks[one].open_halves -= 1
            if ranks[one].open_halves == 0:
                ready.append(ranks[one])

    def post(state: _Rank) -> None:
        exchanges = state.rounds[state.current]
        halves = [(e.send_to is not None) + (e.recv_from is not None) for e in exchanges]
        state.open_halves = sum(halves)
        if not state.open_halves:
            ready.append(state)
        for e in exchanges:
            if e.send_to is not None:
                first, last = e.send_parts
                message = _Message(state.rank, e, state.counts[first:last], state.trees[first:last])
                state.messages += 1
                state.parts_sent += last - first
                pair = state.rank, e.send_to
                if waiting := receives.get(pair):
                    meet(message, waiting.popleft(), pair)
                else:
                    sends.setdefault(pair, deque()).append(message)
            if e.recv_from is not None:
                pair = e.recv_from, state.rank
                if coming := sends.get(pair):
                    meet(coming.popleft(), e, pair)
                else:
                    receives.setdefault(pair, deque()).append(e)

    ready: deque[_Rank] = deque()
    for state in ranks:
        if state.rounds:
            post(state)
    while ready:
        state = ready.popleft()
        _combine(state)
        state.current += 1
        if state.current < len(state.rounds):
            post(state)
    stuck = {state.rank: state.current for state in ranks if state.current < len(state.rounds)}
    if stuck:
        raise ScheduleError(f"{name}, {world_size} ranks: waiting for ever, rank: round {stuck}")


def _combine(state: _Rank) -> None:
    """The end of a round: copies, then sums in the order of the ranks, the own value among them."""
    added: dict[int, list[tuple[int, int]]] = {}  # part -> (rank, tree) of every summand
    for message, received in state.arrived:
        first, last = received.recv_parts
        if received.combine is COPY:
            state.counts[first:last] = message.counts
            state.trees[first:last] = message.trees
            continue
        for part, count, tree in zip(
            range(first, last), message.counts, message.trees, strict=True
        ):
            state.counts[part] += count
            added.setdefault(part, [(state.rank, state.trees[part])]).append((message.source, tree))
    state.arrived.clear()
    for part, summands in added.items():
        summands.sort()
        total = summands[0][1]
        for _, tree in summands[1:]:
            total = hash((total, tree) if total < tree else (tree, total))
        state.trees[part] = total
