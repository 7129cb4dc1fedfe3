"""Any other module that owns parameters: the per-example gradients of one call, by vmap.

What the children of the module own is theirs to account for; here it is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dpsgd.terms import Each, Term


def terms(module: nn.Module, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Term]:
    """Differentiate output times gradient, for one example at a time, all of them at once."""
    own = {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}

    def product(parameters: dict[str, Tensor], g: Tensor, *one: Tensor) -> Tensor:
        output = functional_call(module, parameters, tuple(x[None] for x in one))
        result: Tensor = (output[0] * g).sum()
        return result

    with torch.enable_grad():
        each = vmap(grad(product), in_dims=(None, 0, *[0] * len(inputs)), randomness="same")(
            {name: p.detach() for name, p in own.items()}, gradients[0], *inputs
        )
    return [Each(tuple(own.values()), [each[name].detach() for name in own])]
