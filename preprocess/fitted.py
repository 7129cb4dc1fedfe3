"""Numbers of a spec that are fitted to the data: found in the document, paid for, put in.

A fitted number is a release. A document may ask for

    impute = {fitted = "mean"}, "median" or "mode"       of a column
    lower_edges = {fitted = "quantiles", bins = 8}       of a one-hot feature of a numeric column
    low = {fitted = "quantile", at = 0.05}, high alike   of a scaled feature
    levels = {fitted = "frequent", of = [...], at_least = 100}    from a public list of candidates

and then must have a table `private_statistics` with epsilon and delta, for all of them together.
All are read off noisy counts and sums of each column, over its public domain (or public
candidates); see `preprocess.statistics`. What is done with these is post-processing and free.
Without the table, fitted numbers are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from preprocess.errors import DataError, UsageError

TABLE = "private_statistics"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What is known of a column: noisy counts of cells, with a value that stands for each; a mean.

    What was not asked for is empty or None.
    """

    values: list[Any]
    counts: list[int]
    mean: float | None = None

    def mode(self) -> Any:
        """The value of the largest count."""
        return self.values[max(range(len(self.counts)), key=self.counts.__getitem__)]

    def quantile(self, at: float) -> Any:
        """The first value that has at least this part of the counts at or below it."""
        needed = max(at * sum(self.counts), 1)
        for value, below in zip(self.values, accumulate(self.counts), strict=True):
            if below >= needed:
                return value
        return self.values[-1]

    def frequent(self, at_least: int) -> list[Any]:
        """The values that have so many."""
        pairs = zip(self.values, self.counts, strict=True)
        return [value for value, count in pairs if count >= at_least]


Needs: TypeAlias = dict[str, set[str]]
"""By column, what is needed of it: `cells`, `mean`."""

Draw: TypeAlias = Callable[[dict[str, Any], Needs], dict[str, Statistics]]
"""From a document without fitted numbers, and needs, to noisy statistics by column."""


def fitted_columns(document: dict[str, Any]) -> list[str]:
    """Names of the columns that a document fits something of. Raises for what is not understood.

    UsageError if there are some without a budget, DataError for a budget without any.
    """
    columns = list(dict.fromkeys(item.column for item in _items(document)))
    if columns and TABLE not in document:
        first = _items(document)[0]
        raise UsageError(
            f"{first.key} of column {first.column} is fitted to the data, which is a release: give "
            f"a public constant, or pay for it: [{TABLE}] with epsilon and delta"
        )
    for item in _items(document):
        _check_column(item, document)
    if TABLE in document and not columns:
        raise DataError(f"schema: {TABLE} has no use, nothing is fitted")
    return columns


def without_fitted(document: dict[str, Any]) -> dict[str, Any]:
    """The document with public placeholders, good enough to read the columns with."""
    plain = copy.deepcopy(document)
    plain.pop(TABLE, None)
    for item in _items(plain):
        item.holder[item.key] = _placeholder(item, plain)
        if item.holder[item.key] is None:
            del item.holder[item.key]
    return plain


