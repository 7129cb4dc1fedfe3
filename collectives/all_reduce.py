"""What `collectives.make_plan` returns, whoever does the work."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import collectives

if TYPE_CHECKING:
    from numpy.typing import NDArray


_RUNNING: list[AllReduce] = []
"""Those of this process that are started and not complete: who waits for one goes on with all."""


class AllReduce(ABC):
    """A sum over ranks, bound to its buffer. Usable in a `with` statement.

    `run` does it at once. `start`, then `test` or `wait`, leaves time for something else; until it
    is complete the buffer belongs to the all-reduce, which goes on only inside `test` and `wait`,
    or while this rank waits for another one. Every rank must make the same calls of `run`, `start`
    and the halves in the same order; they may wait in any. A call at the wrong time raises
    RuntimeError.

    `reduce_scatter`, then `all_gather`, is `run` in two halves. Between them every element is
    finished on one rank, its owner, and what the owners add to `buffer[owned]` is in the sum that
    all ranks get. Where there are no halves (`has_halves`) they raise ValueError.

    `choice` says why this one was taken, if it was chosen automatically.
    """

    name: str
    transport: str
    scratch_bytes: int = 0
    choice: str | None = None
    before_each_call: Callable[[str], None] | None = None
    """For debugging: checks that all ranks are about to make the same call."""
    _buffer: NDArray[Any]
    _owned: slice | None = None
    _halfway = False
    _started = False
    _running = False
    _closed = False

    @property
    def buffer(self) -> NDArray[Any]:
        """What is summed, and then the sum: write into it, `buffer[:] = ...`."""
        return self._buffer

    def run(self) -> None:
        """Replace the buffer by the sum over all ranks. Every rank must call it."""
        if self._closed or self._running or self._halfway:
            self._refuse("run")
        if self.before_each_call is not None:
            self.before_each_call("run")
        if _RUNNING:  # a rank that waits for one of those needs this one
            self._begin()
            self.wait()
        else:
            self._run()
        self._started = False

    def start(self) -> None:
        """Begin; the buffer must be left alone until `test` is true or `wait` returns."""
        if self._closed or self._running or self._halfway:
            self._refuse("start")
        if self.before_each_call is not None:
            self.before_each_call("start")
        self._begin()

    @property
    def has_halves(self) -> bool:
        """Whether it can be run in two halves."""
        return self._owned is not None

    @property
    def owned(self) -> slice:
        """The elements that this rank holds finished between the halves; may be none."""
        if self._owned is None:
            raise ValueError(collectives.no_halves(self.name))
        return self._owned

    def reduce_scatter(self) -> None:
        """The first half: the sum is in `buffer[owned]`, the rest of the buffer is meaningless.

        Until `all_gather` the buffer belongs to the caller. Every rank must call it.
        """
        self._half("reduce_scatter")
        self._halfway = True

    def all_gather(self) -> None:
        """The second half: what is in `buffer[owned]` replaces that part of every rank's buffer."""
        self._half("all_gather")
        self._halfway = False

    def test(self) -> bool:
        """Go on without blocking; whether the buffer now holds the sum."""
        if not self._started:
            self._refuse("test")
        if self._running and self._test():
            self._complete()
        return not self._running

    def wait(self, timeout: float | None = None) -> None:
        """Return when the buffer holds the sum, at once if it already does.

        Raises TimeoutError after `timeout` seconds; one may wait again. The message names the ranks
        that are awaited, but for vendors, which do not tell.
        """
        if not self._started:
            self._refuse("wait")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be 0 or more seconds, or None, got {timeout}")
        if timeout is None and self._running and len(_RUNNING) == 1:
            self._wait()
            self._complete()
            return
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self.test():
            for other in [one for one in _RUNNING if one is not self]:
                other.test()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self} is not complete after {timeout:g} s: {self._awaited()}")
            os.sched_yield()

    def close(self) -> None:
        """Give the resources back; `buffer` stays readable. Every rank must call it."""
        if self._running:
            self._refuse("close")
        if not self._closed:
            if self.before_each_call is not None:
                self.before_each_call("close")
            self._closed = True
            self._close()

    def _half(self, call: str) -> None:
        if not self.has_halves:
            raise ValueError(collectives.no_halves(self.name))
        if self._closed or self._running or self._halfway != (call == "all_gather"):
            self._refuse(call)
        if self.before_each_call is not None:
            self.before_each_call(call)
        self._use(call)
        try:
            if _RUNNING:
                self._begin()
                self.wait()
            else:
                self._run()
            self._started = False
        finally:
            self._use("run")

    def _use(self, call: str) -> None:
        """What `_run` and `_start` are to do: run, reduce_scatter or all_gather."""
        raise NotImplementedError  # who has halves has this

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

    def _begin(self) -> None:
        self._started = self._running = True
        _RUNNING.append(self)
        self._start()

    def _complete(self) -> None:
        self._running = False
        _RUNNING.remove(self)

    def _awaited(self) -> str:
        return "other ranks have not taken part yet"

    def _refuse(self, call: str) -> None:
        if self._closed:
            reason = "it is closed; make a new one"
        elif self._running:
            reason = "it is started; wait for it first"
        elif self._halfway:
            reason = "it is between its halves; call all_gather first"
        elif call == "all_gather":
            reason = "it is not between its halves; call reduce_scatter first"
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
