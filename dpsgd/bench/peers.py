"""Opacus in `bench`: the same module and batch, clipped and noised, through its PrivacyEngine.

    opacus-hooks   per-example gradients from hooks, then clipped and summed by DPOptimizer
    opacus-ghost   norms first, then a second backward of the weighted loss

As its users do, `ModuleValidator.fix` replaces what Opacus cannot take (MultiheadAttention). Its
noise is torch's, not cryptographic. The batch is given, so its Poisson sampling is off.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence

import torch
from torch.utils.data import DataLoader, TensorDataset

from dpsgd.errors import ConfigError

MODES = {"opacus-hooks": "hooks", "opacus-ghost": "ghost"}
CURE = "opacus is not installed: make install-bench brings it"


def missing() -> bool:
    """Whether the peers cannot be measured here."""
    return importlib.util.find_spec("opacus") is None


def build(
    name: str,
    module: torch.nn.Module,
    batch: Sequence[torch.Tensor],
    learning_rate: float,
    max_grad_norm: float,
) -> Callable[[], object]:
    """One step. Raises ConfigError without Opacus."""
    if missing():
        raise ConfigError(CURE)
    warnings.filterwarnings("ignore", module="opacus")  # of noise that is not cryptographic, once
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    opacus = importlib.import_module("opacus")
    validators = importlib.import_module("opacus.validators")
    module = validators.ModuleValidator.fix(module)
    inputs, labels = batch
    private, optimizer, *wrapped, _ = opacus.PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=learning_rate),
        criterion=torch.nn.BCEWithLogitsLoss(),
        data_loader=DataLoader(TensorDataset(inputs, labels), batch_size=len(labels)),
        noise_multiplier=1.0,
        max_grad_norm=max_grad_norm,
        poisson_sampling=False,
        grad_sample_mode=MODES[name],
    )
    criterion = wrapped[0] if wrapped else torch.nn.BCEWithLogitsLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(private(inputs), labels).backward()
        optimizer.step()

    return step
