"""Where the time of a rank goes: seconds by phase of the step.

A phase may begin inside another, as when a finished layer is sent while the next is computed; the
outer one stands still meanwhile, so that the seconds of all phases add up to what has passed.
"""

from __future__ import annotations

from time import perf_counter
from types import TracebackType

PHASES = ("sample", "compute", "noise", "communicate", "update")


class PhaseTimer:
    """`with phase("compute"): ...` adds the time spent inside."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._running: list[str] = []
        self._since = 0.0
        self._phases = {name: _Phase(self, name) for name in PHASES}

    def __call__(self, name: str) -> _Phase:
        """The context of a phase."""
        return self._phases[name]

    def enter(self, name: str) -> None:
        """A phase begins."""
        now = perf_counter()
        if self._running:
            self.add(self._running[-1], self._since, now)
        self._running.append(name)
        self._since = now

    def exit(self) -> None:
        """The phase that began last is over."""
        now = perf_counter()
        self.add(self._running.pop(), self._since, now)
        self._since = now

    def add(self, name: str, start: float, end: float) -> None:
        """Count a stretch of time; both ends are readings of `time.perf_counter`."""
        self.seconds[name] += end - start


class _Phase:
    """Not a generator with `contextmanager`, which takes as long as a small phase."""

    def __init__(self, timer: PhaseTimer, name: str) -> None:
        self._timer, self._name = timer, name

    def __enter__(self) -> None:
        self._timer.enter(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.exit()
