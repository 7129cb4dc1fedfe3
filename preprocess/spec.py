"""The public spec: what a file looks like, which values count, how they become features.

Everything here is written down before anybody looks at the data, and is equal for neighbouring data
sets. That is why it costs no privacy: domains, bin edges and imputation constants are chosen from
the questionnaire, never fitted. (`preprocess.statistics` fits some of them for a budget, before a
Spec is made.)

A column holds integers, decimal numbers, or words of a public list of levels; its code is the
number itself, or the place of the word in the list. The label is the number of the class that the
code is in, or, without classes, the code.

The encoding is data as well. `one-hot` crosses its columns: a value belongs to the last bin whose
lower edge it reaches, and a value below the first edge to the first bin. `number` is value divided
by a constant, `scaled` is the place of the value between two public bounds, from 0 to 1, `binary`
is 1 for the named values. Then the row is scaled to the norm `row_norm`. The trainer applies it; we
store codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, TypeAlias, get_args

MAX_NUMBER = 999_999_999  # nine digits
MAX_LEVELS = 65_535
MAX_BINS = 4096
MAX_DIVISOR = 1_000_000
MAX_ROW_NORM = 1000
MAX_RECORDS_PER_UNIT = 1_000_000
SEPARATORS = (",", ";", "\t", "|")

Outside: TypeAlias = Literal["refuse", "skip", "clip"]
UnitKind: TypeAlias = Literal["record", "person", "household"]


@dataclass(frozen=True, slots=True)
class Column:
    """A used column: numbers in low..high, or `levels`, whose codes are 0, 1, ...

    A missing token becomes `impute`, a code, or refuses the record. A number `outside` of low..high
    refuses it too, or skips it (it is not of the people that the spec is about), or is clipped.
    """

    name: str
    low: float
    high: float
    impute: float | None
    levels: tuple[str, ...] = ()
    decimal: bool = False
    outside: Outside = "refuse"

    def __post_init__(self) -> None:
        if not -MAX_NUMBER <= self.low <= self.high <= MAX_NUMBER:
            raise ValueError(
                f"domain of {self.name} must lie in {-MAX_NUMBER}..{MAX_NUMBER}, got "
                f"{self.low}..{self.high}"
            )
        if self.impute is not None and not self.low <= self.impute <= self.high:
            raise ValueError(
                f"impute of {self.name} must lie in {self.low}..{self.high}, got {self.impute}"
            )
        if self.outside not in get_args(Outside):
            raise ValueError(
                f"outside of {self.name} must be {', '.join(get_args(Outside))}, got "
                f"{self.outside!r}"
            )
        if self.levels and (self.outside != "refuse" or len(self.levels) > MAX_LEVELS):
            raise ValueError(
                f"levels of {self.name} must be at most {MAX_LEVELS}, and outside has no meaning "
                f"for them"
            )
        for level in self.levels:
            if not level.isprintable() or level != level.strip() or not level:
                raise ValueError(
                    f"levels of {self.name} must be printable, without blanks around, got {level!r}"
                )
        if twice := sorted({level for level in self.levels if self.levels.count(level) > 1}):
            raise ValueError(f"levels of {self.name} must be there once, got {twice[0]!r} twice")

    @property
    def type(self) -> Literal["uint8", "int32", "float32"]:
        """How its codes are stored."""
        if self.decimal:
            return "float32"
        return "uint8" if self.low >= 0 and self.high <= 255 else "int32"


@dataclass(frozen=True, slots=True)
class Bins:
    """A column cut into len(lower_edges) bins."""

    column: str
    lower_edges: tuple[float, ...]

    def __post_init__(self) -> None:
        edges = self.lower_edges
        in_range = [edge for edge in edges if -MAX_NUMBER <= edge <= MAX_NUMBER]
        if not 1 <= len(edges) <= MAX_BINS or list(edges) != sorted(set(in_range)):
            raise ValueError(
                f"lower_edges of {self.column} must rise, 1 to {MAX_BINS} of them, got "
                f"{str(list(edges))[:200]}"
            )


@dataclass(frozen=True, slots=True)
class OneHot:
    """One 0/1 feature for each combination of bins; the last column varies fastest."""

    of: tuple[Bins, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the columns that it is made of."""
        return tuple(bins.column for bins in self.of)


