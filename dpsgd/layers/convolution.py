"""Convolutions in one and two dimensions: linear maps of the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from dpsgd.layers.linear import outer
from dpsgd.terms import Term

MODULES = (nn.Conv1d, nn.Conv2d)


def usable(module: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether it is one linear map; a grouped convolution is several."""
    return module.groups == 1


def terms(
    module: nn.Conv1d | nn.Conv2d, inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Term]:
    """One outer product a place of the output."""
    x, g = inputs[0], gradients[0].flatten(2)
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if any(padding):
        x = functional.pad(x, padding, mode=mode)
    line = isinstance(module, nn.Conv1d)
    first = (1,) if line else ()
    patches = functional.unfold(
        x[:, :, None] if line else x,
        (*first, *module.kernel_size),
        dilation=(*first, *module.dilation),
        stride=(*first, *module.stride),
    )  # [batch, inputs of a patch, places]
    return outer(module.weight, module.bias, patches.transpose(1, 2), g.transpose(1, 2))
