"""vmap: all per-example gradients at once, by torch.func (what Opacus calls functorch mode).

The gradients of a block of at most 128 examples are built, measured and summed with their clipping
factors. What is summed is what is measured, so `rho` is the rounding of the sums over a block
alone. Examples that float32 cannot hold go to the engine `loop`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits

from dpsgd.engines.loop import Loop
from dpsgd.flat_module import FlatModule
from dpsgd.models import Model
from dpsgd.products import BLOCK_ROWS, RHO, UNIT
from dpsgd.terms import FLOOR, HUGE_NORM_SQUARED, Each


def build(model: Model, max_grad_norm: float) -> Vmap:
    """The engine for one model."""
    return Vmap(model, max_grad_norm)


class Vmap:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = RHO

    def __init__(self, model: Model, max_grad_norm: float) -> None:
        self._module = FlatModule(model)
        self._reference = Loop(model, max_grad_norm)
        self._max_grad_norm = max_grad_norm
        self._shrunk = max_grad_norm * (1 - 8 * UNIT)  # rounding of roots and quotients
        module = self._module.module
        self._named = {name: p for name, p in module.named_parameters() if p.requires_grad}

        def loss(
            parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
        ) -> torch.Tensor:
            logits = functional_call(module, parameters, (x[None],))
            return binary_cross_entropy_with_logits(logits, y[None], reduction="sum")

        self._gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")

    def clipped_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        out[:] = 0
        self._module.load(params)
        sums = [out[tensor.place] for tensor in self._module.tensors]
        for first in range(0, len(labels), BLOCK_ROWS):
            block = slice(first, first + BLOCK_ROWS)
            self._add(params, features[block], labels[block], sums, out)

    def _add(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        sums: list[NDArray[np.float64]],
        out: NDArray[np.float64],
    ) -> None:
        named = {name: p.detach() for name, p in self._named.items()}
        with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the others
            found = self._gradients(
                named, self._module.inputs(features), self._module.labels(labels)
            )
        term = Each(tuple(self._named.values()), [found[name].detach() for name in self._named])
        with np.errstate(over="ignore", invalid="ignore"):
            norms = term.bounds()[0] + np.float32(FLOOR)
        ordinary = norms <= HUGE_NORM_SQUARED
        if not ordinary.all():
            rest = ~ordinary
            self._reference.add_sum(params, features[rest], labels[rest], out)
            term = term.blanked(ordinary)
            norms[rest] = 0
        weights = np.ones_like(norms)
        if not math.isinf(self._max_grad_norm):
            weights = np.float32(self._shrunk) / np.maximum(
                np.sqrt(norms), np.float32(self._shrunk)
            )
        with np.errstate(over="ignore", invalid="ignore"):  # of a plain run that diverged
            term.add_sum(np.where(ordinary, weights, np.float32(0)), sums)
