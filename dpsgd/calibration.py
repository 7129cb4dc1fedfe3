"""From epsilon to the smallest noise that reaches it."""

from __future__ import annotations

import math
from collections.abc import Callable

from dpsgd.accounting import COARSEST_INTERVAL, FEW_ORDERS, Steps, bound, delta_left, rdp_epsilon
from dpsgd.errors import PrivacyError

MIN_NOISE_MULTIPLIER = 1e-3
MAX_NOISE_MULTIPLIER = 1e5


def calibrate(
    target: float, sample_rate: float, count: int, delta: float, imprecision: float
) -> float:
    """The smallest noise multiplier (within about 0.1%) whose epsilon is at most `target`.

    Raises PrivacyError if there is none.
    """
    left = delta_left(delta, target, imprecision)
    if left is None:
        raise PrivacyError(
            f"epsilon {target:g} cannot be reached at delta {delta:g}: at this epsilon the noise "
            f"generator cannot certify a delta that small; ask for a smaller epsilon, for fewer "
            f"steps, or for a larger delta"
        )

    def reached(sigma: float, interval: float | None = None) -> tuple[float, float]:
        return bound([_steps(sample_rate, sigma, count)], left, interval)

    def by_rdp(sigma: float) -> float:
        return rdp_epsilon([_steps(sample_rate, sigma, count)], left, FEW_ORDERS)

    def coarse(sigma: float) -> float:
        return reached(sigma, min(16 * interval, COARSEST_INTERVAL))[0]

    def fine(sigma: float) -> float:
        return reached(sigma, interval)[0]

    try:
        high = _smallest(by_rdp, target, 1.0)  # where the quick bound is satisfied
    except PrivacyError:
        high = MAX_NOISE_MULTIPLIER
    best, interval = reached(high)
    if best > target:
        raise PrivacyError(
            f"epsilon {target:g} cannot be reached at delta {delta:g} with sample_rate "
            f"{sample_rate:g} and {count} steps: noise_multiplier {high:g} still gives epsilon "
            f"{best:.3g}; ask for a larger epsilon, fewer steps or a smaller sample_rate"
        )
    try:
        return _by_correction(coarse, fine, target, high)
    except PrivacyError:  # the intervals are too wide for an epsilon this small
        return high


def _by_correction(
    coarse: Callable[[float], float], fine: Callable[[float], float], target: float, high: float
) -> float:
    """Search `coarse`, which is quick, and correct by `fine`: their ratio changes slowly."""
    sigma = _smallest(coarse, target, high)
    for _ in range(4):
        aim = target * coarse(sigma) / fine(sigma) * (1 - 2e-4)
        better = _smallest(coarse, aim, high)
        if fine(better) > target:
            return _smallest(fine, target, sigma)
        sigma = better
        if fine(sigma) >= 0.9995 * target:
            break
    return sigma


def _steps(sample_rate: float, sigma: float, count: int) -> Steps:
    return Steps(sample_rate=sample_rate, noise_multiplier=sigma, count=count)


def _smallest(reached: Callable[[float], float], target: float, start: float) -> float:
    """The smallest sigma with reached(sigma) <= target, to 0.01%, searched from `start`.

    Brent's method in log sigma and log epsilon, between which epsilon is nearly a straight line.
    Raises PrivacyError if there is none.
    """
    from scipy.optimize import brentq  # comes with dp-accounting

    def excess(log_sigma: float) -> float:
        return math.log(min(reached(math.exp(log_sigma)), 1e9) / target)

    upper = math.log(start)
    while excess(upper) > 0:
        if upper >= math.log(MAX_NOISE_MULTIPLIER):
            raise PrivacyError(f"no noise multiplier gives epsilon {target:g}")
        upper += 0.5
    while excess(lower := upper - 0.5) <= 0:
        upper = lower
        if upper < math.log(MIN_NOISE_MULTIPLIER):
            return math.exp(upper)
    root = brentq(excess, lower, upper, xtol=5e-5)
    for nudge in range(10):
        if excess(root + nudge * 5e-5) <= 0:
            return math.exp(root + nudge * 5e-5)
    return math.exp(upper)
