"""What `collectives.make_plan` returns, whoever does the work."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from numpy.typing import NDArray


class AllReduce(ABC):
    """A sum over ranks, bound to its buffer. Usable in a `with` statement.

    `run` does it at once. `start`, then `test` or `wait`, leaves time for something else; until it
    is complete the buffer belongs to the all-reduce, which goes on only inside `test` and `wait`.
    Every rank must make the same calls of `run` and `start` in the same order; and before a rank
    runs another one it must have waited for those that others wait for, or all ranks must start
    them alike. A call at the wrong time raises RuntimeError.

    `choice` says why this one was taken, if it was chosen automatically.
    """

    name: str
    transport: str
    buffer: NDArray[Any]
    scratch_bytes: int = 0
    choice: str | None = None
    before_each_call: Callable[[str], None] | None = None
    """For debugging: checks that all ranks are about to do the same, `run` or `start`."""
    _running = False
    _closed = False

    def run(self) -> None:
        """Replace the buffer by the sum over all ranks. Every rank must call it."""
        if self._closed or self._running:
            self._refuse("run")
        if self.before_each_call is not None:
            self.before_each_call("run")
        self._run()

    def start(self) -> None:
        """Begin; the buffer must be left alone until `test` is true or `wait` returns."""
        if self._closed or self._running:
            self._refuse("start")
        if self.before_each_call is not None:
            self.before_each_call("start")
        self._running = True
        self._start()

    def test(self) -> bool:
        """Go on without blocking; whether the buffer now holds the sum."""
        if not self._running:
            self._refuse("test")
        self._running = not self._test()
        return not self._running

    def wait(self, timeout: float | None = None) -> None:
        """Return when the buffer holds the sum.

        Raises TimeoutError, naming the ranks that are awaited, after `timeout` seconds; one may
        wait again.
        """
        if not self._running:
            self._refuse("wait")
        if timeout is None:
            self._wait()
            self._running = False
            return
        deadline = time.monotonic() + timeout
        while not self.test():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self} is not complete after {timeout:g} s: {self._awaited()}")
            os.sched_yield()

    def close(self) -> None:
        """Give the resources back; `buffer` stays readable. Every rank must call it."""
        if self._running:
            self._refuse("close")
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _test(self) -> bool: ...

    @abstractmethod
    def _wait(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _run(self) -> None:
        self._start()
        self._wait()

    def _awaited(self) -> str:
        return "other ranks have not taken part yet"

    def _refuse(self, call: str) -> None:
        if self._closed:
            reason = "it is closed; make a new one"
        elif self._running:
            reason = "it is started; wait for it first"
        else:
            reason = "it is not started"
        raise RuntimeError(f"{call} was called on {self}, but {reason}")

    def __str__(self) -> str:
        return f"the all-reduce {self.name} of {len(self.buffer)} x {self.buffer.dtype}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # after an error peers may never answer, and freeing may wait for them
            self.close()
