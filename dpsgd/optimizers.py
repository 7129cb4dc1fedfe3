"""Optimizers, learning-rate schedules and weight averaging on flat float32 buffers, in place.

After construction nothing of the size of the parameters is allocated. A step on a small model
costs little more than the calls into numpy, so there are few of them: moments and averages are
kept as plain decayed sums, and their constant factor goes into the one scalar of the update.

    passes over the buffers:  sgd 2   momentum 4   adam 10 (with correction 12)   average 2

Learning rate of step t = 1, ..., T with a warm-up of w steps: the base rate times

    t / (w + 1)            in step t <= w: gradual warm-up (Goyal et al., 2017, section 2.2)
    1                      constant    }  then, with x = (t - w - 1) / (T - w): the first step
    1 - x                  linear      }  after the warm-up has the base rate, and no step has
    (1 + cos(pi x)) / 2    cosine      }  rate zero, since each one was paid for in privacy

The cosine is one period of Loshchilov and Hutter (2017), equation 5, with smallest rate 0.

Guarantees:
    equal gradients give equal bits, since a step is IEEE arithmetic without fused operations;
    an element's update depends on its own gradients and on public constants alone;
    parameters change in place, and nothing of their size is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
OfStep = Callable[[int], float]
"""A function of the step, which is 1, 2, ...: a learning rate, or a factor of one."""

MOMENTUM = 0.9
BETA1, BETA2 = float(np.float32(0.9)), float(np.float32(0.999))  # as in the arrays
EPS = 1e-8
FLOOR = 1e-8
"""gamma' of the bias correction: the default of its authors' code."""


def _scalar(value: float = 0.0) -> F32:
    """A 0-d array: numpy takes it without the conversion that a number needs in every call."""
    return np.array(value, np.float32)


class Optimizer(Protocol):
    """Changes parameters along a gradient mean; all arrays are float32 [num_params]."""

    def step(self, params: F32, grad_mean: F32) -> None:
        """Update `params` in place."""


class Sgd:
    """params -= rate * grad_mean."""

    def __init__(self, num_params: int, rate: OfStep) -> None:
        self._rate = rate
        self._steps = 0
        self._scale = _scalar()
        self._scratch = np.empty(num_params, np.float32)

    def step(self, params: F32, grad_mean: F32) -> None:
        """Update `params` in place."""
        self._steps += 1
        self._scale[()] = self._rate(self._steps)
        np.multiply(grad_mean, self._scale, out=self._scratch)
        params -= self._scratch


class Momentum:
    """velocity <- 0.9 velocity + grad_mean; params -= rate * velocity (Polyak, 1964)."""

    def __init__(self, num_params: int, rate: OfStep) -> None:
        self._sgd = Sgd(num_params, rate)
        self._momentum = _scalar(MOMENTUM)
        self._velocity = np.zeros(num_params, np.float32)

    def step(self, params: F32, grad_mean: F32) -> None:
        """Update `params` in place."""
        self._velocity *= self._momentum
        self._velocity += grad_mean
        self._sgd.step(params, self._velocity)


class Adam:
    """Adam with beta 0.9 and 0.999, eps 1e-8 (Kingma and Ba, 2015, algorithm 1).

    With `noise_std`, that of the gradient mean, the second moment is corrected for the noise (Tang,
    Shpilevskiy and Lecuyer, "DP-AdamBC: Your DP-Adam is actually DP-SGD (unless you apply bias
    correction)", AAAI 2024): independent noise adds its variance to the expectation
    of every square, so the root is taken of max(second - noise_std^2, FLOOR), without eps. Both
    constants are public. It cost accuracy on the tables measured here, and is off by default.
    """

    def __init__(self, num_params: int, rate: OfStep, noise_std: float | None = None) -> None:
        self._rate = rate
        self._steps = 0
        self._first = np.zeros(num_params, np.float32)  # sum of beta^age * gradient
        self._second = np.zeros(num_params, np.float32)  # the same of its square
        self._beta1, self._beta2 = _scalar(BETA1), _scalar(BETA2)
        self._rest_first, self._rest_second = 1.0, 1.0  # beta^steps
        self._scale, self._shift = _scalar(), _scalar()
        self._scratch = np.empty(num_params, np.float32)
        self._variance = None if noise_std is None else _scalar(noise_std**2)
        # An array, since numpy takes the maximum with a scalar one element at a time.
        self._floor = np.full(0 if noise_std is None else num_params, FLOOR, np.float32)

    def step(self, params: F32, grad_mean: F32) -> None:
        """Update `params` in place."""
        self._steps += 1
        self._rest_first *= BETA1  # no power, which may differ between C libraries
        self._rest_second *= BETA2
        scratch = self._scratch
        self._first *= self._beta1
        self._first += grad_mean
        self._second *= self._beta2
        np.multiply(grad_mean, grad_mean, out=scratch)
        self._second += scratch
        to_first = (1 - BETA1) / (1 - self._rest_first)
        to_second = (1 - BETA2) / (1 - self._rest_second)
        if self._variance is None:
            root = math.sqrt(to_second)
            np.sqrt(self._second, out=scratch)
            self._shift[()] = EPS / root
            scratch += self._shift
        else:
            root = 1.0
            self._shift[()] = to_second
            np.multiply(self._second, self._shift, out=scratch)
            scratch -= self._variance
            np.maximum(scratch, self._floor, out=scratch)
            np.sqrt(scratch, out=scratch)
        np.divide(self._first, scratch, out=scratch)
        self._scale[()] = self._rate(self._steps) * to_first / root
        scratch *= self._scale
        params -= scratch


OPTIMIZERS: dict[str, Callable[[int, OfStep], Optimizer]] = {
    "adam": Adam,
    "momentum": Momentum,
    "sgd": Sgd,
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda x: 1.0,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "linear": lambda x: 1 - x,
}
"""The factor at x in [0, 1), the part of the steps after the warm-up that is done."""


def schedule(name: str, warmup: int, steps: int) -> OfStep:
    """The factor of the base rate in steps 1 to `steps`, a function of public constants alone."""
    shape = SCHEDULES[name]

    def factor(step: int) -> float:
        if not 1 <= step <= steps:
            raise ValueError(f"step must be from 1 to {steps}, got {step}")
        if step <= warmup:
            return step / (warmup + 1)
        return shape((step - warmup - 1) / (steps - warmup))

    return factor


def build(
    name: str,
    num_params: int,
    learning_rate: float,
    factor: OfStep = lambda step: 1.0,
    *,
    adam_bias_correction: bool = False,
    noise_std: float = 0.0,
) -> Optimizer:
    """The optimizer `name`, with rate `learning_rate * factor(step)`; `schedule` gives a factor.

    `noise_std` is the public standard deviation of the noise in one element of the gradient mean,
    0 without noise; the bias correction of Adam alone needs it.
    """

    def rate(step: int) -> float:
        return learning_rate * factor(step)

    if adam_bias_correction:
        if name != "adam":
            raise ValueError(f"adam_bias_correction must be used with adam, got {name}")
        return Adam(num_params, rate, noise_std)
    return OPTIMIZERS[name](num_params, rate)


class Average:
    """Exponential average of the weights: average <- decay * average + (1 - decay) * params.

    Kept as average / (1 - decay), which saves a pass in every step. Decay 0 gives the last weights.
    """

    def __init__(self, params: F32, decay: float) -> None:
        self._decay = _scalar(decay)
        self._rest = 1 - self._decay  # of the rounded decay: the weights then sum to one
        self._sum = params / self._rest

    def update(self, params: F32) -> None:
        """Take in the weights after a step."""
        self._sum *= self._decay
        self._sum += params

    @property
    def params(self) -> F32:
        """The average [num_params], a new array."""
        return self._sum * self._rest
