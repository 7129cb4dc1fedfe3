"""Sums of weighted outer products, the clipped sum of a linear layer: out += sum of c_i g_i a_i^T.

Rows are summed in float32 in blocks, up to 2^LEVELS blocks are added in float32, two by two, and
these groups in float64. Two neighbouring batches have as many rows, so the same blocks, and differ
in one row, so in one block; all others are the same, bit for bit. Let every |c_i| |g_i| |a_i| be at
most C. The block can be off by R (R + 2) 2^-24 C, the additions of a level by 2^-24 times what was
added, at most 2^LEVELS R C: twice that is

    RHO = 2 (R (R + 2) + LEVELS 2^LEVELS R) 2^-24,       0.235% for R = 128, LEVELS = 3

One sum in float32 can be off by 2 n^2 2^-24 C: 8,191 rows chosen to absorb one of norm C
moved it by 2 C.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 128
LEVELS = 3
GROUP = 2**LEVELS
VECTOR = 8  # rows that a processor adds at once
UNIT = 2.0**-24
TINY = 2.0**-126  # what is smaller may become zero
RHO = 2 * (BLOCK_ROWS * (BLOCK_ROWS + 2) + LEVELS * GROUP * BLOCK_ROWS) * UNIT

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Floats = NDArray[Any]


class Products:
    """Adds such sums; keeps its intermediate arrays, because fresh ones cost page faults."""

    def __init__(self, dtype: type[np.floating[Any]] = np.float32) -> None:
        self._dtype = dtype
        self._memory: dict[str, Floats] = {}

    def add(
        self,
        a: F32,
        g: F32,
        weights: F32,
        out: F64,
        bias: F64 | None,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        """out += sum of c_i g_i a_i^T and bias += sum of c_i g_i.

        Shapes: a [rows, inputs], g [rows, outputs], weights, which are the c, [rows], out [outputs,
        inputs], bias [outputs]. Only the narrower of a and g is multiplied by the weights.
        """
        length = _without_rest(len(weights), block_rows)
        for first in range(0, len(weights), length * GROUP):
            last = min(len(weights), first + length * GROUP)
            whole = first + (last - first) // length * length
            for start, end, rows in ((first, whole, length), (whole, last, last - whole)):
                if start < end:
                    part = slice(start, end)
                    self._add_rows(a[part], g[part], weights[part], out, bias, rows)

    def add_blocks(
        self, g: Floats, a: Floats, out: F64, bias: F64 | None = None, *, anew: bool = False
    ) -> None:
        """out += sum over the blocks of g a; with `bias` the last column is for that.

        Shapes: g [blocks, outputs, rows], a [blocks, rows, inputs], out [outputs, inputs]. With
        `anew` what was in `out` and `bias` before is forgotten.
        """
        outputs, inputs = g.shape[1], a.shape[2]
        for first in range(0, len(g), GROUP):
            last = min(len(g), first + GROUP)
            sums = self._empty("sums", last - first, outputs, inputs)
            np.matmul(g[first:last], a[first:last], out=sums)
            blocks = len(sums)
            while blocks > 1:
                half = blocks // 2
                sums[:half] += sums[blocks - half : blocks]
                blocks -= half
            total = sums[0] if bias is None else sums[0, :, :-1]
            if anew and first == 0:
                np.copyto(out, total)
            else:
                out += total
            if bias is not None:
                total = sums[0, :, -1]
                if anew and first == 0:
                    np.copyto(bias, total)
                else:
                    bias += total

    def _add_rows(
        self, a: F32, g: F32, weights: F32, out: F64, bias: F64 | None, length: int
    ) -> None:
        """The same of rows that are a few blocks of the same length."""
        rows, inputs, outputs = len(a), a.shape[1], g.shape[1]
        factors = weights[:, None]
        if inputs <= outputs:
            scaled = self._empty("scaled", rows, inputs + (bias is not None))
            np.multiply(a, factors, out=scaled[:, :inputs])
            if bias is not None:
                scaled[:, inputs] = weights
            a = scaled
        else:
            g = np.multiply(g, factors, out=self._empty("scaled", rows, outputs))
        g_blocks, a_blocks = g.reshape(-1, length, outputs), a.reshape(-1, length, a.shape[1])
        if bias is not None and inputs > outputs:
            bias += np.add.reduce(np.add.reduce(g_blocks, axis=1), axis=0, dtype=np.float64)
            bias = None
        self.add_blocks(g_blocks.transpose(0, 2, 1), a_blocks, out, bias)

    def _empty(self, use: str, *shape: int) -> Floats:
        """An array for a use; the next one for the same use has the same memory."""
        size = math.prod(shape)
        memory = self._memory.get(use)
        if memory is None or len(memory) < size:
            memory = self._memory[use] = np.empty(size, self._dtype)
        return memory[:size].reshape(shape)


def _without_rest(rows: int, at_most: int) -> int:
    """A length of blocks that leaves no rest, if that takes up to a quarter more blocks."""
    fewest = -(-rows // at_most)
    for blocks in range(fewest, fewest + fewest // 4 + 1):
        if blocks and rows % blocks == 0:
            return rows // blocks
    return at_most


def even_blocks(rows: int) -> tuple[int, int]:
    """How many blocks of which length hold so many rows; they hold a few more: whole vectors."""
    blocks = -(-rows // BLOCK_ROWS)
    return blocks, -(-rows // (blocks * VECTOR)) * VECTOR


def squares(rows: F32) -> F32:
    """Squared norm of every row [rows], off by at most (width + 1) 2^-24 of it."""
    found: F32 = np.vecdot(rows, rows)
    return found