@dataclass(frozen=True, slots=True)
class Number:
    """One feature: the code divided by a constant."""

    column: str
    divide_by: int

    def __post_init__(self) -> None:
        if not 1 <= self.divide_by <= MAX_DIVISOR:
            raise ValueError(
                f"divide_by of {self.column} must lie in 1..{MAX_DIVISOR}, got {self.divide_by}"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the columns that it is made of."""
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Scaled:
    """One feature: 0 at `low` and below, 1 at `high` and above, linear between them."""

    column: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not -MAX_NUMBER <= self.low < self.high <= MAX_NUMBER:
            raise ValueError(
                f"low of the feature of {self.column} must be below high, both in "
                f"{-MAX_NUMBER}..{MAX_NUMBER}, got {self.low} and {self.high}"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the columns that it is made of."""
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Binary:
    """One feature: 1 for the codes in `positive`, else 0."""

    column: str
    positive: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.positive:
            raise ValueError(f"positive of the feature of {self.column} must not be empty")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the columns that it is made of."""
        return (self.column,)


Feature: TypeAlias = OneHot | Number | Scaled | Binary


@dataclass(frozen=True, slots=True)
class Unit:
    """Whose privacy is protected: a record, or all records with the same value of column `key`.

    Of such a unit at most `max_records` are kept, chosen by keyed hash.
    """

    kind: UnitKind = "record"
    key: str = ""
    max_records: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(UnitKind):
            raise ValueError(
                f"kind of unit must be {', '.join(get_args(UnitKind))}, got {self.kind!r}"
            )
        if (self.kind == "record") != (not self.key):
            raise ValueError(
                f"unit {self.kind} must {'not ' * (self.kind == 'record')}have a key, got "
                f"{self.key!r}"
            )
        if not 1 <= self.max_records <= MAX_RECORDS_PER_UNIT:
            raise ValueError(
                f"max_records of a unit must lie in 1..{MAX_RECORDS_PER_UNIT}, got "
                f"{self.max_records}"
            )


@dataclass(frozen=True, slots=True)
class Join:
    """A second file with the columns `header`; its one line with the same `key` completes a record.

    Used columns that the first file does not have are read from it.
    """

    name: str
    key: str
    header: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a file means. `header` names columns of the file, `columns` the used ones.

    Columns of the header must be present; those that are not used are never checked or stored.
    Without `first_line_names` a file has no header, and its columns are those of `header` in order.
    With `other_columns` it may have more columns, which are not read.
    """

    name: str
    unit: Unit
    header: tuple[str, ...]
    columns: tuple[Column, ...]
    label: str
    missing_tokens: frozenset[str]
    row_norm: float
    features: tuple[Feature, ...]
    classes: tuple[tuple[int, ...], ...] = ()
    separator: str = ","
    first_line_names: bool = True
    other_columns: bool = False
    join: Join | None = None

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        self._check_names(names)
        self._check_label()
        sources = {source for feature in self.features for source in feature.sources}
        if wrong := sorted(sources - (set(names) - {self.label})):
            raise ValueError(f"features must be made of used columns, got {', '.join(wrong)}")
        if not self.features:
            raise ValueError("features must not be empty")
        if not 0 < self.row_norm <= MAX_ROW_NORM:
            raise ValueError(f"row_norm must lie in (0, {MAX_ROW_NORM}], got {self.row_norm}")
        if self.separator not in SEPARATORS:
            raise ValueError(
                f"separator must be {' or '.join(map(repr, SEPARATORS))}, got {self.separator!r}"
            )
        if self.other_columns and not self.first_line_names:
            raise ValueError("other_columns must be false for files without a header")

    def _check_names(self, names: list[str]) -> None:
        headers = {"header": self.header, "header of join": self.join.header if self.join else ()}
        for header in headers.values():
            for name in header:
                if name.startswith("_") and name in names:
                    raise ValueError(f"names of columns must not begin with _, got {name!r}")
                if not name.isprintable() or name != name.strip().lower() or set(name) & set(',"'):
                    raise ValueError(
                        f"names must be printable, in lower case, without comma and quote, got "
                        f"{name!r}"
                    )
        for kind, given in (*headers.items(), ("columns", names)):
            if twice := sorted({name for name in given if list(given).count(name) > 1}):
                raise ValueError(f"{kind} must have every name once, got {', '.join(twice)} twice")
        everywhere = {name for header in headers.values() for name in header}
        if unknown := [name for name in names if name not in everywhere]:
            raise ValueError(f"columns must be in the header, got {', '.join(unknown)}")
        for column in self.columns:
            if alike := [one for one in column.levels if one.lower() in self.missing_tokens]:
                raise ValueError(
                    f"levels of {column.name} must not be missing tokens, got {alike[0]!r}"
                )
        if self.join and set(names) <= set(self.header):
            raise ValueError(f"join {self.join.name} must have a used column of its own, got none")
        if self.unit.key and self.unit.key not in self.header:
            raise ValueError(f"key of unit must be in the header, got {self.unit.key!r}")
        if self.join and not (self.join.key in self.header and self.join.key in self.join.header):
            raise ValueError(f"key of join must be in both headers, got {self.join.key!r}")
        if self.join and self.unit.key not in ("", self.join.key):
            raise ValueError(
                f"key of unit must be that of join, {self.join.key}, got {self.unit.key!r}"
            )

    def _check_label(self) -> None:
        labels = [column for column in self.columns if column.name == self.label]
        if len(labels) != 1 or labels[0].impute is not None:
            raise ValueError(f"label must be one column with impute None, got {self.label!r}")
        codes = [code for one in self.classes for code in one]
        if self.classes and (len(self.classes) < 2 or not all(self.classes)):
            raise ValueError(f"classes must be two or more, none of them empty, got {self.classes}")
        if len(self.classes) > 256:
            raise ValueError(f"classes must be at most 256, got {len(self.classes)}")
        if len(codes) != len(set(codes)):
            raise ValueError(f"classes must not overlap, got {self.classes}")
        if wrong := [code for code in codes if not labels[0].low <= code <= labels[0].high]:
            raise ValueError(
                f"classes must lie in the domain of {self.label}, got {', '.join(map(str, wrong))}"
            )

    @property
    def inputs(self) -> tuple[Column, ...]:
        """The columns that features are made of: all that a prediction needs."""
        sources = {source for feature in self.features for source in feature.sources}
        return tuple(column for column in self.columns if column.name in sources)

    def column(self, name: str) -> Column:
        """The used column of this name."""
        return next(column for column in self.columns if column.name == name)

    @cached_property
    def class_of(self) -> dict[float, int]:
        """The number of the class of each code of the label; empty if the code is the label."""
        return {code: number for number, one in enumerate(self.classes) for code in one}

    @property
    def num_classes(self) -> int:
        """Classes of the label; 0 if it is a number."""
        column = self.column(self.label)
        if self.classes:
            return len(self.classes)
        if column.levels:
            return len(column.levels)
        return 2 if (column.low, column.high) == (0, 1) and not column.decimal else 0

    def stored_as(self, column: Column) -> str:
        """The type of a stored column: for a label in classes that of their numbers."""
        return "uint8" if column.name == self.label and self.classes else column.type


def num_features(spec: Spec) -> int:
    """Length of an encoded row."""
    return sum(
        prod(len(bins.lower_edges) for bins in feature.of) if isinstance(feature, OneHot) else 1
        for feature in spec.features
    )
