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
off by at most (num_terms) 2^-24 S^2. Examples with S > MAX_SPREAD times their norm are left to the
reference engine; for the rest float32 sums over blocks of R rows, T of them an example, are off by
R (2 R / T + 3) 2^-24 MAX_SPREAD C in the blocks that one example reaches into, which touch so many
examples, and likewise those over groups of blocks; R is chosen so that both are below RHO C / 2.
What underflows in a square or in a product is at most 2^-126 each, which is added to the norms too.

Outer with few parameters and many positions (P <= 2 T^2, as in convolutions) is cheaper built, and
becomes Each (Bu, Mao and Xu, "Scalable and efficient training of large convolutional neural
networks with differential privacy", 2022, section 4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpsgd.products import BLOCK_ROWS, GROUP, LEVELS, RHO, TINY, UNIT, Products, squares

MAX_SPREAD = 32.0
HUGE_NORM_SQUARED = 1e24
FLOOR = 2.0**-90  # added to the sum of all norm^2: more than 2^36 underflows
PIECE = 32  # of a row of which squares are added in float32
PRODUCTS = Products()

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Term(ABC):
    """Gradients of `parameters`, one example after the other [batch]."""

    parameters: tuple[Tensor, ...]

    @abstractmethod
    def bounds(self) -> tuple[F32, F32]:
        """Upper bounds of norm^2 and of spread^2 for each example [batch].

        Where nothing can cancel in a float32 sum, the spread is the norm.
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

    def bounds(self) -> tuple[F32, F32]:
        """See the module."""
        a, g = self.a, self.g
        rounding = (a.shape[-1] + g.shape[-1] + 16) * UNIT
        if a.dim() == 2:
            squared = squares(a.numpy())
            squared += a.shape[-1] * TINY + self.has_bias
            others = squares(g.numpy())
            others += g.shape[-1] * TINY
            squared *= others
            squared *= 1 + rounding
            return squared, squared
        a_squared = torch.linalg.vector_norm(a, dim=-1).square_()
        g_squared = torch.linalg.vector_norm(g, dim=-1).square_()
        a_squared += a.shape[-1] * TINY + self.has_bias
        g_squared += g.shape[-1] * TINY
        a_length, g_length = a_squared.sqrt().sum(1), g_squared.sqrt().sum(1)
        lost = a_length.square_().mul_(g.shape[-1] * TINY)
        lost += g_length.square_().mul_(a.shape[-1] * TINY)
        spread = a_squared.mul_(g_squared).sqrt_().sum(1).square_()
        products = torch.bmm(a, a.transpose(1, 2))
        if self.has_bias:
            products += 1
        products *= torch.bmm(g, g.transpose(1, 2))
        rounding += (len(products[0]) + 4) * UNIT  # of the sums over s; those over t are exact
        exact = products.sum(2).sum(1, dtype=torch.float64)
        norms = (exact.clamp_min_(0) + 1.01 * rounding * spread + lost).float()
        return norms.numpy(), (spread * 1.01).numpy()

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

    def bounds(self) -> tuple[F32, F32]:
        """Squares are added in float32 in short pieces, and these in float64."""
        norms = torch.zeros(len(self.gradients[0]), dtype=torch.float64)
        for gradient in self.gradients:
            whole = gradient.shape[1] // PIECE * PIECE
            if whole:
                pieces = gradient[:, :whole].reshape(len(gradient), -1, PIECE)
                lengths = torch.linalg.vector_norm(pieces, dim=2)
                norms += lengths.square_().sum(1, dtype=torch.float64)
            if whole < gradient.shape[1]:
                norms += torch.linalg.vector_norm(gradient[:, whole:], dim=1).square_()
        found = (norms * (1 + (PIECE + 16) * UNIT)).float().numpy()
        return found, found

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

    def bounds(self) -> tuple[F32, F32]:
        """Positions with the same row count together; what is summed, is in float64."""
        same = self.ids[:, :, None] == self.ids[:, None, :]
        products = torch.bmm(self.g, self.g.transpose(1, 2)) * same
        lengths = torch.linalg.vector_norm(self.g, dim=2)
        slack = (lengths[:, :, None] * lengths[:, None, :] * same).sum((1, 2))
        exact = products.sum((1, 2), dtype=torch.float64).clamp_min_(0)
        norms = (exact + (self.g.shape[2] + 20) * UNIT * slack).float().numpy()
        return norms, norms

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
    settled: list[Term] = []
    groups: list[list[Term]] = []
    for term in terms:
        ids = {id(p) for p in term.parameters}
        mine = [g for g in groups if any(ids & {id(p) for p in t.parameters} for t in g)]
        groups = [g for g in groups if g not in mine] + [[t for g in mine for t in g] + [term]]
    for group in groups:
        if len(group) > 1:
            outers = [t for t in group if isinstance(t, Outer)]
            if all(_same(t.parameters, group[0].parameters) for t in outers) and outers == group:
                group = [reduce(Outer.joined, outers)]
            else:
                group = [_added([term.built() for term in group])]
        (one,) = group
        settled.append(one.settled() if isinstance(one, Outer) else one)
    return settled


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


def block_rows(positions: int) -> int:
    """Rows of one float32 sum, for so many positions an example: see the module."""
    if positions == 1:
        return BLOCK_ROWS
    rows = BLOCK_ROWS
    while rows > 1:
        in_blocks, in_groups = (2 * n / positions + 3 for n in (rows, GROUP * rows))
        if 2 * (rows * in_blocks + LEVELS * in_groups) * UNIT * MAX_SPREAD <= RHO:
            break
        rows //= 2
    return rows


def rows_first(value: Tensor) -> Tensor:
    """[batch, ..., n] with all positions in one dimension, or without any."""
    return value if value.dim() == 2 else value.reshape(len(value), -1, value.shape[-1])


def _blanked(value: Tensor, keep: Bools) -> Tensor:
    return torch.where(torch.from_numpy(keep).view(-1, *[1] * (value.dim() - 1)), value, 0)
