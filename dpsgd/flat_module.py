"""A model's torch module, its trained parameters in one flat buffer, and its per-example loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dpsgd.errors import ConfigError
from dpsgd.models import Model

PROBES = 3
"""Rows of the public random batch that a module is tried with; few have such a dimension."""
TOLERANCE = 1e-3


class FlatModule:
    """`module` in training mode; what is loaded from the flat vector is what requires gradients.

    Raises ConfigError for a module that mixes the examples of a batch.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        self.module = model.module().to(dtype).train()
        self.call: Callable[..., torch.Tensor] = self.module
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.tensors = model.tensors
        self._flat = torch.zeros(model.num_params, dtype=dtype)
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            parameter.data = self._flat[tensor.place].view(tensor.shape)
        self._dtype = dtype
        _refuse_batch_norm(self.module)
        self._refuse_mixing(model)

    def load(self, params: NDArray[np.float32]) -> None:
        """Take over the parameters [num_params]."""
        self._flat.copy_(torch.from_numpy(params))

    def inputs(self, batch: NDArray[Any]) -> torch.Tensor:
        """A batch as the module takes it."""
        found = torch.from_numpy(batch)
        return found.to(self._dtype) if found.is_floating_point() else found

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

    def _refuse_mixing(self, model: Model) -> None:
        """Examples must not see each other: tried with random ones, in a batch and one by one."""
        self.load(model.initial(0))
        inputs = self.inputs(model.probe(PROBES))
        self.module.eval()  # without dropout
        with torch.no_grad():
            together = self.module(inputs)
            if together.shape != (PROBES,):
                raise ConfigError(
                    f"model {model.name} must give one logit an example, shape ({PROBES},) for "
                    f"{PROBES} examples, got {tuple(together.shape)}"
                )
            alone = torch.cat([self.module(row[None]) for row in inputs])
        self.module.train()
        if not torch.allclose(together, alone, rtol=TOLERANCE, atol=TOLERANCE):
            raise ConfigError(
                f"model {model.name} is refused: the logit of an example depends on the others in "
                f"its batch, so no single example's gradient exists to be clipped; the batch must "
                f"be the first dimension everywhere (batch_first=True)"
            )


def _refuse_batch_norm(module: nn.Module) -> None:
    for name, one in module.named_modules():
        tracks = bool(getattr(one, "track_running_stats", False))
        if isinstance(one, nn.modules.batchnorm._BatchNorm) or tracks:
            raise ConfigError(
                f"layer {name or 'model'} ({type(one).__name__}) is refused: batch normalisation "
                f"mixes the examples of a batch, so no single example's gradient exists to be "
                f"clipped; use GroupNorm or LayerNorm"
            )
