"""PyTorch's DistributedDataParallel inside the same program: `--allreduce ddp`.

The model is wrapped in DistributedDataParallel, and its reducer sums the clipped gradients during
the weighted backward pass of the engine `two-pass`, as the published DDP version of DP-SGD does. In
place of DDP's own all-reduce a communication hook puts every bucket that is full on the grid, with
its noise, and gloo adds the integers while backward goes on. So the wire carries what it carries
under any other all-reduce, and the model is the same, bit for bit, as with `two-pass` and another
one.

The integers are made of the sum that `two-pass` has compared with that of book-keeping; the
gradients in the bucket are the same numbers, but on a rank without examples, and where the
comparison failed. Forward passes may differ in number between ranks, so none of them communicates.

DDP fills buckets in the order in which gradients came in the first backward pass, and then keeps
them. Two passes over public random rows, before anything is charged, settle that.
"""

# Not `from __future__ import annotations`: DDP compares the annotations of a hook with classes.

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import collectives
from collectives.ddp_hook import init_process_group
from dpsgd.engines import Engine
from dpsgd.engines.two_pass import TwoPass
from dpsgd.exchange import Exchange, Piece
from dpsgd.models import Model
from dpsgd.phases import PhaseTimer
from dpsgd.release import Release

if TYPE_CHECKING:
    from mpi4py import MPI


class Buckets:
    """What the communication hook tells of: the parameters of every bucket that is full."""

    def __init__(self) -> None:
        self.full: Callable[[list[torch.Tensor]], None] = self._remember
        self.seen: list[list[torch.Tensor]] = []

    def _remember(self, parameters: list[torch.Tensor]) -> None:
        self.seen.append(parameters)


def bucket_is_full(
    state: Buckets,
    bucket: distributed.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """What DDP calls for each bucket. The sum does not come back: it is an integer elsewhere."""
    state.full(bucket.parameters())
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


class DdpExchange(Exchange):
    """An exchange whose parts are finished by DDP's reducer."""

    def __init__(
        self, release: Release, pieces: list[Piece], phase: PhaseTimer, started: bool
    ) -> None:
        super().__init__(release, pieces, phase)
        self.name = "ddp"
        self._started = started

    def take(self, parts: Iterable[slice]) -> None:
        """The hook has encoded and sent everything by the time the engine is done."""
        for _ in parts:
            raise RuntimeError("a part of the sum was finished outside DDP")

    def close(self) -> None:
        """Give gloo and the process group back. Every rank must call it."""
        super().close()
        if self._started:
            distributed.destroy_process_group()


def make_ddp_exchange(
    comm: "MPI.Intracomm", model: Model, engine: Engine, release: Release, phase: PhaseTimer
) -> DdpExchange:
    """Wrap the model of the engine, and sum its buckets by gloo. All ranks must call it."""
    if not isinstance(engine, TwoPass):
        raise TypeError(f"engine must be two-pass, got {type(engine).__name__}")
    started = not distributed.is_initialized()
    if started:
        init_process_group(comm)
    buckets = Buckets()
    wrapped = DistributedDataParallel(engine.module.module, forward_sync_buffers=False)
    wrapped.register_comm_hook(buckets, bucket_is_full)
    places = engine.wrap(wrapped)
    for _ in range(2):
        buckets.seen.clear()
        engine.warm_up(model)
    pieces = []
    for parameters in buckets.seen:
        inside = sorted((places[id(p)] for p in parameters), key=lambda place: place.start)
        if any(one.stop != two.start for one, two in pairwise(inside)):
            raise RuntimeError("a bucket of DDP is not one range of the parameters")
        whole = slice(inside[0].start, inside[-1].stop)
        length = whole.stop - whole.start
        plan = collectives.make_plan("gloo", comm, length, release.grid.wire)
        pieces.append(Piece(whole, plan))
    exchange = DdpExchange(release, pieces, phase, started)

    def full(parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            exchange.ready(places[id(parameter)])

    buckets.full = full
    return exchange
