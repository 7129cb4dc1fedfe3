"""Who has to wait for whom when peers read each other's memory: derived from the schedule.

Where memory is shared, a message is a look: the receiver reads the sender's part in place. Two
things can go wrong, and both are known in advance. A part can be read before it has the value that
it should have, or overwritten before all have read it. So every rank publishes one number, its
*progress*, which only grows, and waits until the progress of others is far enough:

    progress     this rank has
    -----------  -----------------------------------------------
    1            written its contribution (the call has begun)
    2 k + 2      read what it needs in round k
    2 k + 3      and written what it receives in round k

To read parts that a peer sends in its round m, wait for the last round before m in which the peer
writes them. To write parts in round w, wait for the readers of all messages up to round w that
carried them. If a round reads and writes the same parts, as when two ranks swap their sums, the
result is put aside first (*staged*) and written when all have read. At the end, wait for the
readers of everything, so that the caller may write. There are no barriers and no other
synchronisation.

Peers on other nodes get messages; a round is either a local or a remote one for a rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from collectives.schedule import Exchange, Parts, Round

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
    """One round of one rank.

    Wait for `before`; then either do the round by messages (`remote`), or read `reads` and combine.
    If `staged`, what is combined is put aside until `before_writing` is reached.
    """

    number: int
    before: Waits
    reads: list[Exchange]
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
class _Look:
    """One message between local ranks: `parts` of `owner`'s round `sent` in `reader`'s round."""

    owner: int
    sent: int
    reader: int
    received: int
    parts: Parts


def program(rounds: Mapping[int, list[Round]], rank: int) -> Program:
    """What `rank` does, given the rounds of all ranks that share its memory.

    Raises ValueError if a round of `rank` has peers both among those and elsewhere.
    """
    looks = [
        look
        for peer in rounds
        for look in (*_looks(rounds, peer, rank), *_looks(rounds, rank, peer))
        if peer != rank
    ]
    mine = {(look.owner, look.received, look.parts): look for look in looks if look.reader == rank}
    theirs = [look for look in looks if look.owner == rank]
    known: dict[int, int] = {}

    def still_needed(wanted: Waits) -> Waits:
        """The waits that no earlier one implies, one a rank."""
        needed: dict[int, int] = {}
        for peer, value in wanted:
            if value > known.get(peer, 0):
                needed[peer] = known[peer] = value
        return list(needed.items())

    tasks = []
    for number, exchanges in enumerate(rounds[rank]):
        peers = {p for e in exchanges for p in (e.send_to, e.recv_from) if p is not None}
        remote = not peers <= rounds.keys()
        if remote and not peers.isdisjoint(rounds.keys()):
            raise ValueError(
                f"round {number} of rank {rank} talks to ranks {sorted(peers)}, of which some "
                f"share its memory and some do not"
            )
        received = [e for e in exchanges if e.recv_from is not None]
        sources = [] if remote else received
        looked = [
            mine[e.recv_from, number, e.recv_parts] for e in sources if e.recv_from is not None
        ]
        reads = [(look.owner, _ready(rounds[look.owner], look.sent, look.parts)) for look in looked]
        written = [e.recv_parts for e in received]
        readers = [
            look for look in theirs
            if look.sent <= number and any(_overlap(look.parts, parts) for parts in written)
        ]  # fmt: skip
        staged = any(look.sent == number for look in readers)
        writes = [(look.reader, has_read(look.received)) for look in readers]
        before = still_needed(reads if staged else reads + writes)
        tasks.append(
            Task(
                number=number,
                before=before,
                reads=sources,
                remote=exchanges if remote else [],
                staged=staged,
                before_writing=still_needed(writes) if staged else [],
            )
        )
    at_the_end = still_needed([(look.reader, has_read(look.received)) for look in theirs])
    most = max(len(one) for one in rounds.values())
    return Program(tasks=tasks, at_the_end=at_the_end, stride=has_written(most))


def _looks(rounds: Mapping[int, list[Round]], owner: int, reader: int) -> list[_Look]:
    """The messages from `owner` to `reader`: the n-th send meets the n-th receive."""
    sent = [
        (number, e.send_parts)
        for number, exchanges in enumerate(rounds[owner])
        for e in exchanges
        if e.send_to == reader
    ]
    received = [
        (number, e.recv_parts)
        for number, exchanges in enumerate(rounds[reader])
        for e in exchanges
        if e.recv_from == owner
    ]
    return [
        _Look(owner, sent_in, reader, received_in, parts)
        for (sent_in, parts), (received_in, _) in zip(sent, received, strict=True)
    ]


def _ready(rounds: list[Round], number: int, parts: Parts) -> int:
    """Progress of a rank whose `parts` have the value that they have when round `number` begins."""
    for earlier in range(number - 1, -1, -1):
        for e in rounds[earlier]:
            if e.recv_from is not None and _overlap(e.recv_parts, parts):
                return has_written(earlier)
    return STARTED


def _overlap(a: Parts, b: Parts) -> bool:
    return a[0] < b[1] and b[0] < a[1]
