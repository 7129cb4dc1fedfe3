"""A spec as a TOML file: what it says is what a record means, and what is wrong in it is named."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocess import __main__ as command
from preprocess.errors import DataError
from preprocess.header import parse_header
from preprocess.records import Record, Refusal, read_record
from preprocess.schema import as_schema, from_schema
from preprocess.spec import Spec
from preprocess.specs import read_spec

TEXT = """
format = 2
name = "trial"
separator = ";"
other_columns = true
header = ["key", "degrees", "steps", "word", "answer"]
missing_tokens = ["", "N/A"]
label = "answer"
classes = [["no", "never"], ["yes"]]
columns = [
    {name = "degrees", kind = "number", low = -273.15, high = 100, impute = 20.5, outside = "clip"},
    {name = "steps", low = -5, high = 300, outside = "skip"},
    {name = "rooms", low = 1, high = 9, impute = 3},
    {name = "word", levels = ["?", "a b", "a;b", "1"], impute = "1"},
    {name = "answer", levels = ["yes", "no", "never", "perhaps"]},
]
unit = {kind = "household", key = "key", max_records = 2}
join = {name = "homes", key = "key", header = ["key", "rooms", "street"]}
[encoding]
row_norm = 1
features = [
    {kind = "scaled", column = "degrees", low = -273.15, high = 100},
    {kind = "one-hot", of = [{column = "rooms"}, {column = "degrees", lower_edges = [-273.15, 1]}]},
    {kind = "binary", column = "word", positive = ["a b", "?"]},
    {kind = "number", column = "steps", divide_by = 300},
]
"""
SPEC = from_schema(tomllib.loads(TEXT))
LAYOUT = parse_header(b"extra;key;degrees;steps;word;answer", SPEC)
HOMES: dict[str, tuple[str, ...] | None] = {"k": ("4",), "odd": ("x",), "none": ("n/a",),
                                            "two": None}  # fmt: skip
GOOD = {"extra": "?", "key": "k", "degrees": "12.5", "steps": "7", "word": "a b", "answer": "yes"}


def read(**fields: str) -> Record | Refusal | None:
    line = ";".join((GOOD | fields).values())
    return read_record(line.encode(), LAYOUT, HOMES)


@pytest.mark.parametrize(
    ("fields", "codes", "imputed"),
    [
        ({}, (12.5, 7, 4, 1, 1), ()),
        ({"degrees": "-1000"}, (-273.15, 7, 4, 1, 1), ()),
        ({"degrees": "1e9"}, (100, 7, 4, 1, 1), ()),
        ({"degrees": "-2.5E-1"}, (-0.25, 7, 4, 1, 1), ()),
        ({"degrees": " n/a "}, (20.5, 7, 4, 1, 1), ("degrees",)),
        ({"steps": "-5"}, (12.5, -5, 4, 1, 1), ()),
        ({"key": "none"}, (12.5, 7, 3, 1, 1), ("rooms",)),
        ({"word": "?"}, (12.5, 7, 4, 0, 1), ()),
        ({"word": '"a;b"'}, (12.5, 7, 4, 2, 1), ()),
        ({"word": ""}, (12.5, 7, 4, 3, 1), ("word",)),
        ({"answer": "never"}, (12.5, 7, 4, 1, 0), ()),
    ],
)
def test_a_record_that_is_kept_becomes_what_the_spec_says(
    fields: dict[str, str], codes: tuple[float, ...], imputed: tuple[str, ...]
):
    assert read(**fields) == Record(codes, imputed, fields.get("key", "k"))


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"degrees": "1."}, ("degrees", "1.", "not-a-number")),
        ({"degrees": ".5"}, ("degrees", ".5", "not-a-number")),
        ({"degrees": "+1"}, ("degrees", "+1", "not-a-number")),
        ({"degrees": "nan"}, ("degrees", "nan", "not-a-number")),
        ({"degrees": "1_0.5"}, ("degrees", "1_0.5", "not-a-number")),
        ({"degrees": "1,5"}, ("degrees", "1,5", "not-a-number")),
        ({"degrees": "1e100"}, ("degrees", "1e100", "not-a-number")),
        ({"degrees": "\uff11"}, ("degrees", "\uff11", "not-a-number")),
        ({"steps": "301"}, ("steps", "", "not-in-universe")),
        ({"steps": "-6"}, ("steps", "", "not-in-universe")),
        ({"steps": "--5"}, ("steps", "--5", "not-an-integer")),
        ({"steps": "-"}, ("steps", "-", "not-an-integer")),
        ({"steps": ""}, ("steps", "", "missing-value")),
        ({"word": "A B"}, ("word", "A B", "out-of-domain")),
        ({"word": "a  b"}, ("word", "a  b", "out-of-domain")),
        ({"answer": "N/a"}, ("answer", "N/a", "missing-label")),
        ({"answer": "perhaps"}, ("answer", "", "not-in-universe")),
        ({"answer": "YES"}, ("answer", "YES", "out-of-domain")),
        ({"key": " "}, ("key", "", "missing-unit")),
        ({"key": "K"}, ("key", "K", "no-match")),
        ({"key": "two"}, ("key", "two", "ambiguous-match")),
        ({"key": "odd"}, ("rooms", "x", "not-an-integer")),
        ({"key": "odd", "steps": "301"}, ("steps", "", "not-in-universe")),
        ({"key": "odd", "word": "z"}, ("rooms", "x", "not-an-integer")),
    ],
)
def test_a_record_that_is_not_kept_says_why(fields: dict[str, str], refusal: tuple[str, str, str]):
    assert read(**fields) == Refusal(*refusal)


def test_other_columns_may_be_there_but_none_may_be_missing_or_twice():
    with pytest.raises(DataError, match="5 columns of trial; missing: word; twice: key"):
        parse_header(b"key;degrees;steps;answer;key;x;x", SPEC)


def change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(changes)


def column(number: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["columns"][number].update(changes)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (change(lable="x"), "the schema must not have lable, did you mean label?"),
        (change(xyz="x"), "the schema must not have xyz"),
        (column(0, hihg=3), "column degrees must not have hihg, did you mean high?"),
        (change(unit={"kind": "person", "keys": "key"}), "not have keys, did you mean key?"),
        (lambda d: d["join"].update(heder=[]), "join must not have heder, did you mean header?"),
        (lambda d: d["encoding"].update(norm=1), "encoding must not have norm"),
        (lambda d: d["encoding"]["features"][3].update(divide=1), "did you mean divide_by?"),
        (lambda d: d["encoding"]["features"][1]["of"][0].update(edges=[]), "must not have edges"),
        (column(0, low=101), "must lie in -999999999..999999999, got 101..100"),
        (column(0, low=-1e9), "must lie in -999999999..999999999"),
        (column(0, high=float("nan")), "must lie in -999999999..999999999"),
        (column(0, kind="decimal"), "must be integer or number, got 'decimal'"),
        (column(1, low=-5.5), "low of column steps must be an integer, got -5.5"),
        (column(1, outside="drop"), "must be refuse, skip, clip, got 'drop'"),
        (column(1, impute=301), "impute of steps must lie in -5..300, got 301"),
        (column(3, low=0), "column word has levels, so it must not have low"),
        (column(3, levels=[]), "levels of column word must not be empty"),
        (column(3, levels=["1", "1"]), "levels of word must be there once, got '1' twice"),
        (column(3, levels=["1", " a"]), "without blanks around, got ' a'"),
        (column(3, levels=["1", "a\n"]), "must be printable"),
        (column(3, levels=["1", 2]), "levels of column word must be text, got 2"),
        (column(3, impute="b"), "impute of column word must be one of its levels, got 'b'"),
        (column(4, impute="no"), "label must be one column with impute None, got 'answer'"),
        (change(classes=[["no"], ["maybe"]]), "must be levels of it, got 'maybe'"),
        (change(classes=[["no"]]), "classes must be two or more"),
        (change(classes=[["no"], []]), "none of them empty"),
        (change(classes=[["no"], ["yes", "no"]]), "classes must not overlap"),
        (change(label="degrees"), "classes must not be given for a label of kind number"),
        (change(separator=" "), "separator must be ',' or ';' or '\\t' or '|', got ' '"),
        (change(first_line_names=False), "other_columns must be false for files without a header"),
        (change(unit={"kind": "people", "key": "key"}), "must be record, person, household"),
        (change(unit={"kind": "person"}), "unit person must have a key, got ''"),
        (change(unit={"kind": "record", "key": "key"}), "unit record must not have a key"),
        (change(unit={"kind": "person", "key": "x"}), "key of unit must be in the header, got 'x'"),
        (change(unit={"kind": "person", "key": "word"}), "key of unit must be that of join, key"),
        (
            change(unit={"kind": "person", "key": "key", "max_records": 0}),
            "max_records of a unit must lie in 1..1000000, got 0",
        ),
        (lambda d: d["join"].update(key="x"), "key of join must be in both headers, got 'x'"),
        (lambda d: d["join"]["header"].remove("rooms"), "must be in the header, got rooms"),
        (lambda d: d["encoding"]["features"][2].update(positive=["z"]), "of it, got 'z'"),
        (lambda d: d["encoding"]["features"][2].update(positive=[]), "must not be empty"),
        (lambda d: d["encoding"]["features"][0].update(low=100), "must be below high"),
        (lambda d: d["encoding"]["features"][0].update(high=10**400), "must be below high"),
        (lambda d: d["encoding"]["features"][1]["of"][1].pop("lower_edges"), "have lower_edges"),
        (lambda d: d["encoding"]["features"][0].update(column="key"), "used columns, got key"),
    ],
)  # fmt: skip
def test_a_spec_that_cannot_be_used_names_what_is_wrong(
    edit: Callable[[dict[str, Any]], None], words: str
):
    document = tomllib.loads(TEXT)
    edit(document)
    with pytest.raises(DataError) as error:
        from_schema(document)
    assert str(error.value).startswith("schema: ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"format = ", "must be TOML: Invalid value"),
        (b"\xff", "must be TOML"),
        (b"", "must have format 2, got None"),
        (b"format = 1", "of an older version"),
        (TEXT.replace("columns =", "colums =").encode(), "did you mean columns?"),
    ],
)
def test_a_file_that_is_no_spec_is_one_line_with_its_name(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "my.toml"
    path.write_bytes(content)
    assert command.main(["--input", str(path), "--dry-run", "--spec", str(path)]) == 5
    error = capsys.readouterr().err
    assert error.startswith("preprocess: error: ")
    assert (str(path) in error, words in error, error.count("\n")) == (True, True, 1), error


def test_a_spec_of_ones_own_goes_into_the_data_set_whole(tmp_path: Path):
    path = tmp_path / "my.toml"
    path.write_text(TEXT)
    spec: Spec = read_spec(str(path))
    assert spec == SPEC
    assert from_schema(as_schema(spec)) == spec
    assert spec.missing_tokens == {"", "n/a"}
    assert (spec.num_classes, spec.unit.max_records) == (2, 2)
