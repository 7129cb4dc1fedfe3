"""Who has to wait for whom when ranks work in each other's memory: derived from the schedule.

Where memory is shared, nothing is sent. Parts that are added are *pulled*: the receiver reads them
in place, in the sender's buffer. Parts that are copied are *pushed*: the sender writes them where
the receiver wants them, while they are still in its cache. So every message is a read of one buffer
and a write of another, by one rank; and each of the two belongs to a round of the buffer's owner.

Within a buffer the schedule fixes an order: a round reads what was there when it began, and writes
at its end. So whoever reads a part in round t of its owner must come after all writes of it in
rounds before t; and whoever writes it must come after those and after all reads up to round t. All
ranks know the whole schedule, so they know whom to wait for. Every rank publishes one number, its
*progress*, which only grows:

    progress     this rank has
    -----------  ------------------------------------------------------------------
    1            written its contribution (the call has begun)
    2 k + 2      read what it needs in its round k
    2 k + 3      and written what it has to write in round k, in its buffer or another

If a round adds to parts that it also sends, as when two ranks swap their sums, the result is put
aside first (*staged*) and written when all have read. At the end a rank waits until
nobody uses its buffer any more, so that the caller may. There are no barriers.

The halves of an all-reduce are two such programs. After the first nobody reads the buffer of a
rank, and in the second nobody writes there before that rank has begun: what the caller changes
between them is neither missed nor overwritten.

A direct exchange of two halves thus waits twice, not four times: everyone waits for all to begin,
sums its part and pushes it at once, since nobody else reads that part anywhere; then for the parts
that the others push.

Peers on other nodes get messages; a round of a rank is either a local or a remote one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from collectives.schedule import ADD, COPY, Combine, Exchange, Parts, Round

STARTED = 1
"""Progress of a rank that has written its contribution."""


def has_read(number: int) -> int:
    """Progress after reading in round `number`."""
    return 2 * number + 2


def has_written(number: int) -> int:
    """Progress after round `number`."""
    return 2 * number + 3


Waits = list[tuple[int, int]]
"""(rank, progress that it must have reached)."""


@dataclass(frozen=True)
class Task:
    """One round of one rank, if it has anything to do in it.

    Wait for `before`; then either do the round by messages (`remote`), or add what `pulls` say and
    write what `pushes` say, (peer, parts). If `staged`, sums are put aside until `before_writing`.
    """

    number: int
    before: Waits
    pulls: list[Exchange]
    pushes: list[tuple[int, Parts]]
    remote: Round
    staged: bool
    before_writing: Waits


@dataclass(frozen=True)
class Program:
    """All tasks of one rank, what to wait for at the end, and how far progress gets anywhere."""

    tasks: list[Task]
    at_the_end: Waits
    stride: int


@dataclass(frozen=True)
class _Message:
    """What round `sent` of `source` has for round `received` of `dest`."""

    source: int
    sent: int
    dest: int
    received: int
    parts: Parts
    combine: Combine


@dataclass(frozen=True)
class _Access:
    """A use of a buffer in round `time` of its owner, over when `rank` is at `progress`."""

    time: int
    parts: Parts
    writes: bool
    rank: int
    progress: int


def program(rounds: Mapping[int, list[Round]], rank: int) -> Program:
    """What `rank` does, given the rounds of all ranks that share its memory.

    Raises ValueError if a round of `rank` has peers both among those and elsewhere.
    """
    messages = _messages(rounds)
    accesses = _accesses(rounds, messages)
    mine = [m for m in messages if rank in (m.source, m.dest)]
    known: dict[int, int] = {}

    def still_needed(wanted: Waits) -> Waits:
        """The waits that no earlier one implies, one a rank."""
        needed: dict[int, int] = {}
        for peer, value in wanted:
            if value > known.get(peer, 0):
                needed[peer] = known[peer] = value
        return list(needed.items())

    def after(owner: int, parts: Parts, time: int, writes: bool) -> Waits:
        """What has to be over before this rank uses parts of a buffer."""
        begun = [] if owner == rank else [(owner, STARTED)]
        return begun + [
            (one.rank, one.progress)
            for one in accesses[owner]
            if one.rank != rank
            and _overlap(one.parts, parts)
            and (one.time < time if one.writes else writes and one.time <= time)
        ]

    tasks = []
    for number, exchanges in enumerate(rounds[rank]):
        remote = _is_remote(rounds, rank, number)
        sent = [m for m in mine if m.source == rank and m.sent == number]
        pulled = [m for m in mine if m.dest == rank and m.received == number and m.combine is ADD]
        pushed = [m for m in sent if m.combine is COPY]
        if not (remote or pulled or pushed):
            continue
        before: Waits = []
        before_writing: Waits = []
        for m in pulled:
            before += after(m.source, m.parts, m.sent, writes=False)
            before += after(rank, m.parts, number, writes=False)  # its own value is added, too
            before_writing += after(rank, m.parts, number, writes=True)
        for m in pushed:
            before += after(rank, m.parts, number, writes=False)
            before += after(m.dest, m.parts, m.received, writes=True)
        for e in exchanges if remote else ():
            before += after(rank, e.send_parts, number, writes=False)
            before += after(rank, e.recv_parts, number, writes=True)
        read_now = [m.parts for m in sent]
        staged = any(_overlap(m.parts, parts) for m in pulled for parts in read_now)
        tasks.append(
            Task(
                number=number,
                before=still_needed(before if staged else before + before_writing),
                pulls=[Exchange(recv_from=m.source, recv_parts=m.parts) for m in pulled],
                pushes=[(m.dest, m.parts) for m in pushed],
                remote=exchanges if remote else [],
                staged=staged,
                before_writing=still_needed(before_writing) if staged else [],
            )
        )
    others = [(one.rank, one.progress) for one in accesses[rank] if one.rank != rank]
    most = max(len(one) for one in rounds.values())
    return Program(tasks=tasks, at_the_end=still_needed(others), stride=has_written(most))


def _is_remote(rounds: Mapping[int, list[Round]], rank: int, number: int) -> bool:
    exchanges = rounds[rank][number]
    peers = {p for e in exchanges for p in (e.send_to, e.recv_from) if p is not None}
    if not peers <= rounds.keys() and not peers.isdisjoint(rounds.keys()):
        raise ValueError(
            f"round {number} of rank {rank} talks to ranks {sorted(peers)}, of which some share "
            f"its memory and some do not"
        )
    return not peers <= rounds.keys()


def _messages(rounds: Mapping[int, list[Round]]) -> list[_Message]:
    """All messages between these ranks: the n-th send to a rank meets its n-th receive."""
    sends: dict[tuple[int, int], list[tuple[int, Parts]]] = {}
    receives: dict[tuple[int, int], list[tuple[int, Combine]]] = {}
    for rank, whole in rounds.items():
        for number, exchanges in enumerate(whole):
            for e in exchanges:
                if e.send_to is not None and e.send_to in rounds:
                    sends.setdefault((rank, e.send_to), []).append((number, e.send_parts))
                if e.recv_from is not None and e.recv_from in rounds:
                    receives.setdefault((e.recv_from, rank), []).append((number, e.combine))
    return [
        _Message(source, sent, dest, received, parts, combine)
        for (source, dest), outgoing in sends.items()
        for (sent, parts), (received, combine) in zip(outgoing, receives[source, dest], strict=True)
    ]


def _accesses(
    rounds: Mapping[int, list[Round]], messages: list[_Message]
) -> dict[int, list[_Access]]:
    """Every use of every buffer, by its owner's rank."""
    found: dict[int, list[_Access]] = {rank: [] for rank in rounds}
    for m in messages:
        if m.combine is ADD:  # pulled
            rank, read, written = m.dest, has_read(m.received), has_written(m.received)
        else:
            rank, read, written = m.source, has_written(m.sent), has_written(m.sent)
        found[m.source].append(_Access(m.sent, m.parts, False, rank, read))
        found[m.dest].append(_Access(m.received, m.parts, True, rank, written))
    for rank, whole in rounds.items():
        for number, exchanges in enumerate(whole):
            for e in exchanges:
                over = has_written(number)
                if e.send_to is not None and e.send_to not in rounds:
                    found[rank].append(_Access(number, e.send_parts, False, rank, over))
                if e.recv_from is not None and e.recv_from not in rounds:
                    found[rank].append(_Access(number, e.recv_parts, True, rank, over))
    return found


def _overlap(a: Parts, b: Parts) -> bool:
    return a[0] < b[1] and b[0] < a[1]
