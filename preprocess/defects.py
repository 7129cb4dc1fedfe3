"""Damage a synthetic file on purpose, and count exactly what a cleaner must find in it.

    kind               what becomes of the record                           a cleaner must
    missing            a used column has a missing token, in any spelling   impute; refuse a label
    out-of-range       a used column has a number outside its domain        refuse
    ragged             it has a field too many or too few                   refuse
    non-ascii-digits   a used column has the digits of another script       refuse
    duplicates         it is a copy of an undamaged earlier record          keep it as another one

A record has at most one defect, and over the whole file every kind has exactly its number of
records, though only a chunk of the file is in memory: how many of each kind fall into a chunk is
drawn from the multivariate hypergeometric distribution, as if all of them were dealt like cards.
Only the first record is spared where there are duplicates, so that there is something to copy.

The truth is counted where a defect is made, never by running a cleaner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import fsum
from typing import TYPE_CHECKING, Any, TypeAlias

from preprocess.errors import UsageError
from preprocess.records import RULES
from preprocess.spec import Column
from preprocess.specs import CENSUS_2000

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = {
    "missing": "a used column has a missing token",
    "out-of-range": "a used column has a number outside its domain",
    "ragged": "a field too many or too few",
    "non-ascii-digits": "a used column has the digits of another script",
    "duplicates": "a copy of an earlier record",
}
MAX_ROWS = 999_999_999  # the largest number of cards that numpy deals
NOTE = "people who never lived, damaged on purpose: says nothing about accuracy or privacy"

_USED = [(column, CENSUS_2000.header.index(column.name)) for column in CENSUS_2000.columns]
_SPELLINGS: tuple[Callable[[str], str], ...] = (
    *(str.lower, str.upper, str.capitalize),
    *(lambda token: f" {token}\t", lambda token: f'"{token}"', lambda token: f' " {token} "'),
)
_MISSING = [
    spelling(token).encode()
    for token in sorted(CENSUS_2000.missing_tokens)
    for spelling in _SPELLINGS
]
_ZEROS = "\uff10\u0660\u06f0\u0966\u0e50\U0001d7ce"  # full-width, Arabic-Indic, ..., bold
_SCRIPTS = [{ord("0") + digit: ord(zero) + digit for digit in range(10)} for zero in _ZEROS]


@dataclass(slots=True)
class Truth:
    """What was done to a file, counted while it was done."""

    records: int = 0
    injected: Counter[str] = field(default_factory=Counter)  # by kind
    refused: Counter[str] = field(default_factory=Counter)  # by rule
    imputed: Counter[str] = field(default_factory=Counter)  # by column

    def as_json(self) -> dict[str, Any]:
        """`counts` has the keys of a manifest's counts, and the values that these must have."""
        refused = self.refused.total()
        return {
            "injected": {kind: self.injected[kind] for kind in KINDS},
            "counts": {
                "records": self.records,
                "kept": self.records - refused,
                "refused": refused,
                "refused_by_rule": {
                    rule: self.refused[rule] for rule in RULES if self.refused[rule]
                },
                "imputed_by_column": dict(sorted(self.imputed.items())),
            },
        }


def records_by_kind(rates: Mapping[str, float], num_rows: int) -> dict[str, int]:
    """How many of the records get each kind of defect: round(rate * num_rows).

    Raises UsageError for rates outside [0, 1] and for more defects than records to have them.
    """
    for kind, rate in rates.items():
        if not 0 <= rate <= 1:
            raise UsageError(f"--{kind} must be in [0, 1], got {rate}")
    flags = ", ".join(f"--{kind}" for kind in rates)
    if fsum(rates.values()) > 1:
        raise UsageError(f"{flags} must sum to at most 1, got {fsum(rates.values())}")
    numbers = {kind: round(rates.get(kind, 0) * num_rows) for kind in KINDS}
    available = num_rows - (numbers["duplicates"] > 0)
    if sum(numbers.values()) > available:
        spared = "the first being spared for --duplicates to copy, " * (available < num_rows)
        raise UsageError(
            f"{flags} must damage at most {available} of {num_rows} records, one defect each, "
            f"{spared}got {' + '.join(str(number) for number in numbers.values() if number)}"
        )
    return numbers


