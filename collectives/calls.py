"""For debugging: ranks compare, before every call of an all-reduce, what they are about to do.

Plans of one communicator are numbered in the order in which they were made, which is the same on
all ranks. Before each call the ranks exchange the number of the plan and what they call; so two
ranks that call different plans are told so, instead of waiting for each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from collectives.transports.mpi import attribute_of

if TYPE_CHECKING:
    from mpi4py import MPI

SECONDS_TO_JOIN = 60.0
CALLS = ("run", "start", "close", "reduce_scatter", "all_gather")


class _Calls:
    """The calls on the all-reduces of one communicator, compared over a duplicate of it."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm.Dup()
        self._number = 0
        self._labels: list[str] = []

    def register(self, label: str) -> int:
        """The number of a new plan."""
        self._labels.append(label)
        return len(self._labels) - 1

    def compare(self, plan: int, call: str) -> None:
        """Raise on all ranks if they are about to do different things."""
        self._number += 1
        mine = np.array([plan, CALLS.index(call)], np.int64)
        everyone = np.empty((self._comm.size, 2), np.int64)
        request = self._comm.Iallgather(mine, everyone)
        deadline = time.monotonic() + SECONDS_TO_JOIN
        while not request.Test():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"rank {self._comm.rank} called {call} of {self._labels[plan]}, and some rank "
                    f"called nothing for {SECONDS_TO_JOIN:g} s"
                )
            os.sched_yield()
        told = everyone.tolist()
        for rank, other in enumerate(told):
            if other != told[0]:
                first, differs = self._described(told[0], other)
                raise RuntimeError(
                    f"all-reduces must be called in the same order on all ranks: call "
                    f"{self._number} is {first} on rank 0 and {differs} on rank {rank}"
                )

    def _described(self, *both: list[int]) -> list[str]:
        """Two calls in words; plans that look alike are told apart by when they were made."""
        words = [f"{CALLS[call]} of {self._labels[plan]}" for plan, call in both]
        if words[0] == words[1]:
            pairs = zip(words, both, strict=True)
            words = [f"{word} (plan {plan + 1} of this communicator)" for word, (plan, _) in pairs]
        return words

    def close(self) -> None:
        """Called when the communicator is freed."""
        self._comm.Free()


def same_calls(comm: MPI.Intracomm, label: str) -> Callable[[str], None]:
    """What every rank must call, with one of CALLS, before it calls the all-reduce `label`.

    It raises RuntimeError on all ranks if they are about to do different things, TimeoutError if a
    rank does not come within SECONDS_TO_JOIN. Every rank must call `same_calls`, too.
    """
    calls = attribute_of(comm, _Calls)
    plan = calls.register(label)
    return lambda call: calls.compare(plan, call)
