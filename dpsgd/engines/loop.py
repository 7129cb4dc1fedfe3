"""Loop: one example at a time through autograd, in float64. The reference for all engines.

This is the microbatch method of Abadi et al., "Deep learning with differential privacy" (2016),
algorithm 1, taken literally: gradient, norm, clip, add. It shares no formula with the fast engines.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from dpsgd.models import Model, layer_scale

MAX_ROWS = 2**20
"""Rows of one batch for which the rounding of float64 sums stays within rho."""


def build(model: Model, max_grad_norm: float) -> Loop:
    """The engine for one model."""
    return Loop(model, max_grad_norm)


class Loop:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = 2.0 * MAX_ROWS**2 * 2.0**-53

    def __init__(self, model: Model, max_grad_norm: float) -> None:
        self._layers = model.layers
        self._max_grad_norm = max_grad_norm

    def clipped_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[np.float32],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        if len(features) > MAX_ROWS:
            raise ValueError(f"batch must have at most {MAX_ROWS} rows, got {len(features)}")
        out[:] = 0
        flat = torch.tensor(params, dtype=torch.float64, requires_grad=True)
        for x, y in zip(features, labels, strict=True):
            loss = self._loss(flat, torch.tensor(x, dtype=torch.float64), float(y))
            (gradient,) = torch.autograd.grad(loss, flat)
            norm = float(gradient.norm())
            if math.isfinite(norm):
                clip = min(1.0, self._max_grad_norm / norm) if norm > 0 else 1.0
                out += gradient.numpy() * clip

    def _loss(self, flat: torch.Tensor, x: torch.Tensor, y: float) -> torch.Tensor:
        *hidden, last = self._layers
        for layer in hidden:
            weight = flat[layer.weight].reshape(layer.inputs, layer.outputs)
            x = layer_scale(layer.outputs) * torch.tanh(x @ weight + flat[layer.bias])
        logit = x @ flat[last.weight] + flat[last.bias][0]
        return binary_cross_entropy_with_logits(logit, torch.tensor(y, dtype=torch.float64))
