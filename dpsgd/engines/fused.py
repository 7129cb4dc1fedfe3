"""Fused: forward, backward, norms and the clipped sum of a dense network, without autograd.

With activations a_l going into a linear layer and output gradients g_l coming back, the gradient of
one example is the outer product of g_l and a_l, so nothing per example is ever built:

    norm^2 of example i   =  sum over layers of |g_l,i|^2 (|a_l,i|^2 + 1)       the 1 is the bias
    clipped sum of layer  =  (c g_l)^T a_l        with c_i = min(1, C / norm_i)

All terms of the norm are positive, so it cannot cancel. Source: Goodfellow, "Efficient per-example
gradient computations" (2015); the clipped sum as one product is the book-keeping of
Bu, Wang, Zha and Karypis, "Differentially private optimization on large model at small cost"
(2023).

Rounding. Products are summed in float32 in blocks of at most 128 rows and the blocks in float64: a
block of n rows can be off by n (n + 2) 2^-24 C, and twice that between two neighbouring data sets,
which is `rho`. Norms are rounded too, so C is shrunk by more than they can be off. Rows with a norm
beyond 1e12 are summed one by one in float64.

All intermediate arrays are kept from step to step and grow with the largest batch seen: at these
sizes the page faults of fresh ones cost as much as the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dpsgd.errors import ConfigError
from dpsgd.models import Dense, Layer, Model

BLOCK_ROWS = 128
HUGE_NORM_SQUARED = 1e24

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def build(model: Model, max_grad_norm: float) -> Fused:
    """The engine for one model. Raises ConfigError for models that are not dense."""
    if not isinstance(model, Dense):
        raise ConfigError(
            f"engine fused is for dense models (logistic, mlp), got {model.name}; use bookkeeping"
        )
    return Fused(model, max_grad_norm)


class Fused:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = 2 * BLOCK_ROWS * (BLOCK_ROWS + 2) * 2.0**-24

    def __init__(self, model: Dense, max_grad_norm: float) -> None:
        self._layers = model.layers
        self._activation = model.activation
        self._scales = [np.float32(model.scale(width)) for width in model.hidden]
        widest = max(layer.inputs + layer.outputs for layer in self._layers)
        self._max_grad_norm = max_grad_norm * (1 - (widest + 16) * 2.0**-24)
        self._blocks = [
            np.empty((layer.outputs, layer.inputs), np.float32) for layer in self._layers
        ]
        self._ones = np.ones((1, BLOCK_ROWS), np.float32)
        self._bias_block = np.empty((1, max(layer.outputs for layer in self._layers)), np.float32)
        self._rows = 0
        self._reserve(BLOCK_ROWS)

    @property
    def bytes_per_example(self) -> int:
        """Memory that every further row of a batch takes."""
        return 4 * sum(3 * layer.outputs + layer.inputs for layer in self._layers) + 32

    def clipped_sum(self, params: F32, features: F32, labels: F32, out: F64) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        for _ in self.stages(params, features, labels, out):
            pass

    def stages(self, params: F32, features: F32, labels: F32, out: F64) -> Iterator[slice]:
        """The same, a layer at a time, the last one first."""
        out[:] = 0
        if len(features):
            with np.errstate(over="ignore", invalid="ignore"):
                inputs, gradients = self._weighted(params, features, labels, out)
        for number, layer in reversed([*enumerate(self._layers)]):
            if len(features):
                a, g = inputs[number], gradients[number]
                weight = out[layer.weight].reshape(layer.outputs, layer.inputs)
                self._add_products(a, g, self._blocks[number], weight, out[layer.bias])
            yield slice(layer.weight.start, layer.bias.stop)

    def _weighted(
        self, params: F32, features: F32, labels: F32, out: F64
    ) -> tuple[list[F32], list[F32]]:
        """Inputs and output gradients of every layer, the latter times the clipping factors."""
        if len(features) > self._rows:
            self._reserve(len(features))
        inputs, gradients = self._forward_backward(params, features, labels)
        if math.isinf(self._max_grad_norm) and all(
            np.isfinite(one).all() for one in (features, *gradients)
        ):
            return inputs, gradients
        norms_squared = np.zeros(len(features), np.float32)
        for a, g in zip(inputs, gradients, strict=True):
            a_squared = _squares(a, self._scratch)
            a_squared += 1
            a_squared *= _squares(g, self._scratch)
            norms_squared += a_squared
        careful = ~(norms_squared <= HUGE_NORM_SQUARED)  # huge, infinite or not a number
        if careful.any():
            inputs, gradients = self._take_out(careful, inputs, gradients, out)
            norms_squared[careful] = 0
        if not math.isinf(self._max_grad_norm):
            weights = np.sqrt(norms_squared, out=norms_squared)
            np.maximum(weights, self._max_grad_norm, out=weights)
            np.divide(np.float32(self._max_grad_norm), weights, out=weights)
            for g in gradients:
                g *= weights[:, None]
        return inputs, gradients

    def _forward_backward(
        self, params: F32, features: F32, labels: F32
    ) -> tuple[list[F32], list[F32]]:
        """Inputs [batch, inputs] and output gradients [batch, outputs] of every layer."""
        rows = len(features)
        weights = [params[one.weight].reshape(one.outputs, one.inputs) for one in self._layers]
        inputs = [features]
        for layer, weight, hidden, scale in zip(
            self._layers[:-1], weights[:-1], self._hidden, self._scales, strict=True
        ):
            hidden = np.matmul(inputs[-1], weight.T, out=hidden[:rows])
            hidden += params[layer.bias]
            if self._activation == "relu":
                np.maximum(hidden, np.float32(0), out=hidden)
            else:
                np.tanh(hidden, out=hidden)
            if scale != 1:
                hidden *= scale
            inputs.append(hidden)
        gradient = np.matmul(inputs[-1], weights[-1].T, out=self._gradients[-1][:rows])
        gradient += params[self._layers[-1].bias]
        gradient *= np.float32(0.5)
        np.tanh(gradient, out=gradient)
        gradient *= np.float32(0.5)
        gradient += (np.float32(0.5) - labels)[:, None]  # sigmoid - label
        gradients = [gradient]
        for number in range(len(self._layers) - 2, -1, -1):
            hidden, slope = inputs[number + 1], self._slopes[number][:rows]
            found = self._gradients[number][:rows]
            gradient = np.matmul(gradient, weights[number + 1], out=found)
            gradient *= self._slope(hidden, self._scales[number], slope)
            gradients.append(gradient)
        return inputs, gradients[::-1]

    def _slope(self, hidden: F32, scale: np.float32, out: F32) -> NDArray[np.float32 | np.bool_]:
        """The derivative of the activation, from its value."""
        if self._activation == "relu":
            return np.greater(hidden, np.float32(0), out=out.view(np.bool_)[:, : hidden.shape[1]])
        np.multiply(hidden, hidden, out=out)
        if scale != 1:
            out /= -scale  # d (scale tanh) = scale (1 - tanh^2)
            out += scale
        else:
            np.subtract(np.float32(1), out, out=out)
        return out

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

    def _add_products(self, a: F32, g: F32, block: F32, weight: F64, bias: F64) -> None:
        """weight += g^T a and bias += the sum of g; blocks of rows in float32, added in float64."""
        bias_block = self._bias_block[:, : len(bias)]
        for first in range(0, len(a), BLOCK_ROWS):
            rows = g[first : first + BLOCK_ROWS]
            np.matmul(rows.T, a[first : first + BLOCK_ROWS], out=block)
            weight += block
            np.matmul(self._ones[:, : len(rows)], rows, out=bias_block)
            bias += bias_block[0]

    def _reserve(self, rows: int) -> None:
        """Intermediate arrays for up to `rows` rows; the old ones go first."""
        self._rows = 0  # until all of them are there
        self._hidden, self._slopes, self._gradients = [], [], []
        hidden = [layer.outputs for layer in self._layers[:-1]]
        self._hidden = [np.empty((rows, width), np.float32) for width in hidden]
        self._slopes = [np.empty((rows, width), np.float32) for width in hidden]
        self._gradients = [np.empty((rows, layer.outputs), np.float32) for layer in self._layers]
        widest = max(max(layer.inputs, layer.outputs) for layer in self._layers)
        self._scratch = np.empty(rows * widest, np.float32)
        self._rows = rows


def _squares(rows: F32, scratch: F32) -> F32:
    """Squared norm of every row [batch]."""
    squares = np.multiply(rows, rows, out=scratch[: rows.size].reshape(rows.shape))
    found: F32 = squares @ np.ones(rows.shape[1], np.float32)
    return found


def _add_outer(layer: Layer, a: F64, g: F64, out: F64) -> None:
    out[layer.weight] += np.outer(g, a).ravel()
    out[layer.bias] += g
