"""A spec as a document and back: a TOML file, schema.json of a data set, the same in a model.

All three have the same keys. A document holds all that is needed to read raw files and to encode
them, so that a model can be used far from the program that made it. What a reader cannot rebuild
exactly, it refuses: an unknown key as well as a wrong value.

    format          2
    name            text
    header          names of the columns that a file must have, in lower case, in any order
    other_columns   true: it may have more (default false)
    first_line_names  false: there is no header, `header` gives the columns in order (default true)
    separator       "," (default), ";", "|" or a tab
    missing_tokens  texts, in any case
    columns         the used ones: {name, low, high, impute?, kind? = "integer" | "number",
                    outside? = "refuse" | "skip" | "clip"} or {name, levels = [texts], impute?}
    label           name of a column without impute
    classes         [[values of class 0], [values of class 1], ...]; default: the values themselves
    unit            "record" (default) or {kind = "person" | "household", key, max_records}
    join            {name, key, header}: a second file
    encoding        row_norm, features: {kind = "one-hot", of = [{column, lower_edges?}, ...]},
                    {kind = "number", column, divide_by}, {kind = "scaled", column, low, high},
                    {kind = "binary", column, positive = [values]}

Values of a column with levels are those texts. Without `lower_edges` every value is a bin. A TOML
file may also ask for numbers that are fitted to the data, and pay for them (`preprocess.fitted`).
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, NoReturn

from preprocess.errors import DataError
from preprocess.spec import (
    MAX_BINS,
    Binary,
    Bins,
    Column,
    Feature,
    Join,
    Number,
    OneHot,
    Scaled,
    Spec,
    Unit,
)

SCHEMA_FORMAT = 2

_KINDS = {int: "an integer", float: "a number", str: "text", list: "a list", dict: "an object",
          bool: "true or false"}  # fmt: skip
_KEYS = {
    "the schema": {
        *("format", "name", "header", "other_columns", "first_line_names", "separator", "label"),
        *("missing_tokens", "columns", "classes", "unit", "join", "encoding"),
    },
    "unit": {"kind", "key", "max_records"},
    "join": {"name", "key", "header"},
    "encoding": {"row_norm", "features"},
    "column": {"name", "low", "high", "impute", "kind", "outside", "levels"},
    "bins": {"column", "lower_edges"},
    "one-hot": {"kind", "of"},
    "number": {"kind", "column", "divide_by"},
    "scaled": {"kind", "column", "low", "high"},
    "binary": {"kind", "column", "positive"},
}


def as_schema(spec: Spec) -> dict[str, Any]:
    """The content of schema.json."""
    schema: dict[str, Any] = {
        "format": SCHEMA_FORMAT,
        "name": spec.name,
        "header": list(spec.header),
        "other_columns": spec.other_columns,
        "first_line_names": spec.first_line_names,
        "separator": spec.separator,
        "missing_tokens": sorted(spec.missing_tokens),
        "columns": [_column_as_json(column) for column in spec.columns],
        "label": spec.label,
    }
    if spec.classes:
        schema["classes"] = [_values(codes, spec.column(spec.label)) for codes in spec.classes]
    unit = spec.unit
    schema["unit"] = (
        "record"
        if unit.kind == "record"
        else {"kind": unit.kind, "key": unit.key, "max_records": unit.max_records}
    )
    if join := spec.join:
        schema["join"] = {"name": join.name, "key": join.key, "header": list(join.header)}
    schema["encoding"] = {
        "row_norm": spec.row_norm,
        "features": [_feature_as_json(feature, spec) for feature in spec.features],
    }
    return schema


def from_schema(schema: dict[str, Any]) -> Spec:
    """The inverse of `as_schema`. Raises DataError that names the column, or the key, at fault."""
    if schema.get("format") != SCHEMA_FORMAT:
        older = schema.get("format") in range(1, SCHEMA_FORMAT)
        raise DataError(
            f"schema must have format {SCHEMA_FORMAT}, got {schema.get('format')!r}"
            + (", of an older version: run preprocess and the training again" if older else "")
        )
    where = "the schema"
    _check_keys(schema, where, where)
    columns = {
        column.name: column for column in map(_column, _items(schema, "columns", dict, where))
    }
    if len(columns) != len(schema["columns"]):
        names = [entry["name"] for entry in schema["columns"]]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"schema: columns must have every name once, got {twice} twice")
    label = _get(schema, "label", str, where)
    encoding = _get(schema, "encoding", dict, where)
    _check_keys(encoding, "encoding", "encoding")
    try:
        return Spec(
            name=_get(schema, "name", str, where),
            unit=_unit(schema.get("unit", "record")),
            header=tuple(_items(schema, "header", str, where)),
            columns=tuple(columns.values()),
            label=label,
            classes=_classes(schema, columns.get(label)),
            missing_tokens=frozenset(map(str.lower, _items(schema, "missing_tokens", str, where))),
            separator=_optional(schema, "separator", str, ",", where),
            first_line_names=_optional(schema, "first_line_names", bool, True, where),
            other_columns=_optional(schema, "other_columns", bool, False, where),
            join=_join(schema),
            row_norm=_get(encoding, "row_norm", float, "encoding"),
            features=tuple(
                _feature(entry, columns) for entry in _items(encoding, "features", dict, "encoding")
            ),
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


def _column_as_json(column: Column) -> dict[str, Any]:
    if column.levels:
        impute = None if column.impute is None else column.levels[int(column.impute)]
        return {"name": column.name, "levels": list(column.levels), "impute": impute}
    return {
        "name": column.name,
        "kind": "number" if column.decimal else "integer",
        "low": column.low,
        "high": column.high,
        "impute": column.impute,
        "outside": column.outside,
    }


def _feature_as_json(feature: Feature, spec: Spec) -> dict[str, Any]:
    if isinstance(feature, Number):
        return {"kind": "number", "column": feature.column, "divide_by": feature.divide_by}
    if isinstance(feature, Scaled):
        bounds = {"low": feature.low, "high": feature.high}
        return {"kind": "scaled", "column": feature.column, **bounds}
    if isinstance(feature, Binary):
        positive = _values(feature.positive, spec.column(feature.column))
        return {"kind": "binary", "column": feature.column, "positive": positive}
    bins = [{"column": b.column, "lower_edges": list(b.lower_edges)} for b in feature.of]
    return {"kind": "one-hot", "of": bins}


def _values(codes: tuple[int, ...], column: Column) -> list[Any]:
    return [column.levels[code] if column.levels else code for code in codes]


def _codes(entry: dict[str, Any], values: list[Any], key: str, column: Column) -> tuple[int, ...]:
    """The inverse of `_values`."""
    what = f"{key} of column {column.name}"
    if not column.levels:
        return tuple(_checked(value, int, what) for value in values)
    for value in values:
        if value not in column.levels:
            _wrong(f"{what} must be levels of it, got {value!r:.80}")
    return tuple(column.levels.index(value) for value in values)


def _column(entry: dict[str, Any]) -> Column:
    name = _get(entry, "name", str, "a column")
    where = f"column {name}"
    _check_keys(entry, "column", where)
    impute: Any = entry.get("impute")
    try:
        if "levels" in entry:
            if alien := sorted({"low", "high", "kind", "outside"} & set(entry)):
                _wrong(f"{where} has levels, so it must not have {', '.join(alien)}")
            levels = tuple(_items(entry, "levels", str, where))
            if not levels:
                _wrong(f"levels of {where} must not be empty")
            if impute is not None and impute not in levels:
                _wrong(f"impute of {where} must be one of its levels, got {impute!r:.80}")
            code = None if impute is None else levels.index(impute)
            return Column(name, 0, len(levels) - 1, code, levels)
        kind = _optional(entry, "kind", str, "integer", where)
        if kind not in ("integer", "number"):
            _wrong(f"kind of {where} must be integer or number, got {kind!r:.80}")
        number = int if kind == "integer" else float
        low, high = (_get(entry, key, number, where) for key in ("low", "high"))
        if impute is not None:
            _checked(impute, number, f"impute of {where}")
        outside = _optional(entry, "outside", str, "refuse", where)
        return Column(name, low, high, impute, (), kind == "number", outside)
    except DataError:
        raise
    except ValueError as error:
        _wrong(str(error))


def _unit(value: Any) -> Unit:
    if value == "record":
        return Unit()
    unit = _checked(value, dict, "unit")
    _check_keys(unit, "unit", "unit")
    return Unit(
        _get(unit, "kind", str, "unit"),
        _optional(unit, "key", str, "", "unit"),
        _optional(unit, "max_records", int, 1, "unit"),
    )


def _join(schema: dict[str, Any]) -> Join | None:
    if schema.get("join") is None:
        return None
    join = _get(schema, "join", dict, "the schema")
    _check_keys(join, "join", "join")
    name, key = (_get(join, what, str, "join") for what in ("name", "key"))
    return Join(name, key, tuple(_items(join, "header", str, "join")))


def _classes(schema: dict[str, Any], label: Column | None) -> tuple[tuple[int, ...], ...]:
    if "classes" not in schema or label is None:
        return ()
    if label.decimal:
        _wrong(f"classes must not be given for a label of kind number, {label.name}")
    lists = _items(schema, "classes", list, "the schema")
    return tuple(_codes(schema, values, "classes", label) for values in lists)


def _feature(entry: dict[str, Any], columns: dict[str, Column]) -> Feature:
    kind = entry.get("kind")
    if kind not in ("one-hot", "number", "scaled", "binary"):
        _wrong(f"kind of a feature must be one-hot, number, scaled or binary, got {kind!r:.80}")
    if kind == "one-hot":
        _check_keys(entry, kind, "a one-hot feature")
        return OneHot(
            tuple(_bins(one, columns) for one in _items(entry, "of", dict, "a one-hot feature"))
        )
    name = _get(entry, "column", str, "a feature")
    where = f"the feature of column {name}"
    _check_keys(entry, kind, where)
    column = _of(name, columns)
    if kind == "number":
        return Number(name, _get(entry, "divide_by", int, where))
    if kind == "scaled":
        return Scaled(name, *(_get(entry, key, float, where) for key in ("low", "high")))
    values = _get(entry, "positive", list, where)
    return Binary(name, _codes(entry, values, "positive", column))


def _bins(entry: dict[str, Any], columns: dict[str, Column]) -> Bins:
    name = _get(entry, "column", str, "a feature")
    where = f"the feature of column {name}"
    _check_keys(entry, "bins", where)
    column = _of(name, columns)
    if entry.get("lower_edges") is not None:
        kind = float if column.decimal else int
        return Bins(name, tuple(_items(entry, "lower_edges", kind, where)))
    if column.decimal or column.high - column.low >= MAX_BINS:
        _wrong(f"{where} must have lower_edges: it has more than {MAX_BINS} values")
    return Bins(name, tuple(range(int(column.low), int(column.high) + 1)))


def _of(name: str, columns: dict[str, Column]) -> Column:
    if name not in columns:
        _wrong(f"features must be made of used columns, got {name}")
    return columns[name]


def _items(entry: dict[str, Any], key: str, kind: type, where: str) -> list[Any]:
    """A list of one kind."""
    return [_checked(item, kind, f"{key} of {where}") for item in _get(entry, key, list, where)]


def _optional(entry: dict[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    return _get(entry, key, kind, where) if key in entry else default


def _get(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in entry:
        _wrong(f"{where} must have {key}")
    return _checked(entry[key], kind, f"{key} of {where}")


def _checked(value: Any, kind: type, what: str) -> Any:
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        _wrong(f"{what} must be {_KINDS[kind]}, got {value!r}"[:300])
    return value


def _check_keys(entry: dict[str, Any], kind: str, where: str) -> None:
    if unknown := sorted(set(entry) - _KEYS[kind]):
        nearest = get_close_matches(unknown[0], _KEYS[kind], n=1)
        hint = f", did you mean {nearest[0]}?" if nearest else ""
        _wrong(f"{where} must not have {unknown[0]}{hint}")


def _wrong(message: str) -> NoReturn:
    raise DataError(f"schema: {message}")
