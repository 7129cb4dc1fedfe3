"""From epsilon to the smallest noise that reaches it."""

from __future__ import annotations

import math
from collections.abc import Callable

from dpsgd.accounting import COARSEST_INTERVAL, FEW_ORDERS, Steps, bound, delta_left, rdp_epsilon
from dpsgd.errors import PrivacyError

MIN_NOISE_MULTIPLIER = 1e-3
MAX_NOISE_MULTIPLIER = 1e5
SLACK = 5e-4  # of epsilon that may be left over, and what its logarithm may be off
MOST_SECANTS = 10


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

    def coarse(sigma: float) -> float:
        return reached(sigma, min(16 * interval, COARSEST_INTERVAL))[0]

    def fine(sigma: float) -> float:
        return reached(sigma, interval)[0]

    def by_rdp(sigma: float) -> float:
        return rdp_epsilon([_steps(sample_rate, sigma, count)], left, FEW_ORDERS)

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
    slope = -1.0  # of much noise, where epsilon is as 1 / sigma; with less it is steeper
    if 0 < (ratio := by_rdp(1.01 * high) / by_rdp(high)) < 1:
        slope = min(slope, math.log(ratio) / math.log(1.01))
    near, slope = _by_secants(coarse, target, high, slope)
    sigma, _ = _by_secants(fine, target, near, slope)
    if fine(sigma) <= target:
        return sigma
    try:
        return _smallest(fine, target, sigma)
    except PrivacyError:  # the intervals are too wide for an epsilon this small
        return high


def _by_secants(
    reached: Callable[[float], float], target: float, sigma: float, slope: float
) -> tuple[float, float]:
    """From `sigma` to one that gives the target or up to SLACK less, if all goes well.

    Newton's method in log sigma and log epsilon, which is nearly a straight line. Begins with a
    slope, and gives the last one.
    """
    excess = math.log(reached(sigma) / target)
    for _ in range(MOST_SECANTS):
        if -SLACK <= excess <= 0 or not math.isfinite(excess):
            break
        step = max(-1.0, min(1.0, (-SLACK / 2 - excess) / slope))
        sigma = max(MIN_NOISE_MULTIPLIER, min(MAX_NOISE_MULTIPLIER, sigma * math.exp(step)))
        before, excess = excess, math.log(reached(sigma) / target)
        if abs(step) > SLACK:  # else it is of the size of what epsilon is rounded to
            slope = min((excess - before) / step, -SLACK)
    return sigma, slope


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
