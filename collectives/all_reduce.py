"""What `collectives.make_plan` returns, whoever does the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from numpy.typing import NDArray


class AllReduce(ABC):
    """A sum over ranks, bound to its buffer. Usable in a `with` statement."""

    name: str
    transport: str
    buffer: NDArray[Any]

    @abstractmethod
    def run(self) -> None:
        """Replace the buffer by the sum over all ranks. Every rank must call it."""

    @abstractmethod
    def close(self) -> None:
        """Give the resources back; the buffer stays readable."""

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
