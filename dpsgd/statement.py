"""What may be claimed about a run: as numbers (`privacy.json`) and in words (`privacy.md`)."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

from dpsgd import accounting
from dpsgd.config import Config
from dpsgd.errors import PrivacyError
from dpsgd.ledger import history, merged
from dpsgd.planning import Run
from dpsgd.release import FLOATS

NOT_PRIVATE = "NOT PRIVATE"


def report(config: Config, run: Run) -> dict[str, Any]:
    """The privacy of a finished run, as JSON types; infinity is the string "inf"."""
    epsilon = rank_or_link = None
    fitted = run.fitted
    if run.private:
        epsilon = _model(run)
        rank_or_link = _rank_or_link(config, run)
    return {
        "private": run.private,
        "reason": _reason(config),
        "epsilon": _number(epsilon),
        "delta": run.delta,
        "unit": run.unit,
        "neighbours": f"one {run.unit} replaced by one with zero gradient (zero-out)",
        "noise_multiplier": run.noise_multiplier,
        "max_grad_norm": None if config.no_privacy else config.max_grad_norm,
        "sample_rate": run.sample_rate,
        "sampling": "Poisson",
        "steps": run.steps,
        "num_examples": run.num_examples,
        "expected_batch_size": run.expected_batch_size,
        "noise": config.noise,
        "wire": run.grid.wire,
        "grid_spacing": run.grid.spacing or None,
        "rho": run.rho,
        "sensitivity": run.grid.sensitivity,
        "noise_std": run.grid.total_noise_std,
        "imprecision": run.imprecision,
        "fitted_noise_multiplier": fitted.steps.noise_multiplier if fitted else None,
        "epsilon_rank_or_link": _number(rank_or_link),
        "epsilon_all_runs": _number(_all_runs(run)),
        "accountant": f"dp-accounting {version('dp-accounting')}, the smaller of PLD and RDP",
    }


def paragraph(privacy: dict[str, Any]) -> str:
    """The statement to publish with the model."""
    if not privacy["private"]:
        return (
            f"{NOT_PRIVATE}: {privacy['reason']}. This model carries no privacy guarantee, and all "
            f"runs in the same ledger together have no finite epsilon any more."
        )
    unit = privacy["unit"]
    loose = privacy["delta"] > 1 / privacy["num_examples"]
    warning = (
        f" Beware: delta is larger than 1 / {privacy['num_examples']}, which would even allow to "
        f"publish one {unit} at random."
        if loose
        else ""
    )
    if privacy["epsilon_all_runs"] == "inf":
        together = (
            "together have no finite epsilon at this delta, because one of them was not private "
            "(--no-privacy, --insecure-seed, --wire float32) or they spent too much"
        )
    else:
        together = (
            f"together have epsilon at most {shown(privacy['epsilon_all_runs'])} at the same delta"
        )
    return (
        f"The model is ({shown(privacy['epsilon'])}, {privacy['delta']:g})-differentially private "
        f"for one {unit}: replacing any one training {unit} by one with zero gradient changes the "
        f"probability of any outcome by at most a factor e^epsilon, up to delta.{warning} It was "
        f"trained with {privacy['steps']} steps of DP-SGD on {privacy['num_examples']} {unit}s, "
        f"Poisson sampling at rate {privacy['sample_rate']:g}, gradients clipped to norm "
        f"{privacy['max_grad_norm']:g} and noise multiplier {privacy['noise_multiplier']:.4f}"
        f"{_fitted(privacy)}; "
        f"accounting by {privacy['accountant']}. The guarantee covers the weights, computationally "
        f"(AES-256), for everyone who sees only what is published. {_beside(privacy)} "
        f"All runs in the ledger of this data set {together}. "
        f"Test metrics are exact and not covered; nor are the choice of options, timing, rounding "
        f"inside the float64 arithmetic of the noise generator, a rank that departs from the "
        f"protocol, or restored copies of the ledger."
    )


def _model(run: Run) -> float:
    """Epsilon of the model: of its training, and of the numbers of its spec that were fitted."""
    if run.fitted is None:
        found = accounting.epsilon([run.accounted], run.delta, run.imprecision, run.epsilon)
        return min(found, run.epsilon)  # both are upper bounds
    return accounting.epsilon(
        [run.accounted, run.fitted.steps], run.delta, run.imprecision + run.fitted.imprecision
    )


def _reason(config: Config) -> str | None:
    if config.no_privacy:
        return "trained by plain SGD with --no-privacy, without clipping or noise"
    if config.wire == FLOATS:
        return (
            "trained with --wire float32, on floating-point sums, whose low bits can reveal what "
            "was added"
        )
    if config.insecure_seed is not None:
        return "trained with --insecure-seed, so that anyone can recompute the noise"
    return None


def _fitted(privacy: dict[str, Any]) -> str:
    noise = privacy["fitted_noise_multiplier"]
    if noise is None:
        return ""
    return f"; numbers of its spec were fitted with noise multiplier {noise:.4f}, and are included"


def _beside(privacy: dict[str, Any]) -> str:
    """What holds for those who see more than what is published."""
    epsilon, unit = privacy["epsilon_rank_or_link"], privacy["unit"]
    curious = f"one who reads a link, or another rank than the {unit}'s own, while it trains"
    if privacy["noise"] == "sharded":
        return (
            f"Ranks and the network between them are trusted entirely: noise is added by the rank "
            f"that holds a finished sum, so sums travel without noise, and for {curious}, no "
            f"finite epsilon holds."
        )
    if privacy["noise"] == "local":
        return (
            f"Every rank adds the whole noise before anything leaves it: even for {curious}, "
            f"epsilon is at most {shown(epsilon)} at the same delta. Of the ranks only the "
            f"{unit}'s own is trusted."
        )
    beside = (
        "no finite epsilon holds" if epsilon == "inf" else f"epsilon is at most {shown(epsilon)}"
    )
    return f"Ranks and the network between them are trusted: for {curious}, {beside}."


def _rank_or_link(config: Config, run: Run) -> float:
    """Epsilon for one who sees a contribution before it is added to others.

    All that is sure to hide it is the noise of its own rank: one share of the model's.
    """
    if config.noise == "sharded":
        return math.inf
    one = accounting.Steps(
        sample_rate=run.sample_rate,
        noise_multiplier=run.noise_multiplier / math.sqrt(run.world_size),
        count=run.steps,
    )
    if run.fitted is not None:
        imprecision = run.imprecision + run.fitted.imprecision
        return accounting.epsilon([one, run.fitted.steps], run.delta, imprecision)
    promised = config.resolved_epsilon() if config.noise == "local" else None
    found = accounting.epsilon([one], run.delta, run.imprecision, promised)
    return found if promised is None else min(found, promised)


def _all_runs(run: Run) -> float:
    """Epsilon of everything in the ledger together, this run included; infinite if unknown."""
    try:
        runs = history(run.ledger, run.unit)
    except PrivacyError:  # damaged since the run began; the model and its own epsilon stand
        return math.inf
    if not all(one.private for one in runs):
        return math.inf
    return accounting.epsilon(
        merged([one.steps for one in runs]), run.delta, sum(one.imprecision for one in runs)
    )


def _number(epsilon: float | None) -> float | str | None:
    return "inf" if epsilon is not None and math.isinf(epsilon) else epsilon


def shown(epsilon: float | str | None) -> str:
    """An epsilon in four digits, rounded up: what is shown is never below what holds."""
    if not isinstance(epsilon, float):
        return "infinite" if epsilon == "inf" else str(epsilon)
    digits = 3 - math.floor(math.log10(epsilon)) if epsilon > 0 else 3
    factor = 10.0**digits
    return f"{math.ceil(epsilon * factor * (1 - 1e-12)) / factor:.4g}"
