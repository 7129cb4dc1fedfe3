"""One step of every engine that `bench` compares: from a batch in memory to updated parameters.

    torch-sgd      what a good PyTorch user writes: module, mean loss, backward, torch.optim.SGD,
                   zero_grad(set_to_none=True); `foreach` or `fused`, whichever is fastest here
    plain          our fastest engine for the model, without clipping and without noise
    loop, ...      our engines with clipping and secure noise
    opacus-...     see `dpsgd.bench.peers`

Ours do what the trainer does on one rank, with its own parts: the clipped sum in float64, drawn
noise, the integer grid, the exchange (with nobody), the mean, our SGD. Only the sampling is left
out, for all alike. The clipping bound is 1 and the noise multiplier 1. Peers run as their users
have them, so this process does not keep freed memory (`dpsgd.allocator`), and ours do without.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from dpsgd import engines, optimizers, release, streams
from dpsgd.bench import peers as bench_peers
from dpsgd.bench.workloads import Workload
from dpsgd.config import Config
from dpsgd.exchange import make_exchange
from dpsgd.phases import PhaseTimer

if TYPE_CHECKING:
    from mpi4py import MPI

    from dpsgd.models import Model

SGD, PLAIN = "torch-sgd", "plain"
LEARNING_RATE = 0.01
MAX_GRAD_NORM = 1.0
NOISE_MULTIPLIER = 1.0
TRIALS = 40

Step = Callable[[], object]


def build(name: str, workload: Workload, comm: MPI.Intracomm) -> tuple[Step, str]:
    """One step of the engine `name`, and a note on how it is done, or nothing.

    `comm` has one rank. Raises ConfigError if the engine cannot train the model, or is missing.
    """
    model, inputs, labels = workload.batch()
    if name == SGD:
        return torch_sgd(model, inputs, labels)
    if name in bench_peers.MODES:
        module = loaded(model)
        batch = torch.from_numpy(inputs), torch.from_numpy(labels)
        return bench_peers.build(name, module, batch, LEARNING_RATE, MAX_GRAD_NORM), ""
    private = name != PLAIN
    chosen = name if private else engines.choose(model)
    note = "" if private else f"plain is {chosen} without clipping and noise"
    return OurStep(chosen, model, inputs, labels, comm, private=private), note


class OurStep:
    """The step of the trainer without its sampling; `engine` and `timer` are for the breakdown."""

    def __init__(
        self,
        name: str,
        model: Model,
        inputs: NDArray[Any],
        labels: NDArray[np.float32],
        comm: MPI.Intracomm,
        *,
        private: bool,
    ) -> None:
        clip = MAX_GRAD_NORM if private else math.inf
        self.engine: Any = engines.build(name, model, clip)
        self.timer = PhaseTimer()
        self._inputs, self.labels = inputs, labels
        self._params = model.initial(0)
        length = model.num_params
        parts = [
            *engines.stages(self.engine, self._params, inputs[:0], labels[:0], np.empty(length))
        ]
        grid = release.plain_grid(1)
        if private:
            grid = release.private_grid(
                wire="auto",
                noise="split",
                max_grad_norm=MAX_GRAD_NORM,
                rho=self.engine.rho,
                noise_multiplier=NOISE_MULTIPLIER,
                num_params=length,
                expected_batch_size=len(labels),
                world_size=1,
            )
        released = release.Release(grid, streams.fresh().noise)
        self._exchange = make_exchange(Config(), comm, released, parts, self.timer)
        self._optimizer = optimizers.build("sgd", length, LEARNING_RATE)
        self._grad_mean = np.empty(length, np.float32)
        self._event = 0

    def __call__(self) -> None:
        """One step."""
        phase, exchange, params = self.timer, self._exchange, self._params
        exchange.begin(self._event)
        with phase("compute"):
            parts = engines.stages(self.engine, params, self._inputs, self.labels, exchange.sum)
            exchange.take(parts)
        self._event += 1
        exchange.finish(self._event)
        with phase("update"):
            exchange.decode(len(self.labels), out=self._grad_mean)
            self._optimizer.step(params, self._grad_mean)

    def close(self) -> None:
        """Give the all-reduce back."""
        self._exchange.close()


def loaded(model: Model) -> torch.nn.Module:
    """The model as a torch module with its initial parameters, as any PyTorch user has it."""
    module = model.module().train()
    initial = torch.from_numpy(model.initial(0))
    trained = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, tensor in zip(trained, model.tensors, strict=True):
            parameter.copy_(initial[tensor.place].view(tensor.shape))
    return module


def torch_sgd(model: Model, inputs: NDArray[Any], labels: NDArray[np.float32]) -> tuple[Step, str]:
    """Plain training in PyTorch with the fastest of its three implementations of SGD."""
    kinds: dict[str, dict[str, bool]] = {
        "the default": {},
        "foreach": {"foreach": True},
        "fused": {"fused": True},
    }
    steps = {kind: torch_step(model, inputs, labels, **given) for kind, given in kinds.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(TRIALS):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[kind].append(time.perf_counter() - start)
    best = min(kinds, key=lambda kind: statistics.median(seconds[kind]))
    return steps[best], f"torch-sgd is torch.optim.SGD, {best}"


def torch_step(
    model: Model, inputs: NDArray[Any], labels: NDArray[np.float32], **options: bool
) -> Step:
    """A step of plain PyTorch with these options of its SGD."""
    module = loaded(model)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, **options)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss: Any = binary_cross_entropy_with_logits(module(x), y)
        loss.backward()
        optimizer.step()

    return step
