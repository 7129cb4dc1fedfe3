"""One contract for every engine of the table: what the sequential oracle gives, for any input."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import preprocess.engines.polars as polars_engine
from preprocess import engines, synthetic
from preprocess.engines.base import Cleaned
from preprocess.errors import DataError, UsageError
from preprocess.header import parse_header
from preprocess.records import Record, read_record
from preprocess.specs import CENSUS_2000
from preprocess.split import Split, place
from preprocess.synthetic import write_synthetic
from preprocess.writer import describe

FULTON = Path(__file__).parents[2] / "shared/data/census/fulton_ga_2000.csv"
needs_fulton = pytest.mark.skipif(not FULTON.exists(), reason="the real census file is not here")
HEADER = ",".join(CENSUS_2000.header).encode()
GOOD = b"13,1101,1,51,11,2200,0,0,0,1,0,1,0,0,0,0,1,13121"
BOM = b"\xef\xbb\xbf"
OTHERS = [name for name in engines.ENGINES if name != "sequential"]


def run(name: str, path: Path, split: Split | None = None) -> Cleaned:
    return engines.load(name)(path, CENSUS_2000, split or Split(), lambda records, num_bytes: None)


def assert_same(found: Cleaned, expected: Cleaned) -> None:
    for name in ("codes", "sides", "shards"):
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right, err_msg=name)
    assert found.refused == expected.refused
    assert found.imputed == expected.imputed


def assert_engines_agree(path: Path) -> Cleaned:
    expected = run("sequential", path)
    for name in OTHERS:
        assert_same(run(name, path), expected)
    return expected


TOKENS = st.sampled_from(
    [b"0", b"1", b"16", b"51", b"115", b"116", b"007", b" 1", b"1\t", b"", b"NA", b"na", b"?", b".",
     b'"1"', b'"1', b'1"', b'" 1 "', b'"1,1"', b'""', b'"1""1"', b"12.7", b"1_2", b"+1", b"-1",
     b"0x10", b"1e1", b"\xef\xbc\x91", b"\xff", b"\x00", b"1\x00", b"\xc2\xa01", b"\x0b1", b"\x85",
     b"\xe2\x80\xa8", b"#1", b"9999999999", b"256", b"65535", b"null", b"true", b"\x1a", b"'1'",
     b"1;1", b"\\", b"\x1c", b"1.0"]
)  # fmt: skip


@st.composite
def odd_line(draw: st.DrawFn) -> bytes:
    """A good record with some fields replaced, added or removed; or something else entirely."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from([b"", b" ", b"\t", b",", b",,", b"#", b"\x00", b'"', HEADER]))
    if kind == 1:
        return draw(st.binary(max_size=30)).replace(b"\n", b",").replace(b"\r", b'"')
    fields = GOOD.split(b",")
    if kind < 6:
        for _ in range(draw(st.integers(1, 3))):
            fields[draw(st.integers(0, 17))] = draw(TOKENS)
    if kind == 2:
        del fields[draw(st.integers(0, 17))]
    if kind == 3:
        fields.insert(draw(st.integers(0, 18)), draw(TOKENS))
    return b",".join(fields)


@st.composite
def odd_file(draw: st.DrawFn) -> bytes:
    ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
    head = draw(st.sampled_from([b"", BOM, b"\n", BOM + b"\r", b" \r\n"])) + HEADER + draw(ends)
    lines = draw(st.lists(st.tuples(odd_line(), ends), max_size=12))
    text = b"".join(line + end for line, end in lines)
    return head + (text[:-1] if draw(st.booleans()) else text)


