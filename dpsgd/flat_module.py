"""A model's torch module, its trained parameters in one flat buffer, and its per-example loss."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.modules.dropout import _DropoutNd

from dpsgd.errors import ConfigError
from dpsgd.models import Model

PROBES = 3
"""Rows of the public random batch that a module is tried with; few have such a dimension."""
TOLERANCE = 1e-3
"""Of what float32 gives, relative to its size; its square, of what float64 gives."""
FPMATH = "ONEDNN_DEFAULT_FPMATH_MODE"


class FlatModule:
    """`module` in training mode; what is loaded from the flat vector is what requires gradients.

    Raises ConfigError for a module that mixes the examples of a batch.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        _refuse_low_precision()
        self.module = model.module().to(dtype).train()
        self.call: Callable[..., torch.Tensor] = self.module
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.tensors = model.tensors
        self._flat = torch.zeros(model.num_params, dtype=dtype)
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            parameter.data = self._flat[tensor.place].view(tensor.shape)
        self._dtype = dtype
        self.trial_params = _trial_params(model)
        _refuse_batch_norm(self.module)
        self._refuse_mixing(model)

    def load(self, params: NDArray[np.float32]) -> None:
        """Take over the parameters [num_params]."""
        self._flat.copy_(torch.from_numpy(params))

    def inputs(self, batch: NDArray[Any]) -> torch.Tensor:
        """A batch as the module takes it."""
        found = torch.from_numpy(batch)
        dtype = self._dtype if found.is_floating_point() else found.dtype
        return found.to(dtype, copy=True)  # a module may change it

    def losses(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sigmoid cross-entropy of every example [batch]."""
        return binary_cross_entropy_with_logits(self.call(inputs), labels, reduction="none")

    def logits(self, batch: NDArray[Any]) -> torch.Tensor:
        """Logits of a batch [batch]."""
        return self.call(self.inputs(batch))

    def labels(self, labels: NDArray[np.float32]) -> torch.Tensor:
        """Labels 0 or 1 as the loss takes them [batch]."""
        return torch.from_numpy(labels).to(self._dtype)

    def name_of(self, parameter: torch.Tensor) -> str:
        """What the module calls one of its parameters."""
        return next(name for name, p in self.module.named_parameters() if p is parameter)

    @contextmanager
    def without_dropout(self, batch: NDArray[Any]) -> Iterator[None]:
        """As in training, but the same at every call; in evaluation mode if that is still random.

        Layers such as functional batch normalisation mix examples in training mode only.
        """
        rates = [
            (one, name, getattr(one, name))
            for one in self.module.modules()
            for name in ("p", "dropout")
            if isinstance(one, (_DropoutNd, nn.MultiheadAttention))
            and isinstance(getattr(one, name, None), float)
        ]
        for one, name, _ in rates:
            setattr(one, name, 0.0)
        try:
            with torch.no_grad():
                first, second = self.logits(batch), self.logits(batch)
            self.module.train(torch.equal(first, second))
            yield
        finally:
            self.module.train()
            for one, name, rate in rates:
                setattr(one, name, rate)

    def _refuse_mixing(self, model: Model) -> None:
        """Examples must not see each other: tried with random ones, in a batch and one by one."""
        self.load(self.trial_params)
        batch = model.probe(PROBES)
        with torch.no_grad(), self.without_dropout(batch):
            together = self.logits(batch)
            if together.shape != (PROBES,):
                raise ConfigError(
                    f"model {model.name} must give one logit an example, shape ({PROBES},) for "
                    f"{PROBES} examples, got {tuple(together.shape)}"
                )
            alone = torch.cat([self.logits(row[None]) for row in batch])
        tolerance = TOLERANCE if self._dtype == torch.float32 else TOLERANCE**2
        if not torch.allclose(together, alone, rtol=tolerance, atol=tolerance):
            raise ConfigError(
                f"model {model.name} is refused: the logit of an example depends on the others in "
                f"its batch, so no single example's gradient exists to be clipped; the batch must "
                f"be the first dimension everywhere (batch_first=True)"
            )


def _trial_params(model: Model) -> NDArray[np.float32]:
    """Public random parameters to try a module with [num_params].

    None is where it starts: zeros, as of a gate or of the last layer, would hide what is behind.
    """
    generator = np.random.default_rng(1)
    params = model.initial(1)
    for tensor in model.tensors:
        part = params[tensor.place].astype(np.float64)
        size = math.sqrt(np.mean(part**2)) or 0.2
        params[tensor.place] = part + generator.normal(scale=size / 2, size=part.shape)
    return params


def _refuse_low_precision() -> None:
    """What rounding can do is accounted for float32: no bfloat16, no TF32 in its place."""
    torch.set_float32_matmul_precision("highest")
    mode = os.environ.get(FPMATH, "STRICT")
    if mode.upper() != "STRICT":
        raise ConfigError(f"{FPMATH} must be STRICT, got {mode}: privacy is proven for float32")
    if torch.is_autocast_enabled("cpu"):
        raise ConfigError("torch.autocast must be off: privacy is proven for float32")


def _refuse_batch_norm(module: nn.Module) -> None:
    for name, one in module.named_modules():
        tracks = bool(getattr(one, "track_running_stats", False))
        if isinstance(one, nn.modules.batchnorm._BatchNorm) or tracks:
            raise ConfigError(
                f"layer {name or 'model'} ({type(one).__name__}) is refused: batch normalisation "
                f"mixes the examples of a batch, so no single example's gradient exists to be "
                f"clipped; use GroupNorm or LayerNorm"
            )
