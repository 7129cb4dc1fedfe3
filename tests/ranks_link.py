"""Run under mpirun over emulated hosts: what ranks 0 and 1, 2 and 3, ... see of their links."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from collectives.transports.mpi import world

REPEATS = 9


def median_seconds(call: Callable[[], None], *, calls: int) -> float:
    call()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(seconds)


def main() -> None:
    """Arguments: lengths of messages in bytes. Prints what rank 0 saw, a JSON object for each."""
    comm = world()
    peer = comm.rank ^ 1
    for num_bytes in map(int, sys.argv[1:]):
        sent, received = np.zeros(num_bytes, "u1"), np.zeros(num_bytes, "u1")

        def there_and_back(sent: np.ndarray = sent, received: np.ndarray = received) -> None:
            if comm.rank < peer:
                comm.Send(sent, peer)
            comm.Recv(received, peer)
            if comm.rank > peer:
                comm.Send(sent, peer)

        def both_at_once(sent: np.ndarray = sent, received: np.ndarray = received) -> None:
            comm.Sendrecv(sent, peer, 0, received, peer)

        calls = max(2, min(10, 100_000 // num_bytes))
        one_way = median_seconds(there_and_back, calls=calls) / 2
        exchange = median_seconds(both_at_once, calls=calls)
        if comm.rank == 0:
            found = {"bytes": num_bytes, "one_way_seconds": one_way, "exchange_seconds": exchange}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
