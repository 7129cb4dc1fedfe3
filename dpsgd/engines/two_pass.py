"""Two passes: the clipping factors, then one backward pass of the weighted loss.

The first pass is that of `bookkeeping` without its sums; the second is ordinary autograd through
the same graph, so that whatever listens to the gradients of parameters hears the clipped sum:
`dpsgd.ddp` lets DistributedDataParallel do so. The sum over a block of at most 128 examples is
autograd's, in float32; blocks are added in float64.

Rounding. Where a backward pass cancels, as behind the normalisation of nearly equal numbers, its
result is rounding, and the second pass rounds otherwise than the first: contributions of 7 C were
seen. So the sum of every block is compared with that of `bookkeeping`, which takes its place where
they differ by more than 2^-9 of C. Twice that is what `rho` adds.
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
from dpsgd.products import BLOCK_ROWS, RHO

MARGIN = 2.0**-8


def build(model: Model, max_grad_norm: float) -> TwoPass:
    """The engine for one model. Raises ConfigError as `bookkeeping` does."""
    return TwoPass(build_bookkeeping(model, max_grad_norm), model.probe(PROBES))


class TwoPass:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = 2 * RHO + MARGIN

    def __init__(self, first: Bookkeeping, probe: NDArray[Any]) -> None:
        self._first = first
        self.module = first.module
        self._wrapped: nn.Module | None = None
        self._probe = probe

    def clipped_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        out[:] = 0
        for start in range(0, len(labels), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            out += self._second(params, features[rows], labels[rows], out)[1]

    def stages(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> Iterator[slice]:
        """The same, all at once; nothing if a wrapper listens, which hears of it by autograd.

        When it does, everything is in `out`: the gradients of the last backward pass were compared
        and added before. Those that the wrapper is handed are the same numbers once more.
        """
        last = max(0, len(labels) - 1) // BLOCK_ROWS * BLOCK_ROWS
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
        """One backward pass through the wrapper, as on a rank without examples."""
        labels = np.zeros(0, np.float32)
        out = np.zeros(model.num_params)
        self._through_wrapper(model.initial(0), self._probe[:0], labels, out)

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
            loss, found = self._second(params, features, labels, out)
            out += found
            if loss is None:
                loss = self.module.logits(self._probe).sum() * 0
            torch.autograd.backward(loss)
        finally:
            self.module.call = self.module.module

    def _second(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> tuple[torch.Tensor | None, NDArray[np.float64] | float]:
        """Losses times clipping factors, their gradient [num_params]; or None, and all is in `out`.

        Examples that float32 cannot measure are in `out` in any case.
        """
        if not len(labels):
            return None, 0.0
        terms, weights, losses = self._first.norms(params, features, labels, out, keep_graph=True)
        kept = weights > 0
        if not kept.any():
            return None, 0.0
        expected = self._first.sums(terms, weights)
        if not kept.all():  # 0 times NaN is NaN
            module, weights = self.module, weights[kept]
            losses = module.losses(module.inputs(features[kept]), module.labels(labels[kept]))
        loss = (losses * torch.from_numpy(weights)).sum()
        parts = torch.autograd.grad(
            loss, self.module.parameters, retain_graph=self._wrapped is not None,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        found = torch.cat([part.reshape(-1) for part in parts]).double().numpy()
        if np.linalg.norm(found - expected) <= MARGIN / 2 * self._first.max_grad_norm:
            return loss, found
        out += expected
        return None, 0.0
