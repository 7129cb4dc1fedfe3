"""Everything that is decided before the first step: public numbers, equal on all ranks."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dpsgd import accounting, models, release
from dpsgd.calibration import calibrate
from dpsgd.config import Config
from dpsgd.data import Dataset
from dpsgd.errors import PrivacyError


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The release that numbers of the spec were read off; `id` is its name in the ledger."""

    id: str
    steps: accounting.Steps
    imprecision: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """The public numbers of one training."""

    id: str
    seed: int
    model: models.Model
    num_examples: int
    unit: str
    sample_rate: float
    steps: int
    expected_batch_size: float
    noise_multiplier: float  # of the model, wherever the noise is added
    epsilon: float  # of the model, planned; infinite for a run that is not private
    delta: float
    imprecision_per_step: float
    rho: float
    grid: release.Grid
    ledger: Path
    world_size: int
    private: bool
    clipped: bool
    fitted: Fitted | None = None

    @property
    def accounted(self) -> accounting.Steps:
        """What accounting has to know about all steps."""
        return accounting.Steps(
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            count=self.steps,
        )

    @property
    def imprecision(self) -> float:
        """Distance of all the noise of the run from true Gaussians, in total variation."""
        return self.imprecision_per_step * self.steps


def plan_run(
    config: Config, dataset: Dataset, model: models.Model, rho: float, world_size: int
) -> Run:
    """Resolve options against the data set and calibrate the noise. For rank 0 alone.

    Raises ConfigError for options that do not fit, PrivacyError if the budget cannot be reached.
    """
    sample_rate = config.resolved_sample_rate(dataset.num_examples)
    steps = config.resolved_steps(dataset.num_examples)
    expected_batch_size = sample_rate * dataset.num_examples
    adders = release.adders(config.noise, world_size)
    per_step = accounting.imprecision(adders, model.num_params, 1)
    sigma, epsilon = _noise(config, sample_rate, steps, per_step * steps, world_size)
    if config.wire == release.FLOATS:
        grid = release.float_grid(
            noise=config.noise,
            max_grad_norm=0.0 if config.no_privacy else config.max_grad_norm,
            rho=rho,
            noise_multiplier=sigma,
            world_size=world_size,
        )
    elif sigma == 0:
        grid = release.plain_grid(world_size)
    else:
        grid = release.private_grid(
            wire=config.wire,
            noise=config.noise,
            max_grad_norm=config.max_grad_norm,
            rho=rho,
            noise_multiplier=sigma,
            num_params=model.num_params,
            expected_batch_size=expected_batch_size,
            world_size=world_size,
        )
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    seed = config.insecure_seed
    return Run(
        id=f"{now}-{os.urandom(4).hex()}",
        seed=int.from_bytes(os.urandom(8), "big") if seed is None else seed,
        model=model,
        num_examples=dataset.num_examples,
        unit=dataset.unit,
        sample_rate=sample_rate,
        steps=steps,
        expected_batch_size=expected_batch_size,
        noise_multiplier=sigma,
        epsilon=epsilon if config.private else math.inf,
        delta=config.delta,
        imprecision_per_step=per_step,
        rho=rho,
        grid=grid,
        ledger=config.ledger_of(dataset.path),
        world_size=world_size,
        private=config.private,
        clipped=not config.no_privacy,
        fitted=_fitted(dataset),
    )


def _fitted(dataset: Dataset) -> Fitted | None:
    """What the manifest says about numbers of the spec that were fitted to the data."""
    found = dataset.statistics
    if found is None:
        return None
    try:
        steps = accounting.Steps(
            sample_rate=1.0, noise_multiplier=float(found["noise_multiplier"]), count=1
        )
        return Fitted(id=str(found["run"]), steps=steps, imprecision=float(found["imprecision"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PrivacyError(
            f"data set {dataset.path}: manifest.json must say what fitted numbers cost ({error}); "
            f"make it again with python -m preprocess"
        ) from None


def _noise(
    config: Config, sample_rate: float, steps: int, imprecision: float, world_size: int
) -> tuple[float, float]:
    """Noise multiplier of the model, and the epsilon that it is planned to give.

    Under `local` noise the options are about one rank's message; the model has the noise of all.
    """
    if config.no_privacy:
        return 0.0, math.inf
    target = config.resolved_epsilon()
    if target is None and not config.private:  # what nobody may claim need not be computed
        factor = math.sqrt(world_size) if config.noise == "local" else 1.0
        return factor * (config.noise_multiplier or 0.0), math.inf
    if target is not None:
        sigma = calibrate(target, sample_rate, steps, config.delta, imprecision)
        epsilon = target
    else:
        sigma = config.noise_multiplier or 0.0
        one = accounting.Steps(sample_rate=sample_rate, noise_multiplier=sigma, count=steps)
        epsilon = accounting.epsilon([one], config.delta, imprecision)
        if math.isinf(epsilon):
            fact, cure = _why_not(one, config.delta)
            raise PrivacyError(
                f"noise_multiplier {sigma:g} gives {fact} at delta {config.delta:g} after {steps} "
                f"steps; take {cure}"
            )
    if config.noise == "local" and world_size > 1:
        sigma *= math.sqrt(world_size)
        one = accounting.Steps(sample_rate=sample_rate, noise_multiplier=sigma, count=steps)
        found = accounting.epsilon([one], config.delta, imprecision, epsilon)
        epsilon = min(found, epsilon)  # more noise never costs more
    return sigma, epsilon


def _why_not(one: accounting.Steps, delta: float) -> tuple[str, str]:
    """What stands in the way of an epsilon, and what would help."""
    more_noise = "a larger one, fewer steps or a larger delta"
    found = accounting.rdp_epsilon([one], delta)
    if found <= accounting.MAX_PLD_EPSILON:
        fact = f"an epsilon of about {found:.3g}, which the noise generator cannot certify"
        return fact, more_noise
    if one.noise_multiplier > 1:
        return "an epsilon too small to be computed", "a smaller one"
    return "no epsilon that can be proven", more_noise
