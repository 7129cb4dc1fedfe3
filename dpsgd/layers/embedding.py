"""Embeddings, and bags of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpsgd.errors import ConfigError
from dpsgd.terms import Lookup, Term

MODULES = (nn.Embedding, nn.EmbeddingBag)


def usable(module: nn.Embedding | nn.EmbeddingBag) -> bool:
    """Scaling by frequency mixes examples, max_norm changes the weight, a maximum is no sum."""
    plain = not module.scale_grad_by_freq and module.max_norm is None
    return plain and getattr(module, "mode", "sum") in ("sum", "mean")


def terms(
    module: nn.Embedding | nn.EmbeddingBag, inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Term]:
    """One row a position."""
    (weight,) = module.parameters()
    ids, g = inputs[0], gradients[0]
    if isinstance(module, nn.EmbeddingBag):
        return [_bag(module, weight, ids, g, *inputs[1:])]
    ids, g = ids.reshape(len(ids), -1), g.reshape(len(g), -1, g.shape[-1])
    return [Lookup((weight,), ids, _without_padding(module, ids, g))]


def _bag(
    module: nn.EmbeddingBag, weight: nn.Parameter, ids: Tensor, g: Tensor, *weights: Tensor
) -> Lookup:
    """Bags of the same size, ids [batch, bag]: every position gets the bag's gradient."""
    if ids.dim() != 2:
        raise ConfigError(
            f"layer EmbeddingBag must take ids [batch, bag], without offsets, got shape "
            f"{tuple(ids.shape)}; or use --engine vmap"
        )
    g = g[:, None, :].expand(-1, ids.shape[1], -1)
    if weights:
        g = g * weights[0][:, :, None]
    if module.mode == "mean":
        counted = ids != (-1 if module.padding_idx is None else module.padding_idx)
        g = g / counted.sum(1).clamp_min(1)[:, None, None]
    return Lookup((weight,), ids, _without_padding(module, ids, g))


def _without_padding(module: nn.Embedding | nn.EmbeddingBag, ids: Tensor, g: Tensor) -> Tensor:
    if module.padding_idx is None:
        return g
    return torch.where((ids == module.padding_idx)[:, :, None], 0, g)
