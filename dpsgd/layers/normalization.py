"""Normalisation within one example: LayerNorm, GroupNorm, RMSNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from dpsgd.terms import Each, Term

MODULES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def terms(module: Any, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Term]:
    """Normalised input times gradient, and the gradient, summed over all places."""
    x, g = inputs[0], gradients[0]
    bias = getattr(module, "bias", None)  # RMSNorm has none
    found: list[Term] = []
    for parameter in (module.weight, bias):
        if parameter is not None and parameter.requires_grad:
            values = g * _normalized(module, x) if parameter is module.weight else g
            found.append(Each((parameter,), [_by_element(module, values)]))
    return found


def _normalized(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(x, module.num_groups, None, None, module.eps)
    if isinstance(module, nn.RMSNorm):
        return functional.rms_norm(x, module.normalized_shape, None, module.eps)
    return functional.layer_norm(x, module.normalized_shape, None, None, module.eps)


def _by_element(module: Any, values: Tensor) -> Tensor:
    """Summed to [batch, elements of the parameter]."""
    if isinstance(module, nn.GroupNorm):
        return values.flatten(2).sum(2) if values.dim() > 2 else values
    shape = tuple(module.normalized_shape)
    return values.reshape(len(values), -1, *shape).sum(1).flatten(1)
