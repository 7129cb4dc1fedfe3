"""Prove a schedule right for one world size, without MPI: run all its ranks in one process.

The buffer of each rank holds, for every part, how many times each rank's contribution is in it, and
in which order they were added: a hash of the expression tree, in which a + b equals b + a but
(a + b) + c differs from a + (b + c). Equal trees on all ranks mean identical floating-point bits.
Messages are delivered by rendezvous, the strictest MPI: a send completes only when its receive is
posted, messages between two ranks keep their order, and a rank goes on when all exchanges of its
round are complete. A schedule that survives this cannot deadlock under any buffering.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from collectives.schedule import ADD, COPY, Algorithm, Exchange, Round, Traffic


class ScheduleError(Exception):
    """A schedule is wrong; the message says for which ranks and where."""


@dataclass
class _Rank:
    """State of one simulated rank: `counts[part, contributor]`, the round it is in, its mail."""

    rank: int
    rounds: list[Round]
    counts: NDArray[np.int64]
    trees: list[int]
    current: int = 0
    open_halves: int = 0
    messages: int = 0
    parts_sent: int = 0

    @property
    def done(self) -> bool:
        return self.current == len(self.rounds)


@dataclass(frozen=True)
class _Message:
    """An exchange with the counts and trees of its parts; `source` sent it."""

    source: int
    exchange: Exchange
    counts: NDArray[np.int64]
    trees: list[int]


def verify(algorithm: Algorithm, world_size: int) -> Traffic:
    """Run `algorithm` on `world_size` simulated ranks and check every promise.

    Raises ScheduleError unless every part ends with exactly one contribution of each rank, added in
    the same order, on every rank, every send meets a receive of the same size, no exchange reads or
    writes a part that another of its round overwrites, and nothing waits for ever. Where the
    algorithm has halves, the owned parts must be finished between them and cover the buffer once.
    """
    if algorithm.reduce_scatter and algorithm.owned:
        _verify_ownership(algorithm, world_size)
    ranks = _start(algorithm, world_size)
    _deliver(ranks, algorithm.name)
    for state in ranks:
        if not (state.counts == 1).all():
            part = int(np.argwhere(state.counts != 1)[0, 0])
            raise ScheduleError(
                f"{algorithm.name}, {world_size} ranks: part {part} ends on rank {state.rank} with "
                f"contributions {state.counts[part].tolist()}, expected one of each rank"
            )
        if state.trees != ranks[0].trees:
            raise ScheduleError(
                f"{algorithm.name}, {world_size} ranks: ranks 0 and {state.rank} add in different "
                f"orders, so their floating-point bits can differ"
            )
    num_parts = algorithm.num_parts(world_size)
    return Traffic(
        rounds=max(len(state.rounds) for state in ranks),
        messages=max(state.messages for state in ranks),
        sent=max(state.parts_sent for state in ranks) / num_parts,
    )


def _verify_ownership(algorithm: Algorithm, world_size: int) -> None:
    assert algorithm.reduce_scatter and algorithm.owned  # the caller looked
    half = Algorithm(
        name=f"{algorithm.name} (reduce_scatter)",
        num_parts=algorithm.num_parts,
        traffic=algorithm.traffic,
        all_reduce=algorithm.reduce_scatter,
    )
    ranks = _start(half, world_size)
    _deliver(ranks, half.name)
    owners = np.zeros(algorithm.num_parts(world_size), np.int64)
    for state in ranks:
        first, last = algorithm.owned(state.rank, world_size)
        owners[first:last] += 1
        if not (state.counts[first:last] == 1).all():
            raise ScheduleError(
                f"{half.name}, {world_size} ranks: rank {state.rank} owns unfinished parts"
            )
    if not (owners == 1).all():
        raise ScheduleError(
            f"{half.name}, {world_size} ranks: owners of each part {owners.tolist()}, expected one"
        )


def _start(algorithm: Algorithm, world_size: int) -> list[_Rank]:
    num_parts = algorithm.num_parts(world_size)
    ranks = []
    for rank in range(world_size):
        counts = np.zeros((num_parts, world_size), np.int64)
        counts[:, rank] = 1
        rounds = list(algorithm.rounds(rank, world_size))
        for number, exchanges in enumerate(rounds):
            _check_round(exchanges, f"{algorithm.name}, rank {rank}, round {number}", num_parts)
        ranks.append(_Rank(rank, rounds, counts, trees=[hash((rank,))] * num_parts))
    return ranks


def _check_round(exchanges: Round, where: str, num_parts: int) -> None:
    """Parts exist; what is overwritten is not used otherwise; added ranges are equal or apart."""
    sent, added, copied = (np.zeros(num_parts, np.int64) for _ in range(3))
    for exchange in exchanges:
        for peer, (first, last) in (
            (exchange.send_to, exchange.send_parts),
            (exchange.recv_from, exchange.recv_parts),
        ):
            if peer is not None and not 0 <= first < last <= num_parts:
                raise ScheduleError(f"{where}: parts {(first, last)} of {num_parts} do not exist")
        if exchange.send_to is not None:
            sent[slice(*exchange.send_parts)] += 1
        if exchange.recv_from is not None:
            received = copied if exchange.combine is COPY else added
            received[slice(*exchange.recv_parts)] += 1
    ranges = {e.recv_parts for e in exchanges if e.recv_from is not None and e.combine is ADD}
    if sum(last - first for first, last in ranges) > np.count_nonzero(added):
        raise ScheduleError(f"{where}: ranges {sorted(ranges)} overlap without being equal")
    if ((copied > 1) | ((copied > 0) & (sent + added > 0))).any():
        raise ScheduleError(f"{where}: a part is overwritten while it is sent or received")


def _deliver(ranks: list[_Rank], name: str) -> None:
    """Advance all ranks until they are done; raise if none can move."""
    sends: dict[tuple[int, int], deque[tuple[_Rank, _Message]]] = {}
    receives: dict[tuple[int, int], deque[tuple[_Rank, Exchange]]] = {}
    arrived: dict[int, list[_Message]] = {state.rank: [] for state in ranks}
    for state in ranks:
        _post(state, sends, receives)
    moved = True
    while moved:
        moved = False
        for pair in list(sends):
            outgoing, incoming = sends[pair], receives.get(pair, deque())
            while outgoing and incoming:
                sender, message = outgoing.popleft()
                receiver, exchange = incoming.popleft()
                _check_sizes(name, pair, message.exchange, exchange)
                arrived[receiver.rank].append(replace(message, exchange=exchange))
                sender.open_halves -= 1
                receiver.open_halves -= 1
                moved = True
        for state in ranks:
            if not state.done and state.open_halves == 0:
                _combine(state, arrived[state.rank])
                arrived[state.rank].clear()
                state.current += 1
                _post(state, sends, receives)
                moved = True
    stuck = {state.rank: state.current for state in ranks if not state.done}
    if stuck:
        raise ScheduleError(f"{name}, {len(ranks)} ranks: waiting for ever, rank: round {stuck}")
    if any(sends.values()) or any(receives.values()):
        raise ScheduleError(f"{name}, {len(ranks)} ranks: messages without a partner")


def _post(
    state: _Rank,
    sends: dict[tuple[int, int], deque[tuple[_Rank, _Message]]],
    receives: dict[tuple[int, int], deque[tuple[_Rank, Exchange]]],
) -> None:
    if state.done:
        return
    for exchange in state.rounds[state.current]:
        if exchange.send_to is not None:
            first, last = exchange.send_parts
            counts, trees = state.counts[first:last].copy(), state.trees[first:last]
            mail = sends.setdefault((state.rank, exchange.send_to), deque())
            mail.append((state, _Message(state.rank, exchange, counts, trees)))
            state.open_halves += 1
            state.messages += 1
            state.parts_sent += last - first
        if exchange.recv_from is not None:
            mailbox = receives.setdefault((exchange.recv_from, state.rank), deque())
            mailbox.append((state, exchange))
            state.open_halves += 1


def _check_sizes(name: str, pair: tuple[int, int], sent: Exchange, received: Exchange) -> None:
    if sent.send_parts != received.recv_parts:
        raise ScheduleError(
            f"{name}: rank {pair[0]} sends parts {sent.send_parts} to rank {pair[1]}, which "
            f"receives them as parts {received.recv_parts}"
        )


def _combine(state: _Rank, messages: list[_Message]) -> None:
    """The end of a round: copies, then sums in the order of the ranks, the own value among them."""
    added: dict[int, list[tuple[int, int]]] = {}  # part -> (rank, tree) of every summand
    for message in messages:
        first, last = message.exchange.recv_parts
        if message.exchange.combine is COPY:
            state.counts[first:last] = message.counts
            state.trees[first:last] = message.trees
            continue
        state.counts[first:last] += message.counts
        for part, tree in zip(range(first, last), message.trees, strict=True):
            added.setdefault(part, [(state.rank, state.trees[part])]).append((message.source, tree))
    for part, summands in added.items():
        _, total = min(summands)
        for _, tree in sorted(summands)[1:]:
            total = hash((min(total, tree), max(total, tree)))
        state.trees[part] = total
