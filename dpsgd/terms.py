"""What one call of a layer contributes to the gradients of its parameters, example by example.

    Outer    sum over positions t of g_t a_t^T        linear layers, convolutions
    Lookup   g_t added to row id_t, for every t       embeddings
    Each     a gradient for every example             whatever is small, or of no known form

A term bounds the squared norms of its per-example gradients from above, rounding included, and adds
the sum of gradients times weights to float64 vectors. For Outer the gradients are never built:

    norm^2 of an example  =  sum over t, s of (a_t . a_s [+ 1]) (g_t . g_s)      the 1 is the bias

(Goodfellow, "Efficient per-example gradient computations", 2015, for one position; Li et al.,
"Large language models can be strong differentially private learners", 2022, section 4.1, for
several.) With several positions terms of both signs add up, and where they cancel, rounding is all
that is left. It is bounded by the *spread* S = sum over t of |a_t| |g_t|: the sum of products is
off by at most (num_terms) 2^-24 S^2. Positions at right angles have S of sqrt(T) times the norm;
up to M = max(16, 4 sqrt(T)) times the norm is allowed, and other examples are left to the reference
engine. For the rest float32 sums over blocks of R rows, T of them an example, are off by R (2 R / T
+ 3) 2^-24 M C in the blocks that one example reaches into, which touch so many examples, and
likewise those over groups of blocks; R is chosen so that both are below RHO C / 2. With several
layers the sum of all (S / M)^2 is compared with the square of the norm, as their errors add up.
What underflows in a square or in a product is at most 2^-126 each, which is added to the norms too.

Outer with few parameters and many positions (P <= 2 T^2, as in convolutions) is cheaper built, and
becomes Each (Bu, Mao and Xu, "Scalable and efficient training of large convolutional neural
networks with differential privacy", 2022, section 4).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsgd.products import BLOCK_ROWS, GROUP, LEVELS, RHO, TINY, UNIT, Products, squares

HUGE_NORM_SQUARED = 1e24
FLOOR = 2.0**-90  # added to the sum of all norm^2: more than 2^36 underflows
PIECE = 64  # of a row of which squares are added in float32
PRODUCTS = Products()

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Term(ABC):
    """Gradients of `parameters`, one example after the other [batch]."""

    parameters: tuple[Tensor, ...]

    @abstractmethod
    def bounds(self) -> tuple[F32, F32 | None]:
        """Upper bounds of norm^2 and of (S / M)^2 for each example [batch].

        None where nothing can cancel in a float32 sum.
        """

    @abstractmethod
    def blanked(self, keep: Bools) -> Term:
        """The same with examples that are not kept [batch] replaced by zeros."""

    @abstractmethod
    def add_sum(self, weights: F32, outs: Sequence[F64]) -> None:
        """Add the gradients times `weights` [batch] to one float64 vector a parameter."""

    @abstractmethod
    def built(self) -> Each:
        """The per-example gradients themselves."""


class Outer(Term):
    """g [batch, positions, outputs] and a [batch, positions, inputs], or both without positions.

    `parameters` are the weight [outputs, inputs], then the bias [outputs] if there is one.
    """

    def __init__(self, parameters: tuple[Tensor, ...], a: Tensor, g: Tensor) -> None:
        self.parameters, self.a, self.g = parameters, a, g
        self.has_bias = len(parameters) == 2
        self.positions = 1 if a.dim() == 2 else a.shape[1]

    def bounds(self) -> tuple[F32, F32 | None]:
        """See the module."""
        inputs, outputs = self.a.shape[-1], self.g.shape[-1]
        rounding = (inputs + outputs + 16) * UNIT
        if self.a.dim() == 2:
            norms = squares(self.a.numpy())
            norms += inputs * TINY + self.has_bias
            others = squares(self.g.numpy())
            others += outputs * TINY
            norms *= others
            norms *= 1 + rounding
            return norms, None
        self.a, self.g = self.a.contiguous(), self.g.contiguous()
        a_products, a_squared = _gram(self.a.numpy())
        g_products, g_squared = _gram(self.g.numpy())
        a_squared += inputs * TINY + self.has_bias
        g_squared += outputs * TINY
        lost = np.sqrt(a_squared).sum(1) ** 2 * np.float32(outputs * TINY)
        lost += np.sqrt(g_squared).sum(1) ** 2 * np.float32(inputs * TINY)
        spread = np.sqrt(a_squared * g_squared).sum(1) ** 2
        spread *= 1.01
        if self.has_bias:
            a_products += 1
        rounding += (self.positions + 4) * UNIT  # of the sums over s; those over t are exact
        exact = np.vecdot(a_products, g_products).sum(1, dtype=np.float64)
        norms = (np.maximum(exact, 0) + rounding * spread + lost).astype(np.float32)
        spread *= 1 / max_spread(self.positions) ** 2
        return norms, spread

    def blanked(self, keep: Bools) -> Outer:
        """Both factors are replaced, because 0 times NaN is NaN."""
        return Outer(self.parameters, _blanked(self.a, keep), _blanked(self.g, keep))

    def add_sum(self, weights: F32, outs: Sequence[F64]) -> None:
        """See `dpsgd.products`."""
        a, g = self.a, self.g
        if a.dim() == 3:
            a, g = a.flatten(0, 1), g.flatten(0, 1)
            weights = weights.repeat(self.positions)
        PRODUCTS.add(
            a.numpy(),
            g.numpy(),
            weights,
            outs[0].reshape(g.shape[1], a.shape[1]),
            outs[1] if self.has_bias else None,
            block_rows(self.positions),
        )

    def joined(self, other: Outer) -> Outer:
        """Two calls of the same layer are one call with the positions of both."""
        ours, theirs = (
            (t.a, t.g) if t.a.dim() == 3 else (t.a[:, None], t.g[:, None]) for t in (self, other)
        )
        return Outer(
            self.parameters,
            *(torch.cat(pair, 1) for pair in zip(ours, theirs, strict=True)),
        )

    def settled(self) -> Term:
        """Itself, or the gradients, where that is less work."""
        if self.a.dim() == 2:
            return self
        if self.a.shape[-1] * self.g.shape[-1] > 2 * self.positions**2:
            return self
        return self.built()

    def built(self) -> Each:
        """The per-example gradients."""
        a, g = (t if t.dim() == 3 else t[:, None] for t in (self.a, self.g))
        gradients = [torch.bmm(g.transpose(1, 2), a)]
        if self.has_bias:
            gradients.append(g.sum(1))
        return Each(self.parameters, gradients)


class Each(Term):
    """A gradient for every example: one tensor [batch, ...] a parameter.

    What is summed is what is measured, so it does not matter how the gradients were rounded.
    """

    def __init__(self, parameters: tuple[Tensor, ...], gradients: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.gradients = [gradient.flatten(1) for gradient in gradients]

    def bounds(self) -> tuple[F32, F32 | None]:
        """Squares are added in float32 in short pieces, and these in float64."""
        norms = np.zeros(len(self.gradients[0]))
        for gradient in self.gradients:
            values = gradient.numpy()
            whole = values.shape[1] // PIECE * PIECE
            if whole:
                pieces = values[:, :whole].reshape(len(values), -1, PIECE)
                norms += np.vecdot(pieces, pieces).sum(1, dtype=np.float64)
            if whole < values.shape[1]:
                norms += squares(values[:, whole:])
        norms *= 1 + (PIECE + 16) * UNIT
        return norms.astype(np.float32), None

    def built(self) -> Each:
        """Itself."""
        return self

    def blanked(self, keep: Bools) -> Each:
        """See Term."""
        return Each(self.parameters, [_blanked(gradient, keep) for gradient in self.gradients])

    def add_sum(self, weights: F32, outs: Sequence[F64]) -> None:
        """Blocks of rows in float32, their sum in float64."""
        for gradient, out in zip(self.gradients, outs, strict=True):
            values = gradient.numpy()
            for rows in range(0, len(weights), BLOCK_ROWS):
                block = slice(rows, rows + BLOCK_ROWS)
                out += weights[block] @ values[block]


class Lookup(Term):
    """g [batch, positions, width] added to the rows ids [batch, positions] of the weight."""

    def __init__(self, parameters: tuple[Tensor, ...], ids: Tensor, g: Tensor) -> None:
        self.parameters, self.ids, self.g = parameters, ids, g

    def bounds(self) -> tuple[F32, F32 | None]:
        """Positions with the same row count together; what is summed, is in float64."""
        ids = self.ids.numpy()
        same = ids[:, :, None] == ids[:, None, :]
        products, squared = _gram(self.g.contiguous().numpy())
        products *= same
        lengths = np.sqrt(squared)
        slack = np.vecdot(np.vecdot(same, lengths[:, None, :]), lengths)
        exact = np.maximum(products.sum((1, 2), dtype=np.float64), 0)
        norms = exact + (self.g.shape[2] + 20) * UNIT * slack
        return norms.astype(np.float32), None

    def blanked(self, keep: Bools) -> Lookup:
        """See Term."""
        return Lookup(self.parameters, self.ids, _blanked(self.g, keep))

    def add_sum(self, weights: F32, outs: Sequence[F64]) -> None:
        """In float64."""
        g = self.g.double() * torch.from_numpy(weights).double()[:, None, None]
        out = torch.from_numpy(outs[0]).view(self.parameters[0].shape)
        out.index_add_(0, self.ids.reshape(-1), g.reshape(-1, g.shape[2]))

    def built(self) -> Each:
        """The per-example gradients."""
        batch, rows = len(self.g), self.parameters[0].shape[0]
        gradient = self.g.new_zeros(batch, rows, self.g.shape[2])
        index = self.ids[:, :, None].expand_as(self.g)
        return Each(self.parameters, [gradient.scatter_add_(1, index, self.g)])


def combined(terms: Sequence[Term]) -> list[Term]:
    """Terms of which no two have a parameter in common.

    Norms of different parameters add up in squares, those of one parameter used twice do not: its
    gradients are added first.
    """
    keys = [id(p) for term in terms for p in term.parameters]
    apart = [[term] for term in terms]
    groups = apart if len(set(keys)) == len(keys) else _with_a_parameter_in_common(terms)
    found = [_one_call(group) for group in groups]
    return [one.settled() if isinstance(one, Outer) else one for one in found]


def _with_a_parameter_in_common(terms: Sequence[Term]) -> list[list[Term]]:
    groups: list[list[Term]] = []
    for term in terms:
        ids = {id(p) for p in term.parameters}
        mine = [g for g in groups if any(ids & {id(p) for p in t.parameters} for t in g)]
        groups = [g for g in groups if g not in mine] + [[t for g in mine for t in g] + [term]]
    return groups


def _one_call(group: list[Term]) -> Term:
    """All of a group as one term."""
    if len(group) == 1:
        return group[0]
    outers = [term for term in group if isinstance(term, Outer)]
    if outers == group and all(_same(t.parameters, group[0].parameters) for t in outers):
        return reduce(Outer.joined, outers)
    return _added([term.built() for term in group])


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _added(terms: Sequence[Each]) -> Each:
    parameters: list[Tensor] = []
    gradients: list[Tensor] = []
    for term in terms:
        for parameter, gradient in zip(term.parameters, term.gradients, strict=True):
            found = [i for i, p in enumerate(parameters) if p is parameter]
            if found:
                gradients[found[0]] = gradients[found[0]] + gradient
            else:
                parameters.append(parameter)
                gradients.append(gradient)
    return Each(tuple(parameters), gradients)


def max_spread(positions: int) -> float:
    """M of the module."""
    return max(16.0, 4 * math.sqrt(positions))


def block_rows(positions: int) -> int:
    """R of the module: rows of one float32 sum, for so many positions an example."""
    if positions == 1:
        return BLOCK_ROWS
    candidates: list[int] = [*range(BLOCK_ROWS, 0, -8), 4, 2]
    for rows in candidates:
        in_block, in_group = (2 * n / positions + 3 for n in (rows, GROUP * rows))
        error = (rows * in_block + LEVELS * in_group) * UNIT * max_spread(positions)
        if 2 * error <= RHO:
            return rows
    return 1


def _gram(rows: F32) -> tuple[F32, F32]:
    """All products of the rows of every example [batch, T, T], and their squared norms [batch, T].

    Shape of rows: [batch, T, width].
    """
    products = np.matmul(rows, rows.transpose(0, 2, 1))
    return products, np.diagonal(products, axis1=1, axis2=2).copy()


def rows_first(value: Tensor) -> Tensor:
    """[batch, ..., n] with all positions in one dimension, or without any."""
    return value if value.dim() == 2 else value.reshape(len(value), -1, value.shape[-1])


def _blanked(value: Tensor, keep: Bools) -> Tensor:
    return torch.where(torch.from_numpy(keep).view(-1, *[1] * (value.dim() - 1)), value, 0)
