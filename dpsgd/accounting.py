"""From what was released to epsilon.

The mathematics is dp-accounting's. Neighbouring data sets: one unit is replaced by one with zero
gradient, whose numbers are those of add-or-remove-one under Poisson sampling. Reported is the
smaller of two upper bounds:

* RDP, the moments accountant (Mironov, Talwar and Zhang, "Renyi differential privacy of the sampled
  Gaussian mechanism", 2019): fast, valid for any number of steps;
* PLD, the privacy loss distribution (Doroshenko et al., "Connect the dots", 2022): tight. Its
  interval is quartered until epsilon moves by less than 0.1%; it is asked at delta - T 2^-52,
  because that is what its Fourier transforms err, and not where this takes over 1% of delta. Beside
  it RDP is asked on few orders only, in half the time.

The guarantee is computational and the Gaussians are drawn from 63-bit uniforms, so the real
distribution is within `imprecision` total variation of the accounted one, which costs
(1 + e^epsilon) imprecision of delta. Sampling is exact and costs nothing.

The library accepts nonsense (NaN noise gives epsilon 0), so everything is validated here first, and
an answer that is not a number above zero is a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from dpsgd.streams import IMPRECISION_PER_GAUSSIAN

if TYPE_CHECKING:
    from dp_accounting import DpEvent

COARSEST_INTERVAL = 1.6e-3
FINEST_INTERVAL = 1e-6
MAX_PLD_POINTS = 2**22
MAX_PLD_EPSILON = 50.0
MAX_PLD_MECHANISMS = 8
NEGLIGIBLE = 1e-4  # of delta
LIVE_ORDERS = (*range(2, 21), 24, 28, 32, 40, 48, 64, 96, 128, 256)
FEW_ORDERS = (*LIVE_ORDERS, 512, 1024)  # these two are for tiny epsilons


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Releases of a Poisson-sampled Gaussian sum, all with the same public numbers."""

    sample_rate: float
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.sample_rate <= 1:
            raise ValueError(f"sample_rate must be in [0, 1], got {self.sample_rate}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError(
                f"noise_multiplier must be finite and at least 0, got {self.noise_multiplier}"
            )
        if self.count < 0:
            raise ValueError(f"count must be at least 0, got {self.count}")


def imprecision(world_size: int, num_params: int, steps: int) -> float:
    """Total variation between the noise that is drawn and true Gaussians."""
    return world_size * num_params * steps * IMPRECISION_PER_GAUSSIAN


def epsilon(
    steps: Sequence[Steps], delta: float, imprecision: float = 0.0, at_most: float | None = None
) -> float:
    """An upper bound on epsilon of all `steps` together; infinity if none can be proven.

    `at_most` is a value that is expected to hold; it makes the price of imprecision smaller.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    steps = [s for s in steps if s.count > 0 and s.sample_rate > 0]
    if not steps:
        return 0.0
    if any(s.noise_multiplier == 0 for s in steps):
        return math.inf
    guess = rdp_epsilon(steps, delta / 2, FEW_ORDERS) if at_most is None else at_most
    left = delta_left(delta, guess, imprecision)
    if left is None or (at_most is None and left < (1 - NEGLIGIBLE) * delta):
        guess = bound(steps, delta / 2)[0]  # nearer, so imprecision costs less
    for _ in range(4):
        left = delta_left(delta, guess, imprecision)
        if left is None:
            break
        found, _ = bound(steps, left)
        if found <= guess:
            return found
        guess = found
    return math.inf


def delta_left(delta: float, epsilon: float, imprecision: float) -> float | None:
    """What of delta remains for the mechanism; None if less than half of it."""
    if epsilon > 700:  # e^epsilon is not a float64
        return None
    left = delta - (1 + math.exp(epsilon)) * imprecision
    return left if left >= delta / 2 else None


def bound(
    steps: Sequence[Steps], delta: float, interval: float | None = None
) -> tuple[float, float]:
    """The smaller of RDP and PLD, and an interval at which PLD is within 0.1% of its limit.

    With `interval` PLD is computed at that interval, without one it is refined until it settles.
    """
    rdp = rdp_epsilon(steps, delta, FEW_ORDERS)
    if not rdp <= MAX_PLD_EPSILON:
        rdp = rdp_epsilon(steps, delta)
    error = sum(s.count for s in steps) * 2.0**-52
    widest = max(1 / (2 * s.noise_multiplier**2) + 8 / s.noise_multiplier for s in steps)
    start = max(interval or COARSEST_INTERVAL, widest / MAX_PLD_POINTS)
    if (
        not rdp <= MAX_PLD_EPSILON
        or start > COARSEST_INTERVAL
        or error > 0.01 * delta
        or len(steps) > MAX_PLD_MECHANISMS
    ):
        return rdp_epsilon(steps, delta), start
    found = _pld_epsilon(tuple(steps), delta - error, start)
    if interval is None:
        while start / 4 >= FINEST_INTERVAL and max(widest, rdp) / (start / 4) <= MAX_PLD_POINTS:
            start /= 4
            before, found = found, min(found, _pld_epsilon(tuple(steps), delta - error, start))
            if before - found <= 1e-3 * found:
                return min(rdp, found), 4 * start
    return min(rdp, found), start


def rdp_epsilon(
    steps: Sequence[Steps], delta: float, orders: Sequence[float] | None = None
) -> float:
    """Epsilon by Renyi differential privacy alone."""
    return _rdp_epsilon(tuple(steps), delta, None if orders is None else tuple(orders))


@lru_cache(64)
def _rdp_epsilon(steps: tuple[Steps, ...], delta: float, orders: tuple[float, ...] | None) -> float:
    from dp_accounting import rdp

    _silence()
    accountant = rdp.RdpAccountant(orders)
    for one in steps:
        accountant.compose(_event(one), one.count)
    return _checked(accountant.get_epsilon(delta))


@lru_cache(64)
def _pld_epsilon(steps: tuple[Steps, ...], delta: float, interval: float) -> float:
    from dp_accounting import pld

    _silence()
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    for one in steps:
        accountant.compose(_event(one), one.count)
    return _checked(accountant.get_epsilon(delta))


def _event(one: Steps) -> DpEvent:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(one.noise_multiplier)
    return dp_accounting.PoissonSampledDpEvent(one.sample_rate, gaussian)


def _checked(epsilon: float) -> float:
    """A refusal for anything that cannot be the epsilon of a release that touched data."""
    return float(epsilon) if epsilon > 0 and math.isfinite(epsilon) else math.inf


@cache
def _silence() -> None:
    """dp-accounting logs remarks on ordinary input through absl; our stderr is for our users."""
    from absl import logging

    logging.set_verbosity(logging.FATAL)


class LiveEpsilon:
    """Epsilon after the first n steps of a run, by RDP on few orders: a few milliseconds a call.

    Never above the epsilon of the whole run, which bounds that of every beginning of it. None for a
    run whose epsilon is not finite.
    """

    def __init__(self, steps: Steps, epsilon: float, delta: float, imprecision: float) -> None:
        self._steps = steps
        self._epsilon = epsilon
        self._delta = delta_left(delta, epsilon, imprecision)

    def __call__(self, count: int) -> float | None:
        """An upper bound after `count` steps."""
        if self._delta is None:
            return None
        found = rdp_epsilon([replace(self._steps, count=count)], self._delta, LIVE_ORDERS)
        return min(self._epsilon, found)
