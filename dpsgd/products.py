"""Sums of weighted outer products, the clipped sum of a linear layer: out += sum of c_i g_i a_i^T.

Rows are summed in float32 in blocks, GROUP blocks are added in float32, and groups in float64. Two
neighbouring batches differ in one row, so in one block; all others are the same, bit for bit. Let
every |c_i| |g_i| |a_i| be at most C. The block can be off by R (R + 2) 2^-24 C, the additions of a
group each by 2^-24 times what was added, at most GROUP R C: twice that is

    RHO = 2 (R (R + 2) + (GROUP - 1) GROUP R) 2^-24,       0.22% for R = 128, GROUP = 4

One sum in float32 can be off by 2 n^2 2^-24 C: 8,191 rows chosen to absorb one of norm C
moved it by 2 C.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 128
GROUP = 4
UNIT = 2.0**-24
TINY = 2.0**-126  # what is smaller may become zero
RHO = 2 * (BLOCK_ROWS * (BLOCK_ROWS + 2) + (GROUP - 1) * GROUP * BLOCK_ROWS) * UNIT

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Products:
    """Adds such sums; keeps its intermediate arrays, because fresh ones cost page faults."""

    def __init__(self) -> None:
        self._scratch: dict[tuple[int, ...], F32] = {}

    def add(
        self,
        a: F32,
        g: F32,
        weights: F32 | None,
        out: F64,
        bias: F64 | None,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        """out += sum of c_i g_i a_i^T and bias += sum of c_i g_i; c is 1 without `weights`.

        Shapes: a [rows, inputs], g [rows, outputs], weights [rows], out [outputs, inputs], bias
        [outputs]. Only the narrower of a and g is multiplied by the weights.
        """
        group = block_rows * GROUP
        for first in range(0, len(a), group):
            rows = slice(first, first + group)
            self._add_group(
                a[rows], g[rows], None if weights is None else weights[rows], out, bias, block_rows
            )

    def _add_group(
        self, a: F32, g: F32, weights: F32 | None, out: F64, bias: F64 | None, block_rows: int
    ) -> None:
        by_row = self._ones(block_rows * GROUP)[: len(a)] if weights is None else weights
        if bias is not None:  # before g is scaled
            self._add_bias(g, by_row, bias, block_rows)
        if weights is not None:
            narrower = min(a.shape[1], g.shape[1])
            scaled = self._empty(0, block_rows * GROUP, narrower)[: len(a)]
            if a.shape[1] == narrower:
                a = np.multiply(a, weights[:, None], out=scaled)
            else:
                g = np.multiply(g, weights[:, None], out=scaled)
        total, block = self._empty(1, *out.shape), self._empty(2, *out.shape)
        np.matmul(g[:block_rows].T, a[:block_rows], out=total)
        for first in range(block_rows, len(a), block_rows):
            rows = slice(first, first + block_rows)
            np.matmul(g[rows].T, a[rows], out=block)
            total += block
        out += total

    def _add_bias(self, g: F32, weights: F32, bias: F64, block_rows: int) -> None:
        for first in range(0, len(g), block_rows):
            rows = slice(first, first + block_rows)
            bias += weights[rows] @ g[rows]

    def _ones(self, rows: int) -> F32:
        found = self._scratch.get((3, rows))
        if found is None:
            found = self._scratch[3, rows] = np.ones(rows, np.float32)
        return found

    def _empty(self, use: int, rows: int, width: int) -> F32:
        found = self._scratch.get((use, rows, width))
        if found is None:
            found = self._scratch[use, rows, width] = np.empty((rows, width), np.float32)
        return found


def squares(rows: F32) -> F32:
    """Squared norm of every row [rows], off by at most (width + 1) 2^-24 of it."""
    found: F32 = np.vecdot(rows, rows)
    return found
