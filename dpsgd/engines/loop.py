"""Loop: one example at a time through autograd, in float64. The reference for all engines.

This is the microbatch method of Abadi et al., "Deep learning with differential privacy" (2016),
algorithm 1, taken literally: gradient, norm, clip, add. It shares no formula with the fast engines.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpsgd.flat_module import FlatModule
from dpsgd.models import Model

MAX_ROWS = 2**20
"""Rows of one batch for which the rounding of float64 sums stays within rho."""


def build(model: Model, max_grad_norm: float) -> Loop:
    """The engine for one model."""
    return Loop(model, max_grad_norm)


class Loop:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = 2.0 * MAX_ROWS**2 * 2.0**-53

    def __init__(self, model: Model, max_grad_norm: float) -> None:
        self.module = FlatModule(model, torch.float64)
        self.max_grad_norm = max_grad_norm

    def clipped_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        out[:] = 0
        self.add_sum(params, features, labels, out)

    @torch.enable_grad()
    def add_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Add the clipped sum of the batch to `out` [num_params]."""
        if len(features) > MAX_ROWS:
            raise ValueError(f"batch must have at most {MAX_ROWS} rows, got {len(features)}")
        module = self.module
        module.load(params)
        inputs, targets = module.inputs(features), module.labels(labels)
        for row in range(len(labels)):
            loss = module.losses(inputs[row : row + 1], targets[row : row + 1]).sum()
            parts = torch.autograd.grad(
                loss, module.parameters, allow_unused=True, materialize_grads=True
            )
            gradient = torch.cat([part.reshape(-1) for part in parts])
            norm = float(gradient.norm())
            if math.isfinite(norm):
                clip = min(1.0, self.max_grad_norm / norm) if norm > 0 else 1.0
                out += gradient.numpy() * clip
