"""How `bench` takes times: all engines of a workload in turns, in one process, and medians.

Every engine runs in blocks of steps that last about BLOCK_SECONDS. In each round the engines take
their blocks in a fixed order, so that a slow moment of the machine hits neighbours alike and a
block finds the caches as its own steps left them. The first steps are warm-up and tell how long a
step takes: slow engines sit out most rounds, evenly spread, and none takes more than its share of
the time. Shown is the median over the blocks of the mean within a block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Step = Callable[[], object]

BLOCK_SECONDS = 0.02
SECONDS_PER_ENGINE = 3.0
FEWEST_BLOCKS = 2
MOST_BLOCKS = 61
WARM_UP_SECONDS = 0.2
MOST_WARM_UPS = 50


@dataclass
class Turns:
    """The blocks of one engine."""

    step: Step
    calls: int
    blocks: int
    seconds: list[float] = field(default_factory=list)
    """Of one step, a number a block."""

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    def take(self) -> None:
        """One block."""
        start = time.perf_counter()
        for _ in range(self.calls):
            self.step()
        self.seconds.append((time.perf_counter() - start) / self.calls)


def in_turns(
    steps: Mapping[str, Step], seconds_per_engine: float = SECONDS_PER_ENGINE
) -> dict[str, Turns]:
    """The times of all steps; no engine takes much longer than `seconds_per_engine`."""
    turns = {name: _planned(step, seconds_per_engine) for name, step in steps.items()}
    rounds = max(one.blocks for one in turns.values())
    for number in range(rounds):
        for one in turns.values():
            if number * one.blocks // rounds != (number + 1) * one.blocks // rounds:
                one.take()
    return turns


def medians(steps: Sequence[Step], seconds_each: float) -> list[float]:
    """The median seconds of each step."""
    found = in_turns({str(number): step for number, step in enumerate(steps)}, seconds_each)
    return [one.median for one in found.values()]


def _planned(step: Step, budget: float) -> Turns:
    """Warm it up; the fastest of its first steps says how many blocks fit the budget."""
    once, start = float("inf"), time.perf_counter()
    for _ in range(MOST_WARM_UPS):
        before = time.perf_counter()
        step()
        after = time.perf_counter()
        once = min(once, after - before)
        if after - start > min(WARM_UP_SECONDS, budget):
            break
    calls = max(1, min(1000, int(min(BLOCK_SECONDS, budget) / once)))
    blocks = int((budget - (after - start)) / (calls * once))
    return Turns(step, calls, max(FEWEST_BLOCKS, min(MOST_BLOCKS, blocks)))