def fit(document: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """The document with every fitted number put in."""
    needs: Needs = {}
    for item in _items(document):
        kind = "mean" if item.request["fitted"] == "mean" else "cells"
        needs.setdefault(item.column, set()).add(kind)
    found = draw(without_fitted(document), needs)
    resolved = copy.deepcopy(document)
    resolved.pop(TABLE, None)
    for item in sorted(_items(resolved), key=lambda item: item.key != "levels"):
        item.holder[item.key] = _read_off(item, found[item.column])
    for feature in _tables(resolved["encoding"]["features"]):
        low, high = feature.get("low"), feature.get("high")
        if low is not None and high is not None and low >= high:  # quantiles that coincide
            domain = next(c for c in resolved["columns"] if c["name"] == feature["column"])
            feature |= {"low": domain["low"], "high": domain["high"]}
    for column in resolved["columns"]:  # an imputed level may not be frequent enough
        if "levels" in column and column.get("impute") not in (None, *column["levels"]):
            column["impute"] = found[column["name"]].mode()
    return resolved


@dataclass(frozen=True)
class _Item:
    holder: dict[str, Any]  # of the document
    key: str
    column: str

    @property
    def request(self) -> dict[str, Any]:
        found: dict[str, Any] = self.holder[self.key]
        return found


_KINDS = {
    "impute": {"mean", "median", "mode"},
    "lower_edges": {"quantiles"},
    "low": {"quantile"},
    "high": {"quantile"},
    "levels": {"frequent"},
}


def _items(document: dict[str, Any]) -> list[_Item]:
    """Every table with a key `fitted` in the document, and where it is."""
    found = []
    holders: list[tuple[dict[str, Any], Any, tuple[str, ...]]]
    encoding = document.get("encoding")
    features = encoding.get("features", []) if isinstance(encoding, dict) else []
    holders = [(one, one.get("name"), ("impute", "levels", "low", "high"))
               for one in _tables(document.get("columns"))]  # fmt: skip
    holders += [(one, one.get("column"), ("low", "high", "positive")) for one in _tables(features)]
    for feature in _tables(features):
        of = _tables(feature.get("of"))
        holders += [(one, one.get("column"), ("lower_edges",)) for one in of]
    domains = [id(one) for one in _tables(document.get("columns"))]
    for holder, column, keys in holders:
        for key in keys:
            value = holder.get(key)
            if not (isinstance(value, dict) and "fitted" in value):
                continue
            allowed = _KINDS.get(key, set())
            if id(holder) in domains and key in ("low", "high"):
                raise DataError(
                    f"schema: {key} of column {column} is its domain, which must be public; bounds "
                    f"of a scaled feature may be fitted"
                )
            if not isinstance(value["fitted"], str) or value["fitted"] not in allowed:
                raise DataError(
                    f"schema: fitted {key} of column {column} must be "
                    f"{' or '.join(sorted(allowed)) or 'a public constant'}, got "
                    f"{value['fitted']!r:.80}"
                )
            _check_request(key, str(column), value)
            found.append(_Item(holder, key, str(column)))
    return found


def _check_request(key: str, column: str, request: dict[str, Any]) -> None:
    where = f"fitted {key} of column {column}"
    wanted = {"lower_edges": {"bins"}, "low": {"at"}, "high": {"at"}, "levels": {"of", "at_least"}}
    if set(request) != {"fitted", *wanted.get(key, set())}:
        needed = ", ".join(["fitted", *sorted(wanted.get(key, set()))])
        raise DataError(f"schema: {where} must have {needed}, got {', '.join(request)}")
    bins, at, of = request.get("bins", 2), request.get("at", 0.5), request.get("of", ["a"])
    at_least = request.get("at_least", 1)
    if type(bins) is not int or not 2 <= bins <= 256:
        raise DataError(f"schema: bins of {where} must be an integer in 2..256, got {bins!r:.80}")
    if type(at) not in (int, float) or not 0 <= at <= 1:
        raise DataError(f"schema: at of {where} must be in [0, 1], got {at!r:.80}")
    if not isinstance(of, list) or not of or not all(isinstance(one, str) for one in of):
        raise DataError(f"schema: of of {where} must be a list of texts, the public candidates")
    if type(at_least) is not int or at_least < 1:
        raise DataError(
            f"schema: at_least of {where} must be an integer above 0, got {at_least!r:.80}"
        )


def _check_column(item: _Item, document: dict[str, Any]) -> None:
    if item.column == document.get("label"):
        raise DataError(
            f"schema: the label, {item.column}, must be public, got a fitted {item.key}"
        )
    columns = _tables(document.get("columns"))
    fits_levels = item.key == "levels"
    features = _tables(document.get("encoding", {}).get("features"))
    if fits_levels and any(
        one.get("positive") and one.get("column") == item.column for one in features
    ):
        raise DataError(
            f"schema: levels of column {item.column} must be public, a binary feature names some"
        )
    has_levels = any("levels" in one for one in columns if one.get("name") == item.column)
    if has_levels and item.request["fitted"] not in ("mode", "frequent"):
        raise DataError(
            f"schema: fitted {item.key} of column {item.column} must be a mode, or public: it has "
            f"levels"
        )


def _tables(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _placeholder(item: _Item, document: dict[str, Any]) -> Any:
    if item.key == "levels":
        return item.request["of"]
    if item.key == "impute":
        return None
    columns = _tables(document.get("columns"))
    column: dict[str, Any] = next((c for c in columns if c.get("name") == item.column), {})
    if item.key == "lower_edges":
        return [column.get("low", 0)]
    return column.get(item.key, 0)


def _read_off(item: _Item, found: Statistics) -> Any:
    request = item.request
    if item.key == "levels":
        return found.frequent(request["at_least"]) or [found.mode()]
    if request["fitted"] == "mode":
        return found.mode()
    if request["fitted"] == "mean":
        return found.mean
    if item.key == "lower_edges":
        bins = request["bins"]
        return sorted({found.quantile(number / bins) for number in range(bins)})
    return found.quantile(0.5 if request["fitted"] == "median" else request["at"])
