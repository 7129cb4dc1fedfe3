"""From this rank's clipped sum to the noisy sum of all ranks, part by part as parts are finished.

As soon as the engine has finished all of a *piece*, it is put on the grid with its noise and its
all-reduce is started, while the engine goes on with the next layer. Noise does not depend on data,
so that of the next event is drawn while this one is on its way.

    split, local    encode a piece with noise | start it | ... | wait for all pieces
    sharded         encode | reduce-scatter | the owner adds noise to what it owns | all-gather

Between hosts a long vector is several pieces; where the ranks share memory, or the vector is short,
one piece is faster.

Guarantee: pieces, their order and all calls are the same on all ranks, whatever the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import collectives
from dpsgd.errors import ConfigError

if TYPE_CHECKING:
    from mpi4py import MPI

    from collectives import AllReduce
    from dpsgd.config import Config
    from dpsgd.phases import PhaseTimer
    from dpsgd.release import Release

PIECE_BYTES = 256 * 1024
MAX_PIECES = 8
DRAWN_AT_ONCE = 16384
"""Elements of noise between two looks at messages; an even number, some 200 microseconds."""


@dataclass
class Piece:
    """A range of the vector with an all-reduce of its own."""

    elements: slice
    all_reduce: AllReduce
    missing: int = 0
    running: bool = False


class Exchange:
    """Sums over the ranks, one event after the other. Every rank must make the same calls.

    `sum` is this rank's clipped sum, float64 [num_params], to be written before its parts are
    taken.
    """

    draws_ahead = True

    def __init__(self, release: Release, pieces: Sequence[Piece], phase: PhaseTimer) -> None:
        self.name = pieces[0].all_reduce.name
        self.transport = pieces[0].all_reduce.transport
        self.choice = pieces[0].all_reduce.choice
        self._release = release
        self._pieces = pieces
        self._phase = phase
        num_params = sum(piece.elements.stop - piece.elements.start for piece in pieces)
        self.sum = np.zeros(num_params)
        draws = self.draws_ahead and release.grid.noise_std > 0
        self._noise = np.zeros(num_params if draws else 0)
        self._event = -1
        self._drawn = -1

    def begin(self, event: int) -> None:
        """A new sum; draws the noise of its event unless that is done already."""
        self._event = event
        if self._drawn != event:
            self._draw(event)
        for piece in self._pieces:
            piece.missing = piece.elements.stop - piece.elements.start

    def take(self, parts: Iterable[slice]) -> None:
        """Send parts of `sum` as they come; together they must be the whole."""
        for part in parts:
            self.ready(part)

    def ready(self, part: slice) -> None:
        """A part of `sum` is final: every piece that is now complete is encoded and started."""
        for piece in self._pieces:
            first = max(part.start, piece.elements.start)
            last = min(part.stop, piece.elements.stop)
            if first >= last:
                continue
            piece.missing -= last - first
            if piece.missing == 0:
                with self._phase("noise"):
                    self._encode(piece)
                with self._phase("communicate"):
                    self._start(piece)
        self._look()

    def finish(self, next_event: int | None) -> None:
        """Return when all pieces are summed; meanwhile the noise of the next event is drawn."""
        if next_event is not None:
            self._draw(next_event)
        with self._phase("communicate"):
            for piece in self._pieces:
                if piece.missing:
                    raise RuntimeError("a part of the sum was never finished")
                if piece.running:
                    piece.all_reduce.wait()
                    piece.running = False

    def decode(self, divisor: float, out: NDArray[Any]) -> NDArray[Any]:
        """The noisy sum over all ranks divided by a public constant, the same bits on each of them.

        Written to `out` [num_params], of any type of float.
        """
        for piece in self._pieces:
            self._release.decode(piece.all_reduce.buffer, divisor, out[piece.elements])
        return out

    def close(self) -> None:
        """Give the all-reduces back. Every rank must call it."""
        for piece in self._pieces:
            piece.all_reduce.close()

    def _encode(self, piece: Piece) -> None:
        noise = self._noise[piece.elements] if len(self._noise) else None
        self._release.encode(self.sum[piece.elements], piece.all_reduce.buffer, noise)

    def _start(self, piece: Piece) -> None:
        piece.all_reduce.start()
        piece.running = True

    def _draw(self, event: int) -> None:
        """Noise for every element, with looks at what is on its way."""
        for first in range(0, len(self._noise), DRAWN_AT_ONCE):
            with self._phase("noise"):
                out = self._noise[first : first + DRAWN_AT_ONCE]
                self._release.noise(event, first, len(out), out)
            self._look()
        self._drawn = event

    def _look(self) -> None:
        """Let messages that are on their way go on."""
        running = [piece for piece in self._pieces if piece.running]
        if running:
            with self._phase("communicate"):
                for piece in running:
                    piece.all_reduce.test()


class ShardedExchange(Exchange):
    """Noise is drawn and added by the owner of each element alone, between the two halves."""

    draws_ahead = False

    def _start(self, piece: Piece) -> None:
        all_reduce = piece.all_reduce
        all_reduce.reduce_scatter()
        with self._phase("noise"):
            owned = all_reduce.owned
            self._release.add_noise_(self._event, owned.start, all_reduce.buffer[owned])
        all_reduce.all_gather()


def make_exchange(
    config: Config,
    comm: MPI.Intracomm,
    release: Release,
    parts: Sequence[slice],
    phase: PhaseTimer,
) -> Exchange:
    """The exchange for a vector whose `parts` are finished in this order. All ranks must call it.

    Raises ConfigError, on all ranks, if the all-reduce does not fit them.
    """
    length = max(part.stop for part in parts)
    sharded = config.noise == "sharded"
    whole = _plan(config, comm, length, release.grid.wire, sharded)
    if sharded:
        return ShardedExchange(release, [Piece(slice(0, length), whole)], phase)
    pieces = [slice(0, length)]
    if whole.transport == "mpi" and comm.size > 1:
        pieces = cut(parts, whole.buffer.itemsize)
    if len(pieces) == 1:
        return Exchange(release, [Piece(pieces[0], whole)], phase)
    whole.close()
    made = [
        Piece(one, _plan(config, comm, one.stop - one.start, release.grid.wire, False))
        for one in pieces
    ]
    return Exchange(release, made, phase)


def cut(parts: Sequence[slice], itemsize: int) -> list[slice]:
    """Ranges of neighbouring parts, in their order; of PIECE_BYTES or more where no gap is."""
    total = sum(part.stop - part.start for part in parts) * itemsize
    at_least = max(PIECE_BYTES, -(-total // MAX_PIECES))
    pieces: list[slice] = []
    first = last = -1
    for part in parts:
        if first == -1:
            first, last = part.start, part.stop
        elif part.stop == first or part.start == last:
            first, last = min(first, part.start), max(last, part.stop)
        else:
            pieces.append(slice(first, last))
            first, last = part.start, part.stop
        if (last - first) * itemsize >= at_least:
            pieces.append(slice(first, last))
            first = last = -1
    if first != -1:
        pieces.append(slice(first, last))
    return pieces


def _plan(config: Config, comm: MPI.Intracomm, length: int, dtype: Any, halves: bool) -> AllReduce:
    try:
        return collectives.make_plan(
            config.allreduce, comm, length, dtype, transport=config.transport, halves=halves
        )
    except ValueError as error:  # the same one on all ranks
        raise ConfigError(str(error)) from None
