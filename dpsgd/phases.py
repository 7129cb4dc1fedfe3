"""Where the time of a rank goes: seconds by phase of the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

PHASES = ("sample", "compute", "noise", "communicate", "update")


class PhaseTimer:
    """`with phase("compute"): ...` adds the time spent inside."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[name] += perf_counter() - start
