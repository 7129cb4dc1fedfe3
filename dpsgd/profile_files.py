"""What `profile` collects, and how it is written: hot spots, and spans for a trace viewer.

The trace is in Chrome's format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU:
a process for each rank, and in it a span for every step, with the phases of the step inside.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpsgd.phases import PhaseTimer

if TYPE_CHECKING:
    from dpsgd.trainer import Progress

Span = tuple[str, float, float]
"""Name, start and end in seconds of `time.perf_counter`, which the processes of a machine share."""

FIRST_PHASE = "sample"
PROJECT = Path(__file__).parents[1]


class TracedTimer(PhaseTimer):
    """Remembers every stretch of a phase; those inside another have been cut out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []

    def add(self, name: str, start: float, end: float) -> None:
        """Count a stretch of time, and keep it."""
        super().add(name, start, end)
        self.spans.append((name, start, end))


class HotSpots:
    """cProfile over the steps of rank 0 but the first."""

    def __init__(self) -> None:
        self._profiler = cProfile.Profile()

    def progress(self, now: Progress) -> None:
        """Called after every step."""
        if now.step == now.run.steps:
            self._profiler.disable()
        elif now.step == 1:
            self._profiler.enable()

    def rows(self, top: int) -> list[dict[str, Any]]:
        """The functions with most time of their own; `seconds` is with what they call."""
        stats: dict[Any, Any] = pstats.Stats(self._profiler).stats  # type: ignore[attr-defined]
        found = [
            {
                "function": _name(*place),
                "calls": calls,
                "seconds_alone": alone,
                "seconds": whole,
            }
            for place, (_, calls, alone, whole, _) in stats.items()
        ]
        total = sum(row["seconds_alone"] for row in found)
        found.sort(key=lambda row: -row["seconds_alone"])
        return [row | {"share": row["seconds_alone"] / total} for row in found[:top]]


def _name(file: str, line: int, function: str) -> str:
    if file == "~":  # built in
        return function
    path = Path(file)
    place = path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else Path(path.name)
    return f"{place}:{line} {function}"


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table for people."""
    head = f"# {'calls':>8}{'alone(s)':>10}{'share':>8}{'whole(s)':>10}  function"
    return [head] + [
        f"  {row['calls']:>8}{row['seconds_alone']:>10.4f}{row['share']:>8.1%}"
        f"{row['seconds']:>10.4f}  {row['function']}"
        for row in rows
    ]


def trace_events(spans_of_ranks: Sequence[Sequence[Span]]) -> list[dict[str, Any]]:
    """Events of a Chrome trace; times are in microseconds from the first span on."""
    origin = min(start for spans in spans_of_ranks for _, start, _ in spans)
    events: list[dict[str, Any]] = []

    def add(rank: int, name: str, start: float, end: float) -> None:
        at, duration = ((value * 1e6) for value in (start - origin, end - start))
        events.append({"name": name, "ph": "X", "pid": rank, "tid": 0, "ts": at, "dur": duration})

    for rank, spans in enumerate(spans_of_ranks):
        label = {"name": f"rank {rank}"}
        events.append({"name": "process_name", "ph": "M", "pid": rank, "args": label})
        starts = [start for name, start, _ in spans if name == FIRST_PHASE]
        ends = [*starts[1:], max(end for _, _, end in spans)]
        for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
            add(rank, f"step {number}", start, end)
        for span in spans:
            add(rank, *span)
    return events
