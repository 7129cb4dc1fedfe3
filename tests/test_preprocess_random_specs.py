"""Random specs and random odd files for them: blocks of lines mean what the oracle says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess import blocks
from preprocess.rows import row_struct, row_type
from preprocess.schema import as_schema, from_schema
from preprocess.shards import stored_types
from preprocess.spec import SEPARATORS, Binary, Bins, Column, Join, OneHot, Scaled, Spec, Unit
from preprocess.split import Split
from preprocess_samples import LINE_ENDS, ODD_TOKENS, assert_same, clean, job_of

BOM = b"\xef\xbb\xbf"
TEXTS = ["a", "A", "?", "na", "1", "-1", "x y", "<=50K.", "ö\u0308", "a,b", "a;b", "a|b", 'a"b',
         "\U0001f600", "'q'", "#", "007", "0.5", "\\N"]  # fmt: skip
KEYS = ["1", "2", "7", "007", "x", "ö", ""]
ANY_SPEC = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def columns(draw: st.DrawFn, name: str, is_label: bool) -> Column:
    kind = draw(st.sampled_from(["integer", "number", "levels"]))
    if kind == "levels":
        levels = tuple(draw(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=5, unique=True)))
        impute = None if is_label else draw(st.none() | st.integers(0, len(levels) - 1))
        return Column(name, 0, len(levels) - 1, impute, levels)
    low = draw(st.sampled_from([-999_999_999, -300, -1, 0, 0, 1, 40]))
    high = low + draw(st.sampled_from([1, 15, 100, 255, 70_000]))
    if kind == "number" and draw(st.booleans()):
        low, high = low + 0.25, high - 0.25
    impute = None if is_label else draw(st.none() | st.sampled_from([low, high]))
    outside = draw(st.sampled_from(["refuse", "skip", "clip"]))
    return Column(name, low, high, impute, (), kind == "number", outside)


def values(column: Column, spec: Spec) -> list[str]:
    """Texts in and around the domain of a column; the first ones are inside."""
    if column.levels:
        inside, others = list(column.levels), [column.levels[0].upper(), column.levels[-1] + " "]
    else:
        low, high = column.low, column.high
        inside, others = (
            [f"{number:.9g}" if column.decimal else str(int(number)) for number in numbers]
            for numbers in ([low, low + 1, high, high, (low + high) // 2], [low - 1, high + 1])
        )
        others += ["0.5", "-0.0", "1e1", "-2E-3", "1.", ".5", "1e999"] if column.decimal else ["-0"]
    missing = [token.title() for token in spec.missing_tokens] * (column.impute is not None)
    return [*inside * 4, *missing * 2, *others]


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    names = draw(st.permutations(["a", "b-1", "c d", "ö", "label"]))[: draw(st.integers(2, 5))]
    if "label" not in names:
        names[0] = "label"
    used = tuple(draw(columns(name, name == "label")) for name in names)
    label = next(column for column in used if column.name == "label")
    classes: tuple[tuple[int, ...], ...] = ()
    if not label.decimal and draw(st.booleans()):
        low = int(label.low)
        classes = draw(st.sampled_from([((low,), (low + 1,)), ((int(label.high),), (low,))]))
    has_names = draw(st.booleans())
    unit, join = Unit(), None
    joined: list[str] = []
    if draw(st.booleans()):
        unit = Unit("household", "key", draw(st.sampled_from([1, 2, 1000])))
    joinable = [name for name in names if name != "label"]
    if joinable and draw(st.booleans()):
        joined = draw(st.lists(st.sampled_from(joinable), min_size=1, unique=True))
        join = Join("more", "key", tuple(draw(st.permutations(["key", "other", *joined]))))
    header = ["unused", *(["key"] if join or unit.key else [])]
    header += [name for name in names if name not in joined]
    features = tuple(
        Scaled(column.name, 0, 1) if column.decimal
        else Binary(column.name, (0,)) if column.levels
        else OneHot((Bins(column.name, (column.low,)),))
        for column in used if column.name != "label"
    )  # fmt: skip
    missing = draw(st.sets(st.sampled_from(["", "?", "na", "1", "."])))
    missing -= {level.lower() for column in used for level in column.levels}
    return Spec(
        name="random",
        unit=unit,
        header=tuple(draw(st.permutations(header))),
        columns=used,
        label="label",
        missing_tokens=frozenset(missing),
        row_norm=1,
        features=features,
        classes=classes,
        separator=draw(st.sampled_from(SEPARATORS)),
        first_line_names=has_names,
        other_columns=has_names and draw(st.booleans()),
        join=join,
    )


@dataclass
class Case:
    spec: Spec
    first: bytes
    second: bytes


@st.composite
def cases(draw: st.DrawFn) -> Case:
    spec = draw(specs())
    names = list(spec.header)
    if spec.first_line_names:
        if spec.other_columns:
            names += draw(st.lists(st.sampled_from(["x", "y z"]), max_size=2))
        names = draw(st.permutations(names))
    first = draw(tables(spec, names, has_names=spec.first_line_names))
    second = b""
    if spec.join:
        names = draw(st.permutations(spec.join.header))
        second = draw(tables(spec, names, is_second=True))
    return Case(spec, first, second)


@st.composite
def tables(
    draw: st.DrawFn, spec: Spec, names: list[str], has_names: bool = True, is_second: bool = False
) -> bytes:
    used = {column.name: column for column in spec.columns}
    separator = spec.separator.encode()
    ends = st.sampled_from(LINE_ENDS)
    text = draw(st.sampled_from([b"", BOM]))
    if has_names:
        text += separator.join(draw(quoted(name.upper(), spec)) for name in names) + draw(ends)
    for number in range(draw(st.integers(0, 10))):
        fields = []
        for name in names:
            if name == "key" and is_second and number < len(KEYS):
                fields.append(KEYS[number].encode())
                continue
            choices = values(used[name], spec) if name in used else KEYS
            fields.append(draw(quoted(draw(st.sampled_from(choices)), spec)))
        kind = draw(st.integers(4 * is_second, 14))
        if kind < 4:
            place = draw(st.integers(0, len(fields) - 1))
            fields[place] = draw(st.sampled_from(ODD_TOKENS))
        if kind == 4:
            fields.append(b"0")
        line = separator.join(fields)
        if kind == 5:
            line = draw(st.sampled_from([b"", b" ", b"\t", separator, b'"', b"\xff", BOM + line]))
        text += line + draw(ends)
    return text


@st.composite
def quoted(draw: st.DrawFn, text: str, spec: Spec) -> bytes:
    """A text as a field, in quotes where it must be and sometimes where it need not be."""
    if spec.separator in text or '"' in text or draw(st.integers(0, 5)) == 0:
        text = '"' + text.replace('"', '""') + '"'
    blank = draw(st.sampled_from(["", "", "", " ", "  "]))
    return (blank + text + blank).encode()


@given(case=cases(), block_bytes=st.sampled_from([1, 17, 64, 1 << 20]))
@ANY_SPEC
def test_blocks_and_the_oracle_agree_for_any_spec(
    case: Case, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(case.first or b"\n")
    second.write_bytes(case.second)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    job = job_of(
        first,
        folder=tmp_path,
        spec=case.spec,
        split=Split(shards=3, test_fraction=0.4),
        join=second if case.spec.join else None,
    )
    try:
        expected = clean("sequential", job)
    except ValueError as error:
        with pytest.raises(type(error)) as other:
            clean("polars", job)
        assert str(other.value) == str(error)
        return
    assert_same(clean("polars", job), expected)


@given(spec=specs())
@ANY_SPEC
def test_any_spec_survives_the_way_through_json(spec: Spec):
    schema = as_schema(spec)
    assert from_schema(json.loads(json.dumps(schema))) == spec
    assert as_schema(from_schema(schema)) == schema


@given(spec=specs())
@ANY_SPEC
def test_a_reader_expects_of_a_shard_what_is_stored_for_any_spec(spec: Spec):
    stored = row_type(spec)
    expected = {column.name: stored[column.name].name for column in spec.columns}
    if spec.unit.key:
        expected["_unit"] = "uint32"
    assert stored_types(as_schema(spec)) == expected
    assert row_struct(spec).size == stored.itemsize
