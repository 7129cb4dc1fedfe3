"""Fused: forward, backward, norms and the clipped sum of a dense network, without autograd.

With a_l what goes into linear layer l, a 1 for the bias at its end, and J_l the derivative of the
logit by what comes out, the gradient of one example is, with r = sigmoid(logit) - label,

    of layer l                       r J_l a_l^T
    norm^2                           r^2 times the sum over layers of |J_l|^2 |a_l|^2
    clipped sum over the examples    sum of s_i J_l,i a_l,i^T      s_i = r_i min(1, C / norm_i)

so that nothing per example is ever built. All terms of the norm are positive, so it cannot cancel.
Source: Goodfellow, "Efficient per-example gradient computations" (2015); the clipped sum as one
product is the book-keeping of Bu, Wang, Zha and Karypis, "Differentially private optimization on
large model at small cost" (2023).

Rounding. Sums are those of `dpsgd.products`, which gives `rho`. Norms are rounded too, so C is
shrunk by more than they can be off. Examples with a norm beyond 1e12, or none, are done again, one
by one in float64.

A batch is worked on in chunks from beginning to end, so that what belongs to a chunk stays in the
cache. Each example is a column: the values of a neuron are then neighbours, and numpy squares and
adds them, or multiplies them by a factor of each example, twice as fast as with examples in rows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsgd.errors import ConfigError
from dpsgd.models import Dense, Model
from dpsgd.products import RHO, UNIT, Products, even_blocks

CHUNK_ROWS = 2048
HUGE_NORM = 1e12
VECTORS = 5  # with a number for each column

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Floats = NDArray[Any]
"""float32 or float64."""


def build(model: Model, max_grad_norm: float) -> Fused:
    """The engine for one model. Raises ConfigError for models that are not dense."""
    if not isinstance(model, Dense):
        raise ConfigError(
            f"engine fused is for dense models (logistic, mlp), got {model.name}; use bookkeeping"
        )
    return Fused(model, max_grad_norm)


class Fused:
    """See the module and the guarantees of `dpsgd.engines`."""

    rho = RHO

    def __init__(self, model: Dense, max_grad_norm: float) -> None:
        self._layers = model.layers
        widest = max(layer.inputs + layer.outputs for layer in self._layers)
        shrunk = max_grad_norm * (1 - (widest + len(self._layers) + 16) * UNIT)
        self._pass = _Pass(model, shrunk, HUGE_NORM, np.float32)
        self._careful = _Pass(model, shrunk, sys.float_info.max, np.float64)
        self._anew = True  # nothing has been added yet

    def clipped_sum(self, params: F32, features: F32, labels: F32, out: F64) -> None:
        """Write the clipped sum of the batch to `out` [num_params]."""
        for _ in self.stages(params, features, labels, out):
            pass

    def stages(self, params: F32, features: F32, labels: F32, out: F64) -> Iterator[slice]:
        """The same, a layer at a time, the last one first."""
        self._anew = True
        if not len(labels):
            out[:] = 0
        self._pass.load(params)
        last = max(0, len(labels) - 1) // CHUNK_ROWS * CHUNK_ROWS
        for first in range(0, last, CHUNK_ROWS):
            rows = slice(first, first + CHUNK_ROWS)
            for _ in self._chunk(params, features[rows], labels[rows], out):
                pass
            self._anew = False
        yield from self._chunk(params, features[last:], labels[last:], out)

    def _chunk(self, params: F32, features: F32, labels: F32, out: F64) -> Iterator[slice]:
        """Add the clipped sum of a few rows, a layer at a time."""
        if len(labels):
            with np.errstate(over="ignore", invalid="ignore"):
                self._forward_backward(features, labels)
                self._clipped(params, features, labels, out)
        for number in range(len(self._layers) - 1, -1, -1):
            if len(labels):
                self._add(self._pass, number, out)
            yield slice(self._layers[number].weight.start, self._layers[number].bias.stop)

    def _forward_backward(self, features: F32, labels: F32) -> None:
        self._pass.forward_backward(features, labels)

    def _clipped(self, params: F32, features: F32, labels: F32, out: F64) -> None:
        """Factors for all rows; rows that float32 cannot measure are added to `out` already."""
        unmeasured = self._pass.clip()
        if not len(unmeasured):
            return
        if self._anew:
            self._anew = False
            out[:] = 0
        careful = self._careful
        careful.load(params)
        for row in unmeasured:
            careful.forward_backward(features[row : row + 1], labels[row : row + 1])
            if not len(careful.clip()):  # else its gradient is not finite, and counts as zero
                for number in range(len(self._layers)):
                    self._add(careful, number, out)

    def _add(self, done: _Pass, number: int, out: F64) -> None:
        layer = self._layers[number]
        weight, bias = out[layer.weight].reshape(layer.outputs, -1), out[layer.bias]
        done.add_sum(number, weight, bias, self._anew)


class _Pass:
    """Forward, backward and sums of some rows at once, in one type of float.

    Columns beyond the rows, up to blocks of the same length, are zeros with factor 0.
    """

    _now: _Arrays  # of the rows of the last forward pass

    def __init__(
        self,
        model: Dense,
        max_grad_norm: float,
        huge_norm: float,
        dtype: type[np.floating[Any]],
    ) -> None:
        self._relu = model.activation == "relu"
        self._scales = [model.scale(width) for width in model.hidden]
        self._places = [(layer.weight, layer.bias) for layer in model.layers]
        self._weights = [np.empty((one.outputs, one.inputs + 1), dtype) for one in model.layers]
        self._clips = not math.isinf(max_grad_norm)
        self._max_grad_norm = np.array(max_grad_norm if self._clips else 0, dtype)
        self._huge_norm = huge_norm
        self._tiny = float(np.finfo(dtype).tiny)  # what is smaller may become zero
        self._half, self._one, self._zero = (np.array(value, dtype) for value in (0.5, 1, 0))
        self._products = Products(dtype)
        self._memory = _Memory(self._weights, 0)
        self._made: dict[tuple[int, int], _Arrays] = {}

    def load(self, params: F32) -> None:
        """Take over the parameters."""
        for weight, (place, bias) in zip(self._weights, self._places, strict=True):
            weight[:, :-1] = params[place].reshape(len(weight), -1)
            weight[:, -1] = params[bias]

    def forward_backward(self, features: F32, labels: F32) -> None:
        """Fill the arrays of this many rows."""
        rows, last = len(labels), len(self._weights) - 1
        self._rows, self._now = rows, self._arrays(rows)
        now = self._now
        for inputs in now.inputs:
            inputs[-1] = 1
        now.inputs[0][:-1, :rows] = features.T
        now.inputs[0][:-1, rows:] = 0
        for number, scale in enumerate(self._scales):
            hidden = now.inputs[number + 1][:-1]
            np.matmul(self._weights[number], now.inputs[number], out=hidden)
            if self._relu:
                np.maximum(hidden, now.zeros, out=hidden)  # with a scalar: four times slower
            else:
                np.tanh(hidden, out=hidden)
                if scale != 1:
                    hidden *= scale
        residuals = np.matmul(self._weights[last], now.inputs[last], out=now.residuals[None])[0]
        residuals *= self._half
        np.tanh(residuals, out=residuals)
        residuals += self._one
        residuals *= self._half  # sigmoid
        residuals[:rows] -= labels
        for number in range(last - 1, -1, -1):
            above, slopes = self._weights[number + 1][:, :-1].T, self._slopes(number)
            if number == last - 1:
                np.multiply(slopes, above, out=now.jacobians[number])
            else:
                np.matmul(above, now.jacobians[number + 1], out=now.jacobians[number])
                now.jacobians[number] *= slopes

    def clip(self) -> NDArray[np.int64]:
        """Find the factors; rows whose norm is huge, or not a number, are blanked and returned."""
        now = self._now
        unmeasured = np.empty(0, np.int64)
        factors = now.factors
        if self._clips or not self._is_finite():
            norms = self._norms()
            if not norms.max() <= self._huge_norm:
                unmeasured = np.flatnonzero(~(norms <= self._huge_norm))
                for array in (*now.jacobians, *(inputs[:-1] for inputs in now.inputs)):
                    array[:, unmeasured] = 0  # as well as the factor: 0 times NaN is NaN
                norms[unmeasured] = now.residuals[unmeasured] = 0
                unmeasured = unmeasured[unmeasured < self._rows]
        if self._clips:
            np.maximum(norms, self._max_grad_norm, out=norms)
            np.divide(self._max_grad_norm, norms, out=factors)
            factors *= now.residuals
        else:
            np.copyto(factors, now.residuals)
        factors[self._rows :] = 0
        return unmeasured

    def add_sum(self, number: int, out: F64, bias: F64, anew: bool) -> None:
        """Add the clipped sum of a layer to `out` [outputs, inputs] and `bias` [outputs]; once.

        With `anew` write it there.
        """
        if self._clips:  # nothing can overflow
            self._add_sum(number, out, bias, anew)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverged
                self._add_sum(number, out, bias, anew)

    def _add_sum(self, number: int, out: F64, bias: F64, anew: bool) -> None:
        now = self._now
        if number < len(now.jacobians):
            inputs, jacobians = now.inputs[number], now.jacobians[number]
            narrower = inputs if len(inputs) < len(jacobians) else jacobians
            narrower *= now.factors
        self._products.add_blocks(*now.blocks[number], out, bias, anew=anew)

    def _slopes(self, number: int) -> Floats:
        """The derivative of the activation of a hidden layer, from its value."""
        now, scale = self._now, self._scales[number]
        hidden, slopes = now.inputs[number + 1][:-1], now.slopes[number]
        if self._relu:
            return np.greater(hidden, self._zero, out=now.positive[number])
        np.multiply(hidden, hidden, out=slopes)
        if scale != 1:
            slopes *= -1 / scale  # d (scale tanh) = scale (1 - tanh^2)
            slopes += scale
            return slopes
        return np.subtract(self._one, slopes, out=slopes)

    def _norms(self) -> Floats:
        """Of the gradients of all columns; rounded, and what underflows in a square added."""
        now = self._now
        norms = _squares(now.inputs[-1], now.norms)
        for inputs, jacobians in zip(now.inputs[:-1], now.jacobians, strict=True):
            product = _squares(jacobians, now.squares[0])
            product += len(jacobians) * self._tiny
            product *= _squares(inputs, now.squares[1])
            norms += product
        np.sqrt(norms, out=norms)
        norms *= np.abs(now.residuals, out=now.factors)
        return norms

    def _is_finite(self) -> bool:
        """Whether all gradients surely are."""
        now = self._now
        return all(
            math.isfinite(np.vdot(array, array))
            for array in (*now.inputs, *now.jacobians, now.residuals)
        )

    def _arrays(self, rows: int) -> _Arrays:
        """Arrays for so many rows, in memory that all sizes share."""
        blocks, length = even_blocks(rows)
        found = self._made.get((blocks, length))
        if found is None:
            columns = blocks * length
            if columns > self._memory.columns:
                most = max(columns, min(CHUNK_ROWS, 2 * self._memory.columns))
                self._made.clear()
                self._memory = _Memory(self._weights, most)
            found = _Arrays(self._weights, blocks, length, self._memory)
            self._made[blocks, length] = found
        return found


class _Memory:
    """For the arrays of up to so many columns."""

    def __init__(self, weights: list[Floats], columns: int) -> None:
        dtype = weights[0].dtype
        hidden = [len(weight) for weight in weights[:-1]]
        tallest = max(hidden, default=0)
        heights = [weight.shape[1] for weight in weights] + hidden + [tallest, *[1] * VECTORS]
        self.columns = columns
        self.floats = np.empty(sum(heights) * columns, dtype)
        self.zeros = np.zeros(columns, dtype)
        self.booleans = np.empty(tallest * columns, np.bool_)


class _Arrays:
    """What belongs to `blocks` times `length` columns, in order of the layers."""

    def __init__(self, weights: list[Floats], blocks: int, length: int, memory: _Memory) -> None:
        columns = blocks * length
        taken = 0

        def take(height: int) -> Floats:
            nonlocal taken
            first, taken = taken, taken + height * columns
            return memory.floats[first:taken].reshape(height, columns)

        hidden = [len(weight) for weight in weights[:-1]]
        slopes = take(max(hidden, default=0))
        self.inputs = [take(weight.shape[1]) for weight in weights]
        self.jacobians = [take(height) for height in hidden]
        self.slopes = [slopes[:height] for height in hidden]
        self.zeros = memory.zeros[:columns]
        self.positive = [
            memory.booleans[: height * columns].reshape(height, columns) for height in hidden
        ]
        vectors = [take(1)[0] for _ in range(VECTORS)]
        self.residuals, self.factors, self.norms, *self.squares = vectors
        self.blocks = [  # [blocks, outputs, length] and [blocks, length, inputs + 1]
            (
                outer.reshape(-1, blocks, length).transpose(1, 0, 2),
                inputs.reshape(-1, blocks, length).transpose(1, 2, 0),
            )
            for outer, inputs in zip([*self.jacobians, self.factors], self.inputs, strict=True)
        ]


def _squares(columns: Floats, out: Floats) -> Floats:
    """Squared norm of every column, off by at most (height + 1) 2^-24 of it in float32."""
    found: Floats = np.einsum("ij,ij->j", columns, columns, out=out)
    return found
