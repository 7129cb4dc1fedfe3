"""A spec as JSON: nothing is lost on the way, and what is damaged is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from preprocess.errors import DataError
from preprocess.schema import as_schema, first_difference, from_schema
from preprocess.specs import CENSUS_2000

Change = Callable[[dict[str, Any]], object]
SCHEMA = as_schema(CENSUS_2000)


def changed(change: Change) -> dict[str, Any]:
    schema = copy.deepcopy(SCHEMA)
    change(schema)
    return schema


def test_a_spec_survives_the_way_through_json():
    text = json.dumps(SCHEMA)
    assert from_schema(json.loads(text)) == CENSUS_2000
    assert json.dumps(as_schema(CENSUS_2000)) == text, "the same bytes every time"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(format=3), "must have format 2, got 3"),
        (lambda s: s.update(format=None), "must have format 2, got None"),
        (lambda s: s.update(format=1), "older version: run preprocess and the training again"),
        (lambda s: s.pop("missing_tokens"), "the schema must have missing_tokens"),
        (lambda s: s.pop("header"), "the schema must have header"),
        (lambda s: s.update(unit="household"), "unit must be an object, got 'household'"),
        (lambda s: s.pop("encoding"), "the schema must have encoding"),
        (lambda s: s["columns"].pop(0), "made of used columns, got age"),
        (lambda s: s["columns"].pop(), "label must be one column with impute None, got 'employed'"),
        (lambda s: s["columns"].append(s["columns"][1]), "every name once, got educ twice"),
        (lambda s: s["columns"].append(1), "columns of the schema must be an object, got 1"),
        (
            lambda s: s["columns"][0].update(low=200),
            "..999999999, got 200..115",
        ),
        (lambda s: s["columns"][0].update(high="115"), "high of column age must be an integer"),
        (lambda s: s["columns"][0].update(high=True), "high of column age must be an integer"),
        (lambda s: s["columns"][1].pop("low"), "column educ must have low"),
        (lambda s: s["columns"][1].update(impute=99), "impute of educ must lie in 1..16, got 99"),
        (lambda s: s["columns"][2].update(name="SEX"), "made of used columns, got sex"),
        (lambda s: s["columns"].append({"name": "Z", "low": 0, "high": 1}), "the header, got Z"),
        (lambda s: s["header"].append("Age"), "in lower case, without comma and quote, got 'Age'"),
        (lambda s: s["header"].append('"'), "without comma and quote"),
        (lambda s: s["header"].append("a\n"), "names must be printable"),
        (lambda s: s["header"].append("sex"), "header must have every name once, got sex twice"),
        (lambda s: s["header"].remove("sex"), "columns must be in the header, got sex"),
        (lambda s: s["missing_tokens"].append(None), "missing_tokens of the schema must be text"),
        (lambda s: s.update(missing_tokens="na"), "missing_tokens of the schema must be a list"),
        (lambda s: s["encoding"].update(row_norm=float("nan")), "row_norm must lie in (0, 1000]"),
        (lambda s: s["encoding"].update(row_norm=10**400), "row_norm must lie in (0, 1000]"),
        (lambda s: s["encoding"].update(features=[]), "features must not be empty"),
        (
            lambda s: s["encoding"]["features"][0].update(kind="hash"),
            "or binary, got 'hash'",
        ),
        (lambda s: s["encoding"]["features"][2].update(divide_by=0), "divide_by of sex must lie"),
        (
            lambda s: s["encoding"]["features"][2].update(divide_by=0.5),
            "feature of column sex must",
        ),
        (
            lambda s: s["encoding"]["features"][0]["of"][0].update(lower_edges=[20, 15]),
            "lower_edges of age must rise, 1 to 4096 of them, got [20, 15]",
        ),
        (
            lambda s: s["encoding"]["features"][0]["of"][0].update(lower_edges=[]),
            "lower_edges of age must rise",
        ),
        (
            lambda s: s["encoding"]["features"][2].update(column="employed"),
            "features must be made of used columns, got employed",
        ),
    ],
)
def test_a_schema_that_cannot_be_used_names_what_is_wrong(change: Change, words: str):
    with pytest.raises(DataError) as error:
        from_schema(changed(change))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda s: s["columns"][0].update(low=16), "columns age low: 15 against 16"),
        (lambda s: s["columns"].pop(1), "columns educ: {'name': 'educ', 'kind': 'integer', 'low': "
         "1, 'high': 16, 'impute': 9, 'outside' against nothing"),
        (lambda s: s["columns"].insert(0, {"name": "x"}), "columns x: nothing against {"),
        (lambda s: s["columns"].reverse(), "columns: [{'name': 'age'"),
        (lambda s: s["columns"][0].pop("impute"), "columns age impute: 40 against nothing"),
        (lambda s: s["columns"][-1].pop("impute"), "columns employed: {"),
        (lambda s: s["missing_tokens"].pop(), "missing_tokens 6: 'null' against nothing"),
        (
            lambda s: s["encoding"]["features"][0]["of"][0]["lower_edges"].__setitem__(1, 21),
            "encoding features 0 of age lower_edges 1: 20 against 21",
        ),
        (lambda s: s.update(encoding=1), "encoding: {'row_norm'"),
    ],
)  # fmt: skip
def test_the_first_difference_names_the_column_and_both_values(change: Change, difference: str):
    found = first_difference(SCHEMA, changed(change))
    assert found is not None
    assert found.startswith(difference), found
    assert len(found) < 250
    assert first_difference(SCHEMA, copy.deepcopy(SCHEMA)) is None
