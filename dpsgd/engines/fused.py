"""Fused: forward, backward, norms and the clipped sum of a tanh network, without autograd.

With activations a_l going into a linear layer and output gradients g_l coming back, the gradient of
one example is the outer product of a_l and g_l, so nothing per example is ever built:

    norm^2 of example i   =  sum over layers of |g_l,i|^2 (|a_l,i|^2 + 1)       the 1 is the bias
    clipped sum of layer  =  a_l^T (c g_l)        with c_i = min(1, C / norm_i)

All terms of the norm are positive, so it cannot cancel. Source: Goodfellow, "Efficient per-example
gradient computations" (2015); the clipped sum as one product is the book-keeping of
Bu, Wang, Zha and Karypis, "Differentially private optimization on large model at small cost"
(2023).

Rounding. Products are summed in float32 in blocks of at most 128 rows and the blocks in float64: a
block of n rows can be off by n (n + 2) 2^-24 C, and twice that between two neighbouring data sets,
which is `rho`. Norms are rounded too, so C is shrunk by more than they can be off. Rows with a norm
beyond 1e12 are summed one by one in float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpsgd.models import Layer, Model, layer_scale

BLOCK_ROWS = 128
HUGE_NORM_SQUARED = 1e24

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def build(model: Model, max_grad_norm: float) -> Fused:
    """The engine for one model."""
    return Fused(model, max_grad_norm)


class Fused:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = 2 * BLOCK_ROWS * (BLOCK_ROWS + 2) * 2.0**-24

    def __init__(self, model: Model, max_grad_norm: float) -> None:
        self._layers = model.layers
        widest = max(layer.inputs + layer.outputs for layer in self._layers)
        self._max_grad_norm = max_grad_norm * (1 - (widest + 16) * 2.0**-24)
        self._blocks = [
            np.empty((layer.inputs, layer.outputs), np.float32) for layer in self._layers
        ]

    def clipped_sum(self, params: F32, features: F32, labels: F32, out: F64) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        out[:] = 0
        if len(features) == 0:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            inputs, gradients = self._forward_backward(params, features, labels)
            norms_squared = np.zeros(len(features))
            for a, g in zip(inputs, gradients, strict=True):
                norms_squared += _squares(g) * (_squares(a) + 1)
            careful = ~(norms_squared <= HUGE_NORM_SQUARED)  # huge, infinite or not a number
            if careful.any():
                inputs, gradients = self._take_out(careful, inputs, gradients, out)
                norms_squared[careful] = 0
            weights = self._weights(norms_squared).astype(np.float32)[:, None]
            for layer, block, a, g in zip(
                self._layers, self._blocks, inputs, gradients, strict=True
            ):
                g *= weights
                _add_products(a, g, block, out[layer.weight].reshape(block.shape))
                out[layer.bias] += g.sum(axis=0, dtype=np.float64)

    def _forward_backward(
        self, params: F32, features: F32, labels: F32
    ) -> tuple[list[F32], list[F32]]:
        """Inputs [batch, inputs] and output gradients [batch, outputs] of every layer."""
        weights = [params[one.weight].reshape(one.inputs, one.outputs) for one in self._layers]
        inputs = [features]
        for layer, weight in zip(self._layers[:-1], weights[:-1], strict=True):
            hidden = inputs[-1] @ weight
            hidden += params[layer.bias]
            np.tanh(hidden, out=hidden)
            hidden *= layer_scale(layer.outputs)
            inputs.append(hidden)
        logits = inputs[-1] @ weights[-1]
        logits += params[self._layers[-1].bias]
        gradient = 0.5 * np.tanh(0.5 * logits) + (0.5 - labels[:, None])  # sigmoid - label
        gradients = [gradient]
        for layer, weight, hidden in zip(
            self._layers[-2::-1], weights[:0:-1], inputs[:0:-1], strict=True
        ):
            scale = np.float32(layer_scale(layer.outputs))
            slope = scale - hidden * hidden / scale  # d (scale tanh) = scale (1 - tanh^2)
            gradient = gradient @ weight.T
            gradient *= slope
            gradients.append(gradient)
        return inputs, gradients[::-1]

    def _weights(self, norms_squared: F64) -> F64:
        """min(1, C / norm) for each example [batch]."""
        if math.isinf(self._max_grad_norm):
            return np.ones_like(norms_squared)
        return self._max_grad_norm / np.maximum(np.sqrt(norms_squared), self._max_grad_norm)

    def _take_out(
        self, careful: NDArray[np.bool_], inputs: list[F32], gradients: list[F32], out: F64
    ) -> tuple[list[F32], list[F32]]:
        """Sum the marked rows in float64, dropping those that are not finite; blank them.

        Activations and gradients are both replaced, because 0 times NaN is NaN.
        """
        for row in np.flatnonzero(careful):
            pairs = [
                (a[row].astype(np.float64), g[row].astype(np.float64))
                for a, g in zip(inputs, gradients, strict=True)
            ]
            norm = math.sqrt(sum((g @ g) * (a @ a + 1) for a, g in pairs))
            if not math.isfinite(norm):
                continue
            weight = 1.0
            if norm > self._max_grad_norm:
                weight = self._max_grad_norm / norm
            for layer, (a, g) in zip(self._layers, pairs, strict=True):
                _add_outer(layer, a, weight * g, out)
        keep = ~careful[:, None]
        return [np.where(keep, a, 0) for a in inputs], [np.where(keep, g, 0) for g in gradients]


def _squares(rows: F32) -> F64:
    """Squared norm of every row [batch]."""
    squared: F32 = np.einsum("ij,ij->i", rows, rows)
    return squared.astype(np.float64)


def _add_products(a: F32, g: F32, block: F32, out: F64) -> None:
    """out += a^T g, blocks of rows in float32, their sum in float64."""
    for first in range(0, len(a), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        np.matmul(a[rows].T, g[rows], out=block)
        out += block


def _add_outer(layer: Layer, a: F64, g: F64, out: F64) -> None:
    out[layer.weight] += np.outer(a, g).ravel()
    out[layer.bias] += g
