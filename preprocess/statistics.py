"""Noisy counts and sums: the only way from data into a spec, and its price.

A column is counted over public cells: the values of its domain, MAX_CELLS equal parts of a large
one, or its candidates. For a mean its values are summed, brought into [-1, 1] by the public bounds
of its domain, and its records counted. One record more or less changes each of c such queries (the
cells of a column, a sum, a count) by at most 1 in the Euclidean norm, and all together by sqrt(c).
Every number gets a Gaussian of standard deviation z sqrt(c), rounded: counts to integers, sums to
multiples of 1 / GRID. They lie on these grids themselves, so this is rounding after the Gaussian
mechanism of noise multiplier z, which costs nothing; it enters the ledger as one step of sample
rate 1 before a record is read.

    epsilon = rho + 2 sqrt(rho ln(1/delta)),  rho = 1 / (2 z^2)

(Bun and Steinke, "Concentrated differential privacy", 2016, Propositions 1.3 and 1.6). Normals
are made from 128 random bits of the system by the polar method of Marsaglia (1964) in 50 decimal
digits, so that what is released differs from rounded Gaussians by less than IMPRECISION in total
variation.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from preprocess import ledger
from preprocess.blocks import read
from preprocess.errors import DataError, UsageError
from preprocess.fitted import TABLE, Needs, Statistics
from preprocess.records import Lookup
from preprocess.schema import from_schema
from preprocess.sources import Source
from preprocess.spec import Column, Number, Spec

MAX_CELLS = 128
GRID = 1 << 20
RANDOM_BITS = 128
DIGITS = 50
IMPRECISION = 2.0**-90
MIN_EPSILON, MAX_EPSILON = 1e-4, 10.0
MIN_DELTA, MAX_DELTA = 1e-30, 1e-3


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all fitted numbers of a spec may cost together."""

    epsilon: float
    delta: float

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise for sensitivity 1; see above."""
        log = math.log(1 / self.delta)
        root_rho = self.epsilon / (math.sqrt(log + self.epsilon) + math.sqrt(log))
        return 1 / (math.sqrt(2) * root_rho)


def budget_of(document: dict[str, Any]) -> Budget:
    """The budget in a document. Raises DataError."""
    table = document.get(TABLE)
    if not isinstance(table, dict) or set(table) != {"epsilon", "delta"}:
        raise DataError(f"schema: {TABLE} must have epsilon and delta, got {table!r:.200}")
    limits = {"epsilon": (MIN_EPSILON, MAX_EPSILON), "delta": (MIN_DELTA, MAX_DELTA)}
    for name, (low, high) in limits.items():
        value = table[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and low <= value <= high):
            raise DataError(
                f"schema: {name} of {TABLE} must be in {low:g}..{high:g}, got {value!r:.80}"
            )
    return Budget(epsilon=table["epsilon"], delta=table["delta"])


def charge(path: Path, budget: Budget, unit: str) -> str:
    """Write the release into the ledger, on disk before this returns; gives its name there.

    Raises UsageError.
    """
    run = f"statistics-{uuid4()}"
    try:
        ledger.check(path)
        for entry in ledger.one_release(
            run, unit, budget.noise_multiplier, budget.delta, IMPRECISION
        ):
            ledger.append(path, entry)
    except OSError as error:
        raise UsageError(f"--ledger must be writable, got {path}: {error.strerror}") from None
    return run


def draw(
    document: dict[str, Any],
    needs: Needs,
    sources: Sequence[Source],
    lookup: Lookup | None,
    budget: Budget,
) -> dict[str, Statistics]:
    """Noisy statistics by column. The caller has charged for them."""
    spec = from_schema(document)
    num_queries = sum(2 if need == "mean" else 1 for kinds in needs.values() for need in kinds)
    deviation = budget.noise_multiplier * math.sqrt(num_queries)
    found = {}
    for name, kinds in needs.items():
        column = spec.column(name)
        values, edges = _cells(column)
        counts, total, number = _read(column, edges, spec, sources, lookup)
        noisy = [int(count) + noise(deviation) for count in counts] if "cells" in kinds else []
        mean = None
        if "mean" in kinds:
            mean = _mean(column, total + noise(deviation * GRID), number + noise(deviation))
        found[name] = Statistics(values=values, counts=noisy, mean=mean)
    return found


def _mean(column: Column, total: int, number: int) -> float:
    """From a noisy sum and count; inside the domain whatever the noise."""
    part = min(max(total / GRID / max(number, 1), -1), 1)
    mean = (column.low + column.high) / 2 + part * (column.high - column.low) / 2
    mean = min(max(mean, column.low), column.high)  # rounding could take it beyond
    return mean if column.decimal else round(mean)


def noise(deviation: float) -> int:
    """A Gaussian of mean 0, rounded to an integer."""
    with localcontext(Context(prec=DIGITS)):
        while True:
            x, y = (_uniform() for _ in range(2))
            square = x * x + y * y
            if 0 < square < 1:
                value = x * (-2 * square.ln() / square).sqrt() * Decimal(deviation)
                return int(value.to_integral_value())


def _uniform() -> Decimal:
    """In (-1, 1), of 128 random bits."""
    whole = 1 << RANDOM_BITS
    return Decimal(2 * secrets.randbelow(whole) + 1 - whole) / whole


def _cells(column: Column) -> tuple[list[Any], list[float]]:
    """The value that stands for each public cell, and the lower edges of cells."""
    if column.levels:
        return list(column.levels), list(range(len(column.levels)))
    low, high = column.low, column.high
    if not column.decimal and high - low < MAX_CELLS:
        whole = list(range(int(low), int(high) + 1))
        return whole, list(map(float, whole))
    width = (high - low) / MAX_CELLS
    edges = [low + number * width for number in range(MAX_CELLS)]
    centres = [min(edge + width / 2, high) for edge in edges]
    return (centres if column.decimal else [round(centre) for centre in centres]), edges


def _read(
    column: Column,
    edges: list[float],
    spec: Spec,
    sources: Sequence[Source],
    lookup: Lookup | None,
) -> tuple[NDArray[np.int64], int, int]:
    """Of records whose value in this column is right: counts [cells], sum in 1 / GRID, number."""
    alone = replace(spec, features=(Number(column.name, 1),))
    middle, half = (column.low + column.high) / 2, max((column.high - column.low) / 2, 1e-9)
    counts = np.zeros(len(edges), np.int64)
    total = number = 0
    for source in sources:
        for block in read(source, alone, lookup, features_only=True):
            values = block.codes[column.name].astype(np.float64)
            cells = np.searchsorted(edges, values, side="right") - 1
            counts += np.bincount(np.clip(cells, 0, None), minlength=len(edges))
            places = np.clip((values - middle) / half, -1, 1)
            total += int(np.rint(places * GRID).astype(np.int64).sum())
            number += len(values)
    return counts, total, number