@given(content=odd_file(), block_bytes=st.integers(1, 120) | st.just(1 << 20))
@example(content=HEADER, block_bytes=7)
@example(content=HEADER + b"\r\n" + GOOD + b"\r\n\r\n" + GOOD + b"x", block_bytes=1)
@example(content=HEADER + b"\r" + GOOD + b",\r" + GOOD[:-6] + b"\r" + GOOD, block_bytes=4096)
@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_engines_agree_on_any_file(
    content: bytes, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    monkeypatch.setattr(polars_engine, "BLOCK_BYTES", block_bytes)
    assert_engines_agree(path)


@given(content=odd_file(), block_bytes=st.integers(1, 120), features_only=st.booleans())
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_line_of_a_block_is_what_the_oracle_says_of_it(
    content: bytes,
    block_bytes: int,
    features_only: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    monkeypatch.setattr(polars_engine, "BLOCK_BYTES", block_bytes)
    layout = parse_header(HEADER, CENSUS_2000, features_only=features_only)
    numbered, blocks = {}, polars_engine.read(path, CENSUS_2000, features_only=features_only)
    for block in blocks:
        refused = dict(block.refused)
        imputed: Counter[str] = Counter()
        for number, line in enumerate(block.lines, block.first_line):
            numbered[number] = line
            expected = read_record(line, layout)
            index = number - block.first_line
            if block.is_kept[index]:
                assert isinstance(expected, Record)
                assert expected.codes == tuple(block.codes[index].tolist())
                imputed.update(expected.imputed)
            else:
                assert refused.pop(number, None) == expected
        assert not refused
        assert block.imputed == imputed
        assert block.num_bytes <= len(content)
    ends = content.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    assert numbered == {n: ends[n - 1] for n in numbered}
    header = next(number for number, line in enumerate(ends, 1) if line.strip())
    assert list(numbered) == list(range(header + 1, len(ends) + bool(ends[-1])))


@given(content=odd_file())
@settings(max_examples=100, deadline=None)
def test_lines_do_not_depend_on_the_size_of_a_block(content: bytes):
    import io

    whole = [
        line for block in polars_engine.read_blocks(io.BytesIO(content), 1 << 20) for line in block
    ]
    for block_bytes in (1, 2, 3, 64):
        blocks = list(polars_engine.read_blocks(io.BytesIO(content), block_bytes))
        assert [line for block in blocks for line in block] == whole


def test_every_engine_finds_each_kind_of_line_at_its_number(tmp_path: Path):
    lines = [
        GOOD,  # line 2
        b"",
        GOOD.replace(b"51", b"12.7"),
        GOOD + b",",
        b" \t",
        GOOD.replace(b"51", b"NA"),
        GOOD.replace(b"51", b'"x'),
        GOOD[:-9] + b",1,13121",  # line 9, without a label
        GOOD.replace(b"51", b"116"),
    ]
    path = tmp_path / "raw.csv"
    for end in (b"\n", b"\r", b"\r\n"):
        path.write_bytes(BOM + end.join([HEADER, *lines]))
        for name in engines.ENGINES:
            cleaned = run(name, path)
            assert [(line, *refusal) for line, refusal in cleaned.refused] == [
                (4, "age", "12.7", "not-an-integer"),
                (5, "", "19", "field-count"),
                (8, "", GOOD.replace(b"51", b'"x').decode()[:80], "bad-quotes"),
                (9, "employed", "", "missing-label"),
                (10, "age", "116", "out-of-domain"),
            ]
            assert cleaned.codes[:, 0].tolist() == [51, 40]
            assert cleaned.imputed == {"age": 1}


def test_one_field_too_many_and_one_too_few_do_not_cancel(tmp_path: Path):
    path = tmp_path / "raw.csv"
    path.write_bytes(b"\n".join([HEADER, GOOD + b",7", GOOD.rsplit(b",", 1)[0], GOOD]))
    cleaned = assert_engines_agree(path)
    assert [entry.line for entry in cleaned.refused] == [2, 3]
    assert len(cleaned.codes) == 1


def test_a_quoted_comma_does_not_make_up_for_a_missing_field(tmp_path: Path):
    path = tmp_path / "raw.csv"
    shifted = GOOD.replace(b"13,1101,", b'"13,1101",')  # 17 commas, but 17 fields
    path.write_bytes(b"\n".join([HEADER, shifted, GOOD, b'"13"' + GOOD[2:]]))
    cleaned = assert_engines_agree(path)
    assert [(line, refusal.rule) for line, refusal in cleaned.refused] == [(2, "field-count")]
    assert len(cleaned.codes) == 2


@needs_fulton
def test_engines_agree_on_the_real_file_and_keep_all_of_it():
    cleaned = assert_engines_agree(FULTON)
    assert cleaned.codes.shape == (25_766, 14)
    assert cleaned.refused == []
    assert round(float(cleaned.codes[:, -1].mean()), 4) == 0.6281


def test_engines_agree_on_a_damaged_synthetic_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "synthetic.csv"
    write_synthetic(path, 20_000, seed=1)
    head, *lines = path.read_bytes().splitlines()
    generator = random.Random(1)
    for index in generator.sample(range(len(lines)), 1500):
        fields = lines[index].split(b",")
        fields[generator.randrange(18)] = generator.choice(
            [b"", b"NA", b"x", b'"1"', b"1,1", b"\xff"]
        )
        lines[index] = b",".join(fields)
    path.write_bytes(b"\r\n".join([head, *lines]))
    monkeypatch.setattr(polars_engine, "BLOCK_BYTES", 100_003)
    cleaned = assert_engines_agree(path)
    assert 100 < len(cleaned.refused) < 1500
    assert sum(cleaned.imputed.values()) > 100


def test_rows_sides_and_shards_are_those_of_the_oracle_functions(tmp_path: Path):
    path = tmp_path / "synthetic.csv"
    write_synthetic(path, 500, seed=2)
    head, *lines = path.read_bytes().splitlines()
    layout = parse_header(head, CENSUS_2000)
    split = Split(salt="another", test_fraction=0.5, shards=3)
    for name in engines.ENGINES:
        cleaned = run(name, path, split)
        for row, line in enumerate(lines):
            assert Record(tuple(cleaned.codes[row].tolist()), ()) == read_record(line, layout)
            assert (cleaned.sides[row], cleaned.shards[row]) == place(line, split)


@pytest.mark.parametrize("name", engines.ENGINES)
def test_progress_counts_every_record_and_never_more_than_the_file(name: str, tmp_path: Path):
    path = tmp_path / "synthetic.csv"
    write_synthetic(path, 45_000, seed=3)
    reports: list[tuple[int, int]] = []
    engines.load(name)(path, CENSUS_2000, Split(), lambda *report: reports.append(report))
    assert reports == sorted(reports)
    assert 30_000 <= reports[-1][0] <= 45_000
    assert reports[-1][1] <= path.stat().st_size


@pytest.mark.parametrize("name", engines.ENGINES)
def test_a_file_that_cannot_be_read_is_a_data_error_that_names_it(name: str, tmp_path: Path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            run(name, path)
    wrong = tmp_path / "wrong.csv"
    wrong.write_bytes(HEADER.replace(b"age", b"years"))
    with pytest.raises(DataError, match=r"wrong\.csv: header .* missing: age"):
        run(name, wrong)


def test_auto_is_polars_and_an_unknown_engine_is_refused():
    assert engines.resolve("auto") == "polars"
    with pytest.raises(UsageError, match="engine must be one of auto, polars, sequential, got 'x'"):
        engines.resolve("x")


DEFECTS = [
    {"missing": 0.1, "out-of-range": 0.05, "ragged": 0.02, "non-ascii-digits": 0.03,
     "duplicates": 0.2},
    {"missing": 0.25, "out-of-range": 0.25, "ragged": 0.25, "non-ascii-digits": 0.25},
    {"missing": 1.0},
    {"out-of-range": 0.5, "duplicates": 0.499},
    {"ragged": 0.001},
]  # fmt: skip


def assert_finds_the_truth(cleaned: Cleaned, truth: dict[str, Any]) -> None:
    found = describe(cleaned, CENSUS_2000, Split(), "any")["counts"]
    assert {name: found[name] for name in truth["counts"]} == truth["counts"]


@pytest.mark.parametrize("rates", DEFECTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("chunk_rows", [97, 100_000])
def test_every_engine_finds_exactly_the_defects_that_were_made(
    rates: dict[str, float],
    seed: int,
    chunk_rows: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", chunk_rows)
    good, raw, truth = (tmp_path / name for name in ("good.csv", "raw.csv", "raw.truth.json"))
    write_synthetic(good, 2000, seed)
    write_synthetic(raw, 2000, seed, rates, truth)
    before, after = (path.read_bytes().splitlines()[1:] for path in (good, raw))
    for name in engines.ENGINES:
        cleaned, undamaged = run(name, raw), run(name, good)
        assert_finds_the_truth(cleaned, json.loads(truth.read_text()))
        refused = {entry.line - 2 for entry in cleaned.refused}
        kept = [index for index in range(2000) if index not in refused]
        same = [row for row, index in enumerate(kept) if after[index] == before[index]]
        assert len(same) >= 2000 - sum(round(rate * 2000) for rate in rates.values())
        np.testing.assert_array_equal(
            cleaned.codes[same], undamaged.codes[[kept[row] for row in same]]
        )


def test_a_large_damaged_file_is_cleaned_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 30_000)
    monkeypatch.setattr(polars_engine, "BLOCK_BYTES", 1 << 20)
    raw, truth = tmp_path / "raw.csv", tmp_path / "raw.truth.json"
    write_synthetic(raw, 100_000, 4, DEFECTS[0], truth)
    assert_finds_the_truth(run("polars", raw), json.loads(truth.read_text()))
