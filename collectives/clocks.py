"""The clocks of all ranks while a schedule runs: simulated, message by message.

Every rank has a clock and two ports, one out and one in, which work at the same time. When a rank
begins a round it posts all its exchanges. A message begins when both sides have posted it and both
their ports are free, those posted first before the others. It keeps the ports busy for overhead +
bytes beta and is complete alpha + bytes beta after it began. So the p - 1 sends of one round begin
one after another and are on their way together. A round ends for a rank when all its messages are
complete and what has come is added, gamma a byte. There is no barrier: the clocks run apart.

Four ranks, alltoall, alpha = 3, overhead = 1, beta = gamma = 0; who sends to whom:

    time     0       1       2       3       4       5
    rank 0   -> 1 ------------------>|
                     -> 2 ------------------>|
                             -> 3 ------------------>|
    rank 1   -> 2    -> 3    -> 0
    rank 2   -> 3    -> 0    -> 1
    rank 3   -> 0    -> 1    -> 2

A clock counts, besides the seconds, what they consist of. The last one is that of a critical path:
a chain of messages and additions each of which waited for the one before.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from collectives.schedule import ADD, Algorithm, Combine, Exchange, Parts, Round

Place = tuple[int, int]
"""The number of a rank's round, and that of the exchange in it."""


@dataclass(slots=True, eq=False)
class Message:
    """A message that both sides have posted; `begins` is the time in seconds when it does."""

    source: int
    dest: int
    parts: Parts
    combine: Combine
    sent_at: Place
    received_at: Place
    begins: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that ports are busy with a message and with each part in it, that the message is on
    its way besides, the same inside nodes, and those of adding a part.
    """

    message: float
    part: float
    flight: float
    near_message: float
    near_part: float
    near_flight: float
    addition: float


Clock = tuple[float, int, int, int, int, int, int, int]
"""Seconds, and how often each of the `Costs` is in them, in that order.