def damage(
    pieces: Iterator[bytes], num_rows: int, numbers: Mapping[str, int], seed: int, truth: Truth
) -> Iterator[bytes]:
    """The same file with `numbers` of records damaged by kind; fills the truth.

    The first piece is the header, each other one some whole lines. The generator is not that of the
    people, who stay the same whatever the rates.
    """
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(1,))))
    left = np.array([num_rows - sum(numbers.values()), *(numbers[kind] for kind in KINDS)])
    yield next(pieces)
    model = b""  # the last undamaged record so far
    for piece in pieces:
        lines = piece.splitlines()
        spared = int(truth.records == 0 and numbers["duplicates"] > 0)
        left[0] -= spared
        kinds = np.pad(_deal(generator, left, len(lines) - spared), (spared, 0))
        model = _damage_lines(lines, kinds, model, generator, truth)
        truth.records += len(lines)
        yield b"\n".join([*lines, b""])


def _damage_lines(
    lines: list[bytes],
    kinds: NDArray[np.int64],  # [lines], 0 for none
    model: bytes,
    generator: np.random.Generator,
    truth: Truth,
) -> bytes:
    """Damage lines in place; gives the last undamaged one, or `model` if there is none."""
    import numpy as np

    undamaged = np.flatnonzero(kinds == 0)
    for number, kind in enumerate(KINDS, start=1):
        places = np.flatnonzero(kinds == number)
        num_earlier = np.searchsorted(undamaged, places).tolist()
        draws = generator.integers(1 << 30, size=(len(places), 2)).tolist()
        for place, earlier, (where, how) in zip(places, num_earlier, draws, strict=True):
            if kind == "duplicates":
                lines[place] = lines[undamaged[where % earlier]] if earlier else model
            else:
                fields = lines[place].split(b",")
                _EDITS[kind](fields, where, how, truth)
                lines[place] = b",".join(fields)
        truth.injected[kind] += len(places)
    return lines[undamaged[-1]] if len(undamaged) else model


def _deal(generator: np.random.Generator, left: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """The kinds of the next records, 0 for none; takes them from what is left of each."""
    import numpy as np

    dealt = generator.multivariate_hypergeometric(left, num, method="marginals")
    left -= dealt
    return generator.permutation(np.repeat(np.arange(len(left)), dealt))


def _missing(fields: list[bytes], where: int, how: int, truth: Truth) -> None:
    column, position = _USED[where % len(_USED)]
    fields[position] = _MISSING[how % len(_MISSING)]
    if column.impute is not None:
        truth.imputed[column.name] += 1
    else:
        truth.refused["missing-label" if column.name == CENSUS_2000.label else "missing-value"] += 1


def _out_of_range(fields: list[bytes], where: int, how: int, truth: Truth) -> None:
    column, position = _USED[where % len(_USED)]
    values = _outside(column)
    fields[position] = str(values[how % len(values)]).encode()
    truth.refused["out-of-domain"] += 1


def _outside(column: Column) -> list[int]:
    """Numbers just outside, valid ones if cut to one or two bytes, and the longest."""
    low, high = int(column.low), int(column.high)
    below = [low - 1] if low else []  # -1 would not even be a value
    return [*below, high + 1, low + 2**8, low + 2**16, 999_999_999]


def _ragged(fields: list[bytes], where: int, how: int, truth: Truth) -> None:
    position = where % len(fields)
    if how % 2:
        fields.insert(position, fields[position])
    else:
        del fields[position]
    truth.refused["field-count"] += 1


def _non_ascii_digits(fields: list[bytes], where: int, how: int, truth: Truth) -> None:
    _, position = _USED[where % len(_USED)]
    digits = fields[position].decode()
    fields[position] = digits.translate(_SCRIPTS[how % len(_SCRIPTS)]).encode()
    truth.refused["not-an-integer"] += 1


_Edit: TypeAlias = Callable[[list[bytes], int, int, Truth], None]
"""Changes the fields of one record as two random numbers say, and counts what must be found."""

_EDITS: dict[str, _Edit] = {
    "missing": _missing,
    "out-of-range": _out_of_range,
    "ragged": _ragged,
    "non-ascii-digits": _non_ascii_digits,
}
