"""All-to-all: everyone sends everything to everyone, in one round.

Each rank keeps all contributions until the last has come and adds them in the order of the ranks.
One message time is all the waiting there is, so it wins for tiny buffers; every rank moves p - 1
whole buffers in and out, so it loses for all others.

Four ranks, one part:

    round | each rank r sends | each rank r computes
    ------+-------------------+----------------------
      1   | x_r to the others | ((x_0 + x_1) + x_2) + x_3

Cost: 1 round, (p - 1) messages and (p - 1) n bytes sent by every rank, as much scratch:
alpha + (p - 2) overhead + (p - 1) (n beta + n gamma), and the incast of p - 1 senders on top.

Reference: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
MPICH" (2005), which compares all-reduces in these terms.
"""

from __future__ import annotations

from collections.abc import Iterator

from collectives.schedule import ADD, Algorithm, Exchange, Price, Round, Traffic


def all_reduce(rank: int, world_size: int) -> Iterator[Round]:
    """One round with all peers; it begins at the next rank so that not all hit rank 0 first."""
    peers = [(rank + step) % world_size for step in range(1, world_size)]
    if peers:
        yield [Exchange(peer, (0, 1), peer, (0, 1), ADD) for peer in peers]


ALGORITHM = Algorithm(
    name="alltoall",
    num_parts=lambda p: 1,
    traffic=lambda p: Traffic(rounds=min(1, p - 1), messages=p - 1, sent=p - 1, scratch=p - 1),
    all_reduce=all_reduce,
    price=lambda p: Price(alpha=min(1, p - 1), overhead=max(0, p - 2), beta=p - 1, gamma=p - 1),
)
