"""Optimizers and weight averaging on flat float32 buffers, in place.

Elementwise arithmetic only, so every rank computes the same bits from the same sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Optimizer(Protocol):
    """Changes parameters along a gradient mean; all arrays are [num_params]."""

    def step(self, params: F32, grad_mean: F32) -> None:
        """Update `params` in place."""


class Sgd:
    """params -= learning_rate * grad_mean."""

    def __init__(self, num_params: int, learning_rate: float) -> None:
        self._learning_rate = np.float32(learning_rate)

    def step(self, params: F32, grad_mean: F32) -> None:
        """Update `params` in place."""
        params -= self._learning_rate * grad_mean


class Momentum:
    """Heavy ball with factor 0.9 (Polyak, 1964)."""

    def __init__(self, num_params: int, learning_rate: float) -> None:
        self._learning_rate = np.float32(learning_rate)
        self._velocity = np.zeros(num_params, np.float32)

    def step(self, params: F32, grad_mean: F32) -> None:
        """Update `params` in place."""
        self._velocity *= np.float32(0.9)
        self._velocity += grad_mean
        params -= self._learning_rate * self._velocity


class Adam:
    """Adam with beta 0.9 and 0.999, eps 1e-8 (Kingma and Ba, 2015, algorithm 1)."""

    def __init__(self, num_params: int, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._first = np.zeros(num_params, np.float32)
        self._second = np.zeros(num_params, np.float32)
        self._steps = 0

    def step(self, params: F32, grad_mean: F32) -> None:
        """Update `params` in place."""
        self._steps += 1
        self._first += np.float32(0.1) * (grad_mean - self._first)
        self._second += np.float32(0.001) * (grad_mean * grad_mean - self._second)
        scale = self._learning_rate / (1 - 0.9**self._steps)
        root = np.sqrt(self._second / np.float32(1 - 0.999**self._steps))
        root += np.float32(1e-8)
        params -= np.float32(scale) * self._first / root


OPTIMIZERS: dict[str, Callable[[int, float], Optimizer]] = {
    "adam": Adam,
    "momentum": Momentum,
    "sgd": Sgd,
}


def build(name: str, num_params: int, learning_rate: float) -> Optimizer:
    """The optimizer `name`."""
    return OPTIMIZERS[name](num_params, learning_rate)


class Average:
    """Exponential average of the weights: average <- decay * average + (1 - decay) * params."""

    def __init__(self, params: F32, decay: float) -> None:
        self.params = params.copy()
        self._decay = np.float32(decay)
        self._rest = np.float32(1 - decay)

    def update(self, params: F32) -> None:
        """Take in the weights after a step."""
        self.params *= self._decay
        self.params += self._rest * params
