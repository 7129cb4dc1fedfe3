"""Two passes: the clipping factors, then one backward pass of the weighted loss.

The first pass is that of `bookkeeping` without its sums; the second is ordinary autograd through
the same graph, so that whatever listens to the gradients of parameters hears the clipped sum:
`dpsgd.ddp` lets DistributedDataParallel do so. The sum over a block of examples is autograd's, in
float32; blocks are added in float64.

Rounding. The second pass repeats the first with numbers that are scaled by the clipping factors, so
what an example contributes is C only up to the rounding of a backward pass, for which no bound is
proven in general. `rho` has a margin for it, 2^-8 of C, which is many times what was ever seen in
tests; an engine whose sums are made of what was measured, such as `bookkeeping`, needs none. The
sum over R examples of T positions each is off by R^2 T 2^-24 C where nothing cancels, so R is as
large as keeps this below half the margin, and at most 128.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpsgd.engines.bookkeeping import Bookkeeping
from dpsgd.engines.bookkeeping import build as build_bookkeeping
from dpsgd.flat_module import PROBES
from dpsgd.models import Model
from dpsgd.products import BLOCK_ROWS, RHO, UNIT

MARGIN = 2.0**-8


def build(model: Model, max_grad_norm: float) -> TwoPass:
    """The engine for one model. Raises ConfigError as `bookkeeping` does."""
    return TwoPass(build_bookkeeping(model, max_grad_norm))


class TwoPass:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = RHO + MARGIN

    def __init__(self, first: Bookkeeping) -> None:
        self._first = first
        self.module = first.module
        self._wrapped: nn.Module | None = None
        self._probe: NDArray[Any] = np.empty(0)
        self._rows = BLOCK_ROWS
        while self._rows > 1 and self._rows**2 * first.positions * UNIT > MARGIN / 2:
            self._rows //= 2

    def clipped_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        out[:] = 0
        for start in range(0, len(labels), self._rows):
            rows = slice(start, start + self._rows)
            for tensor, gradient in self._gradients(params, features[rows], labels[rows], out):
                out[tensor] += gradient.reshape(-1).numpy()

    def stages(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> Iterator[slice]:
        """The same, all at once; nothing if a wrapper listens, which is told by autograd.

        What a wrapper hears is the gradient of the last block, to be added to what is in `out`.
        """
        last = max(0, len(labels) - 1) // self._rows * self._rows
        if self._wrapped is None:
            self.clipped_sum(params, features, labels, out)
            yield slice(0, len(out))
        else:
            self.clipped_sum(params, features[:last], labels[:last], out)
            self._through_wrapper(params, features[last:], labels[last:], out)

    def wrap(self, wrapped: nn.Module) -> dict[int, slice]:
        """Call the module through `wrapped`; gives the place of every parameter by its id."""
        self._wrapped = wrapped
        pairs = zip(self.module.parameters, self.module.tensors, strict=True)
        return {id(parameter): tensor.place for parameter, tensor in pairs}

    def warm_up(self, model: Model) -> None:
        """One backward pass through the wrapper, over public random rows of weight 0."""
        self._probe = model.probe(PROBES)
        labels = np.zeros(0, np.float32)
        out = np.zeros(model.num_params)
        self._through_wrapper(model.initial(0), self._probe[:0], labels, out)

    def _gradients(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Place and gradient of each parameter; examples that float32 cannot hold go to `out`."""
        loss = self._weighted_loss(params, features, labels, out)
        if loss is not None:
            found = torch.autograd.grad(loss, self.module.parameters, allow_unused=True)
            for tensor, gradient in zip(self.module.tensors, found, strict=True):
                if gradient is not None:
                    yield tensor.place, gradient

    def _through_wrapper(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """A backward pass to the parameters on every rank, also on one without examples."""
        for parameter in self.module.parameters:
            parameter.grad = None
        assert self._wrapped is not None  # stages looked
        self.module.call = self._wrapped
        try:
            loss = self._weighted_loss(params, features, labels, out)
            if loss is None:
                loss = self.module.logits(self._probe).sum() * 0
            torch.autograd.backward(loss)
        finally:
            self.module.call = self.module.module

    def _weighted_loss(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> torch.Tensor | None:
        """Losses times clipping factors; None without examples that have a factor."""
        while len(labels):
            _, weights, losses = self._first.norms(params, features, labels, out, keep_graph=True)
            kept = (weights > 0).numpy()
            if kept.all():
                return (losses * weights).sum()
            # the others are in the sum, or not finite; they must go, since 0 times NaN is NaN
            features, labels = features[kept], labels[kept]
        return None
