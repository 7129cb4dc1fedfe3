"""The public schema: which columns are used, what values they may have, how they become features.

Everything here is written down before anybody looks at the data, and is equal for neighbouring data
sets. That is why it costs no privacy: domains, bin edges and imputation constants are chosen from
the questionnaire, never fitted.

The encoding is data as well. `one-hot` crosses its columns: a value belongs to the last bin whose
lower edge it reaches, and a value below the first edge to the first bin. `number` is value divided
by a constant. Then the row is scaled to the norm `row_norm`. The trainer applies it; we store
codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

MAX_CODE = 255  # codes are stored in one byte
MAX_DIVISOR = 1_000_000
MAX_ROW_NORM = 1000


@dataclass(frozen=True, slots=True)
class Column:
    """A used column: an integer in low..high. A missing token becomes `impute`, or refuses."""

    name: str
    low: int
    high: int
    impute: int | None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= MAX_CODE:
            raise ValueError(
                f"domain of {self.name} must lie in 0..{MAX_CODE}, got {self.low}..{self.high}"
            )
        if self.impute is not None and not self.low <= self.impute <= self.high:
            raise ValueError(
                f"impute of {self.name} must lie in {self.low}..{self.high}, got {self.impute}"
            )


@dataclass(frozen=True, slots=True)
class Bins:
    """A column cut into len(lower_edges) bins."""

    column: str
    lower_edges: tuple[int, ...]

    def __post_init__(self) -> None:
        edges = self.lower_edges
        if not edges or list(edges) != sorted({e for e in edges if 0 <= e <= MAX_CODE}):
            raise ValueError(
                f"lower_edges of {self.column} must rise within 0..{MAX_CODE}, got {list(edges)}"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a file means. `header` names every column of the file, `columns` the used ones.

    Columns of the header that are not used must be present and are never checked or stored.
    """

    name: str
    unit: Literal["record"]
    header: tuple[str, ...]
    columns: tuple[Column, ...]
    label: str
    missing_tokens: frozenset[str]
    row_norm: float
    features: tuple[OneHot | Number, ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        for name in self.header:
            if not name.isprintable() or name != name.strip().lower() or set(name) & set(',"'):
                raise ValueError(
                    f"names must be printable, in lower case, without comma and quote, got {name!r}"
                )
        for kind, given in (("header", self.header), ("columns", names)):
            if twice := sorted({name for name in given if given.count(name) > 1}):
                raise ValueError(f"{kind} must have every name once, got {', '.join(twice)} twice")
        if unknown := [name for name in names if name not in self.header]:
            raise ValueError(f"columns must be in the header, got {', '.join(unknown)}")
        labels = [column for column in self.columns if column.name == self.label]
        if len(labels) != 1 or labels[0].impute is not None:
            raise ValueError(f"label must be one column with impute None, got {self.label!r}")
        sources = {source for feature in self.features for source in feature.sources}
        if wrong := sorted(sources - (set(names) - {self.label})):
            raise ValueError(f"features must be made of used columns, got {', '.join(wrong)}")
        if not self.features:
            raise ValueError("features must not be empty")
        if not 0 < self.row_norm <= MAX_ROW_NORM:
            raise ValueError(f"row_norm must lie in (0, {MAX_ROW_NORM}], got {self.row_norm}")

    @property
    def inputs(self) -> tuple[Column, ...]:
        """The columns that features are made of: all that a prediction needs."""
        sources = {source for feature in self.features for source in feature.sources}
        return tuple(column for column in self.columns if column.name in sources)


def num_features(spec: Spec) -> int:
    """Length of an encoded row."""
    return sum(
        1 if isinstance(feature, Number) else prod(len(bins.lower_edges) for bins in feature.of)
        for feature in spec.features
    )


_AGE_16 = Bins("age", tuple(range(15, 91, 5)))
_AGE_7 = Bins("age", (18, 25, 35, 45, 55, 65, 75))
_EDUC_16 = Bins("educ", tuple(range(1, 17)))
_EDUC_5 = Bins("educ", (1, 9, 10, 13, 14))

# A missing answer becomes the common one: public constants, not the modes of some file.
_BITS = {
    "sex": 1,
    "latino": 0,
    "black": 0,
    "asian": 0,
    "married": 0,
    "divorced": 0,
    "uscitizen": 1,
    "children": 0,
    "disability": 0,
    "militaryservice": 0,
    "englishability": 1,
}


def _bit(column: str) -> Bins:
    return Bins(column, (0, 1))


CENSUS_2000 = Spec(
    name="census-2000",
    unit="record",
    header=(
        *("state", "puma", "sex", "age", "educ", "income", "latino", "black", "asian", "married"),
        *("divorced", "uscitizen", "children", "disability", "militaryservice", "employed"),
        *("englishability", "fips"),
    ),  # state, puma and fips are not used; income would give the label away
    columns=(
        Column("age", 15, 115, 40),
        Column("educ", 1, 16, 9),
        *(Column(name, 0, 1, impute) for name, impute in _BITS.items()),
        Column("employed", 0, 1, None),
    ),
    label="employed",
    missing_tokens=frozenset({"", "na", "n/a", "nan", "null", "?", "."}),
    row_norm=2.6,
    features=(
        OneHot((_AGE_16,)),
        OneHot((_EDUC_16,)),
        *(Number(name, 1) for name in _BITS),
        Number("age", 100),
        OneHot((_AGE_7, _bit("disability"))),
        OneHot((_AGE_7, _bit("sex"), _bit("children"))),
        OneHot((_AGE_7, _bit("married"), _bit("sex"))),
        OneHot((_bit("disability"), _EDUC_5)),
    ),
)
"""The 18 columns of the 2000 census extracts; 124 features."""
