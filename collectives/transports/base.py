"""What a plan asks of a transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

Message = tuple[int, NDArray[Any]]
"""A peer and the memory to send from or to receive into."""


class Batch(Protocol):
    """The messages of one round, prepared once and run many times."""

    def start(self) -> None:
        """Post all sends and receives."""

    def wait(self) -> None:
        """Return when all of them are complete."""

    def free(self) -> None:
        """Give the resources back; the batch cannot be used any more."""


class Transport(Protocol):
    """Moves messages between the ranks of one group."""

    name: str
    rank: int
    world_size: int

    def prepare(self, sends: Sequence[Message], receives: Sequence[Message]) -> Batch:
        """Bind the messages of one round to their memory."""

    def close(self) -> None:
        """Give the resources back, after all batches are freed."""
