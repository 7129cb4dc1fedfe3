"""Linear layers, with any number of dimensions between batch and features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dpsgd.terms import Each, Outer, Term, rows_first

MODULES = (nn.Linear,)


def terms(module: nn.Linear, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Term]:
    """One outer product a position."""
    a, g = rows_first(inputs[0]), rows_first(gradients[0])
    return outer(module.weight, module.bias, a, g)


def outer(weight: Tensor, bias: Tensor | None, a: Tensor, g: Tensor) -> list[Term]:
    """The term of a linear map, for as many of its parameters as are trained."""
    with_bias = bias is not None and bias.requires_grad
    if weight.requires_grad:
        return [Outer((weight, bias) if with_bias and bias is not None else (weight,), a, g)]
    if with_bias and bias is not None:
        return [Each((bias,), [g if g.dim() == 2 else g.sum(1)])]
    return []
