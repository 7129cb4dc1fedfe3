"""Multi-head attention: its projections are linear layers that torch does not call as layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpsgd.layers.linear import outer
from dpsgd.terms import Term

MODULES = (nn.MultiheadAttention,)

Record = Callable[[nn.Module, Sequence[Tensor], Sequence[Tensor]], None]
"""record(module, inputs, outputs): their gradients are wanted."""


def usable(module: nn.MultiheadAttention) -> bool:
    """Whether it is one of the ordinary ones."""
    plain = module.bias_k is None and not module.add_zero_attn
    return plain and module.batch_first and module._qkv_same_embed_dim


def terms(
    module: nn.MultiheadAttention, inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[Term]:
    """The projections of queries, keys and values, which share one weight; then that of the output.

    Three inputs that differ are three calls of one layer, each with a third of the outputs.
    """
    *projected, before = inputs
    *g, g_out = gradients
    found = []
    if len(projected) > 1:
        for number, (a, one) in enumerate(zip(projected, g, strict=True)):
            width = one.shape[-1]
            whole = functional.pad(one, (number * width, (2 - number) * width))
            found += outer(module.in_proj_weight, module.in_proj_bias, a, whole)
    else:
        found += outer(module.in_proj_weight, module.in_proj_bias, projected[0], g[0])
    return found + outer(module.out_proj.weight, module.out_proj.bias, before, g_out)


def recorded(module: nn.MultiheadAttention, record: Record) -> Callable[..., object]:
    """A forward that does what the module does and records its projections."""

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        weight, bias = module.in_proj_weight, module.in_proj_bias
        if query is key and key is value:
            inputs: tuple[Tensor, ...] = (query,)
            outputs: tuple[Tensor, ...] = (functional.linear(query, weight, bias),)
            q, k, v = outputs[0].chunk(3, -1)
        else:
            inputs = (query, key, value)
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            q, k, v = outputs = tuple(
                functional.linear(x, w, b)
                for x, w, b in zip(inputs, weight.chunk(3), biases, strict=True)
            )
        q, k, v = (x.reshape(*x.shape[:2], module.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        mask = _mask(module, q, k, key_padding_mask, attn_mask)
        dropout = module.dropout if module.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = functional.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        before = mixed.transpose(1, 2).flatten(2)
        out = functional.linear(before, module.out_proj.weight, module.out_proj.bias)
        record(module, (*inputs, before), (*outputs, out))
        return out, weights

    return forward


def _mask(
    module: nn.MultiheadAttention,
    q: Tensor,
    k: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> Tensor | None:
    """What is added to the scores [batch, heads, queries, keys], or None."""
    found = None
    if attn_mask is not None:
        found = _additive(attn_mask, q)
        if found.dim() == 3:
            found = found.reshape(-1, module.num_heads, *found.shape[1:])
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q)[:, None, None, :]
        found = padding if found is None else found + padding
    return found


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)
