"""The floor of a step: its matrix products alone, in numpy and in torch, whichever is faster.

A linear map of m rows, k inputs and n outputs is three products: forward (m k n), the gradient of
its inputs (m n k; not for the first layer), and the gradient of its weight (n m k). For an MLP of
three layers that makes eight. A convolution counts as the product of the patches of its input;
attention as two batched products, and four backward. Nothing else is counted: no bias, activation,
norm or sum, and outputs are written to memory that is there already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpsgd.bench.measure import medians
from dpsgd.bench.workloads import Workload

Product = tuple[int, int, int, int]
"""How many matrices, rows, summed over, columns."""


def floor(workload: Workload, seconds: float) -> dict[str, Any]:
    """Its time, in which library, and the number of products."""
    found = products(workload)
    both = medians([_numpy(found), _torch(found)], seconds / 2)
    best = min(both)
    library = ("numpy", "torch")[both.index(best)]
    return {"us_floor": best * 1e6, "floor_in": library, "num_products": len(found)}


def products(workload: Workload) -> list[Product]:
    """All products of a step, from one look at a forward pass."""
    model, inputs, _ = workload.batch()
    module = model.module()
    found: list[Product] = []

    def linear(rows: int, fan_in: int, fan_out: int, wanted: bool) -> None:
        found.append((1, rows, fan_in, fan_out))
        found.extend([(1, rows, fan_out, fan_in)] if wanted else [])
        found.append((1, fan_out, rows, fan_in))

    def look(layer: nn.Module, arguments: tuple[Tensor, ...], output: Any) -> None:
        x = arguments[0]
        if isinstance(layer, nn.Linear):
            linear(x.numel() // x.shape[-1], layer.in_features, layer.out_features, x.requires_grad)
        elif isinstance(layer, nn.Conv2d):
            patch = layer.in_channels * math.prod(layer.kernel_size)
            places = output.numel() // layer.out_channels
            linear(places, patch, layer.out_channels, x.requires_grad)
        elif isinstance(layer, nn.MultiheadAttention):
            batch, length, width = x.shape
            linear(batch * length, width, 3 * width, x.requires_grad)
            linear(batch * length, width, width, True)
            head = layer.head_dim
            across = (batch * layer.num_heads, length, head, length)  # to a score for every pair
            back = (batch * layer.num_heads, length, length, head)  # from the scores
            found.extend([across, back, across, back, back, back])

    for layer in module.modules():
        layer.register_forward_hook(look)
    module(torch.from_numpy(inputs))
    return found


def _numpy(found: list[Product]) -> Callable[[], object]:
    calls = []
    for many, m, k, n in found:
        shapes = (
            [(m, k), (k, n), (m, n)] if many == 1 else [(many, m, k), (many, k, n), (many, m, n)]
        )
        a, b, out = (np.ones(shape, np.float32) for shape in shapes)
        calls.append(partial(np.matmul, a, b, out=out))
    return partial(_all, calls)


def _torch(found: list[Product]) -> Callable[[], object]:
    calls = []
    for many, m, k, n in found:
        a, b, out = (torch.ones(many, *shape) for shape in ((m, k), (k, n), (m, n)))
        if many == 1:
            calls.append(partial(torch.mm, a[0], b[0], out=out[0]))
        else:
            calls.append(partial(torch.bmm, a, b, out=out))
    return partial(_all, calls)


def _all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()