The seconds are always computed from the counts, never added up: equal paths end at equal times.
"""
START: Clock = (0.0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class _Rank:
    """Where a rank is. A port is None while it is busy, else the time since which it is free."""

    rank: int
    rounds: Iterator[Round]
    out_port: Clock | None = None
    in_port: Clock | None = None
    complete: Clock = START  # the last message that is
    current: int = -1
    open_halves: int = 0
    to_send: int = 0  # not yet begun
    to_receive: int = 0
    parts_to_add: int = 0
    outgoing: list[Message] = field(default_factory=list)  # those of them that both sides have
    incoming: list[Message] = field(default_factory=list)  # posted, in the order of posting


Ports = tuple[_Rank, _Rank]
"""The port out of one rank and the port into another, which a message keeps busy."""
Event = Ports | Message | _Rank
"""Ports become free, a message is complete, or a rank begins its next round."""


class Clocks:
    """An event loop: messages end and rounds begin, in the order of time.

    Messages between two ranks of the same node are near. `observe` is called when one begins.
    """

    def __init__(
        self, algorithm: Algorithm, world_size: int, costs: Costs, nodes: Sequence[int],
        observe: Callable[[Message], None],
    ) -> None:  # fmt: skip
        self.costs, self.nodes, self.observe = costs, nodes, observe
        self.ranks = [_Rank(r, iter(algorithm.rounds(r, world_size))) for r in range(world_size)]
        self.sends: dict[tuple[int, int], deque[tuple[Exchange, Place]]] = {}
        self.receives: dict[tuple[int, int], deque[tuple[Exchange, Place]]] = {}
        self.events: list[tuple[Clock, int, Event]] = []
        self.num_events = 0  # what happens at one time is handled in the order of posting
        self.running = world_size

    def run(self) -> Clock:
        """When the last rank is done. Raises ValueError if the schedule waits for ever."""
        last = START
        for state in self.ranks:
            self._next_round(state, last)
        self._begin(self.ranks)
        while self.events:
            now = self.events[0][0][0]
            touched: dict[_Rank, None] = {}  # those for whom a message may begin now
            while self.events and self.events[0][0][0] == now:
                clock, _, event = heapq.heappop(self.events)
                last = max(last, clock)
                if isinstance(event, tuple):
                    event[0].out_port = event[1].in_port = clock
                    touched |= dict.fromkeys(event)
                elif isinstance(event, Message):
                    self._complete(event, clock)
                else:
                    touched |= dict.fromkeys(self._next_round(event, clock))
            self._begin(touched)
        if self.running:
            raise ValueError("the schedule waits for ever; collectives.verify says where")
        return last

    def _at(
        self, event: Event, clock: Clock, messages: int = 0, parts: int = 0, flights: int = 0,
        near: int = 0, near_parts: int = 0, near_flights: int = 0, added: int = 0,
    ) -> None:  # fmt: skip
        """Let `event` happen when so much more is done after `clock`."""
        _, a, b, c, d, e, f, g = clock
        a, b, c, g = a + messages, b + parts, c + flights, g + added
        d, e, f = d + near, e + near_parts, f + near_flights
        costs = self.costs
        seconds = (
            a * costs.message + b * costs.part + c * costs.flight + d * costs.near_message
            + e * costs.near_part + f * costs.near_flight + g * costs.addition
        )  # fmt: skip
        self.num_events += 1
        heapq.heappush(self.events, ((seconds, a, b, c, d, e, f, g), self.num_events, event))

    def _next_round(self, state: _Rank, clock: Clock) -> list[_Rank]:
        """Post the exchanges of the next round; the senders of those whose other side waits."""
        exchanges = next(state.rounds, None)
        if exchanges is None:
            self.running -= 1
            return []
        state.current += 1
        state.out_port = state.in_port = state.complete = clock
        senders = []
        for number, e in enumerate(exchanges):
            place = state.current, number
            if e.send_to is not None:
                state.to_send += 1
                pair = state.rank, e.send_to
                if waiting := self.receives.get(pair):
                    senders.append(self._meet(pair, e, place, *waiting.popleft()))
                else:
                    self.sends.setdefault(pair, deque()).append((e, place))
            if e.recv_from is not None:
                state.to_receive += 1
                pair = e.recv_from, state.rank
                if coming := self.sends.get(pair):
                    senders.append(self._meet(pair, *coming.popleft(), e, place))
                else:
                    self.receives.setdefault(pair, deque()).append((e, place))
        state.open_halves = state.to_send + state.to_receive
        if not state.open_halves:
            self._at(state, clock)
        return senders

    def _meet(
        self, pair: tuple[int, int], sent: Exchange, sent_at: Place, received: Exchange, at: Place
    ) -> _Rank:
        message = Message(*pair, sent.send_parts, received.combine, sent_at, at)
        source, dest = self.ranks[message.source], self.ranks[message.dest]
        insort(source.outgoing, message, key=lambda one: one.sent_at)
        insort(dest.incoming, message, key=lambda one: one.received_at)
        return source

    def _begin(self, touched: Iterable[_Rank]) -> None:
        """Let each free port of `touched` take the first message whose other port is free."""
        for state in touched:
            if state.out_port is not None:
                for message in state.outgoing:
                    if self.ranks[message.dest].in_port is not None:
                        self._send(message)
                        break
        for state in touched:
            if state.in_port is not None:
                for message in state.incoming:
                    if self.ranks[message.source].out_port is not None:
                        self._send(message)
                        break

    def _send(self, message: Message) -> None:
        source, dest = self.ranks[message.source], self.ranks[message.dest]
        assert source.out_port and dest.in_port  # the caller looked
        clock = max(source.out_port, dest.in_port)
        source.out_port = dest.in_port = None
        source.outgoing.remove(message)
        dest.incoming.remove(message)
        message.begins = clock[0]
        self.observe(message)
        source.to_send -= 1
        dest.to_receive -= 1
        parts = message.parts[1] - message.parts[0]
        near = self.nodes[message.source] == self.nodes[message.dest]
        busy = (0, 0, 0, 1, parts) if near else (1, parts, 0)
        arrived = (0, 0, 0, 1, parts, 1) if near else (1, parts, 1)
        if source.to_send or dest.to_receive:  # somebody may wait for these ports
            self._at((source, dest), clock, *busy)
        self._at(message, clock, *arrived)

    def _complete(self, message: Message, clock: Clock) -> None:
        """A rank whose messages are all complete adds, then begins a round."""
        source, dest = self.ranks[message.source], self.ranks[message.dest]
        if message.combine is ADD:
            dest.parts_to_add += message.parts[1] - message.parts[0]
        for state in (source, dest):
            state.open_halves -= 1
            state.complete = max(state.complete, clock)
            if not state.open_halves:
                self._at(state, state.complete, added=state.parts_to_add)
                state.parts_to_add = 0
