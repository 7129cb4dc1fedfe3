"""A spec as JSON and back: schema.json of a data set, and the same inside a trained model.

It holds all that is needed to read raw files and to encode them, so that a model can be used far
from the program that made it. What a reader cannot rebuild exactly, it refuses.
"""

from __future__ import annotations

from typing import Any

from preprocess.errors import DataError
from preprocess.spec import Bins, Column, Number, OneHot, Spec

SCHEMA_FORMAT = 1

_KINDS = {int: "an integer", float: "a number", str: "text", list: "a list", dict: "an object"}


def as_schema(spec: Spec) -> dict[str, Any]:
    """The content of schema.json."""
    return {
        "format": SCHEMA_FORMAT,
        "name": spec.name,
        "unit": spec.unit,
        "header": list(spec.header),
        "label": spec.label,
        "missing_tokens": sorted(spec.missing_tokens),
        "columns": [
            {"name": c.name, "low": c.low, "high": c.high, "impute": c.impute} for c in spec.columns
        ],
        "encoding": {
            "row_norm": spec.row_norm,
            "features": [_feature_as_json(feature) for feature in spec.features],
        },
    }


def from_schema(schema: dict[str, Any]) -> Spec:
    """The inverse of `as_schema`. Raises DataError that names the column, or the key, at fault."""
    if schema.get("format") != SCHEMA_FORMAT:
        raise DataError(f"schema must have format {SCHEMA_FORMAT}, got {schema.get('format')!r}")
    if absent := [key for key in ("header", "missing_tokens") if key not in schema]:
        raise DataError(
            f"schema was made by an older version, without {' and '.join(absent)}: raw files "
            f"cannot be read by it; run preprocess and the training again"
        )
    if schema.get("unit") != "record":
        raise DataError(f"schema: unit must be 'record', got {schema.get('unit')!r}")
    encoding = _get(schema, "encoding", dict, "the schema")
    try:
        return Spec(
            name=_get(schema, "name", str, "the schema"),
            unit="record",
            header=tuple(_items(schema, "header", str, "the schema")),
            columns=tuple(map(_column, _items(schema, "columns", dict, "the schema"))),
            label=_get(schema, "label", str, "the schema"),
            missing_tokens=frozenset(_items(schema, "missing_tokens", str, "the schema")),
            row_norm=_get(encoding, "row_norm", float, "encoding"),
            features=tuple(map(_feature, _items(encoding, "features", dict, "encoding"))),
        )
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"schema: {error}") from None


def first_difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two schemas first differ, with both values; None if they are equal."""
    if one == other:
        return None
    ours, theirs = _by_name(one), _by_name(other)
    if ours is not None and theirs is not None:
        for key in {**ours, **theirs}:
            if found := first_difference(ours.get(key), theirs.get(key), f"{where} {key}".strip()):
                return found
    left, right = ("nothing" if value is None else f"{value!r:.80}" for value in (one, other))
    return f"{where}: {left} against {right}"


def _by_name(value: Any) -> dict[str, Any] | None:
    """The members of an object, or of a list, where a column goes by its name."""
    if isinstance(value, list):
        names = [
            isinstance(item, dict) and (item.get("name") or item.get("column")) for item in value
        ]
        return {
            str(name or i): item for i, (name, item) in enumerate(zip(names, value, strict=True))
        }
    return value if isinstance(value, dict) else None


def _feature_as_json(feature: OneHot | Number) -> dict[str, Any]:
    if isinstance(feature, Number):
        return {"kind": "number", "column": feature.column, "divide_by": feature.divide_by}
    bins = [{"column": b.column, "lower_edges": list(b.lower_edges)} for b in feature.of]
    return {"kind": "one-hot", "of": bins}


def _column(entry: dict[str, Any]) -> Column:
    name = _get(entry, "name", str, "a column")
    where = f"column {name}"
    low, high = (_get(entry, key, int, where) for key in ("low", "high"))
    impute = _get(entry, "impute", int, where) if entry.get("impute", 0) is not None else None
    return Column(name, low, high, impute)


def _feature(entry: dict[str, Any]) -> OneHot | Number:
    if entry.get("kind") == "number":
        column = _get(entry, "column", str, "a feature")
        return Number(column, _get(entry, "divide_by", int, f"the feature of column {column}"))
    if entry.get("kind") == "one-hot":
        return OneHot(tuple(map(_bins, _items(entry, "of", dict, "a one-hot feature"))))
    raise DataError(f"schema: kind of a feature must be number or one-hot, got {entry.get('kind')}")


def _bins(entry: dict[str, Any]) -> Bins:
    column = _get(entry, "column", str, "a feature")
    return Bins(column, tuple(_items(entry, "lower_edges", int, f"the feature of column {column}")))


def _items(entry: dict[str, Any], key: str, kind: type, where: str) -> list[Any]:
    """A list of one kind."""
    return [_checked(item, kind, f"{key} of {where}") for item in _get(entry, key, list, where)]


def _get(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in entry:
        raise DataError(f"schema: {where} must have {key}")
    return _checked(entry[key], kind, f"{key} of {where}")


def _checked(value: Any, kind: type, what: str) -> Any:
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise DataError(f"schema: {what} must be {_KINDS[kind]}, got {value!r}"[:300])
    return value
