"""One contract for every engine of the table: what the sequential oracle gives, for any input."""

from __future__ import annotations

import random
from pathlib import Path
from random import Random

import pytest

from helpers import FULTON
from preprocess import blocks, engines
from preprocess.errors import DataError, UsageError
from preprocess.header import parse_header
from preprocess.records import Record, read_record
from preprocess.schema import from_schema
from preprocess.spec import Spec
from preprocess.specs import CENSUS_2000
from preprocess.split import Split, place
from preprocess.synthetic import write_synthetic
from preprocess_samples import (
    ENGINES,
    FAST_ENGINES,
    GOOD,
    HEADER,
    assert_same,
    clean,
    codes_of,
    job_of,
    odd_text,
)

needs_fulton = pytest.mark.skipif(not FULTON.exists(), reason="the real census file is not here")
BOM = b"\xef\xbb\xbf"
ONE = GOOD.encode()

FAMILIES = from_schema(
    {
        "format": 2,
        "name": "families",
        "separator": ";",
        "header": ["id", "family", "age", "degrees", "answer"],
        "missing_tokens": ["", "?"],
        "label": "answer",
        "classes": [["no", "never"], ["yes"]],
        "unit": {"kind": "household", "key": "family", "max_records": 3},
        "join": {"name": "homes", "key": "family", "header": ["family", "rooms"]},
        "columns": [
            {"name": "age", "low": 0, "high": 115, "impute": 40, "outside": "clip"},
            {"name": "degrees", "kind": "number", "low": -40, "high": 50, "outside": "skip"},
            {"name": "rooms", "low": -1, "high": 300, "impute": 3},
            {"name": "answer", "levels": ["yes", "no", "never", "don't know"]},
        ],
        "encoding": {
            "row_norm": 1,
            "features": [{"kind": "scaled", "column": "age", "low": 0, "high": 115}],
        },
    }
)


def families(folder: Path, spec: Spec) -> tuple[Path, Path]:
    """An odd file of people, and their homes: 60 of them, 20 not there, 3 there twice."""
    people, homes = folder / "people.csv", folder / "homes.csv"
    head = ";".join(reversed(spec.header)).encode() + b"\r"

    def person(draw: Random) -> list[bytes]:
        age, degrees = draw.randint(-5, 120), draw.choice([draw.uniform(-45, 55), draw.gauss(0, 1)])
        answer = draw.choice(["yes", "no", "never", "don't know"])
        family = f"H{draw.randrange(80)}"
        return [text.encode() for text in (answer, f"{degrees:.3f}", str(age), family, "p")]

    people.write_bytes(head + odd_text(person, 2500, seed=4, separator=b";"))
    rooms = [f"H{n};{(37 * n) % 320 - 2}" for n in [*range(60), 3, 17, 59]]
    homes.write_text("\n".join(["FAMILY;rooms", *rooms]))
    return people, homes


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_what_the_oracle_gives_for_a_long_odd_file(engine: str, tmp_path: Path):
    path = tmp_path / "odd.csv"
    head = BOM + b"\n" + HEADER.encode() + b"\r\n"
    path.write_bytes(head + odd_text(lambda draw: ONE.split(b","), 3000, seed=1))
    job = job_of(path, folder=tmp_path, split=Split(shards=5, test_fraction=0.3))
    expected = clean("sequential", job)
    assert len(expected.rows) > 1000
    assert len(expected.refused) > 1000
    assert len({refused.refusal.rule for refused in expected.refused}) == 5
    assert sum(expected.imputed.values()) > 100
    assert_same(clean(engine, job), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_what_the_oracle_gives_for_units_joins_levels_and_numbers(
    engine: str, tmp_path: Path
):
    people, homes = families(tmp_path, FAMILIES)
    job = job_of(people, folder=tmp_path, spec=FAMILIES, join=homes, split=Split(shards=3))
    expected = clean("sequential", job)
    rules = {refused.refusal.rule for refused in expected.refused}
    assert rules == {
        *("bad-quotes", "field-count", "missing-unit", "no-match", "ambiguous-match"),
        *("missing-label", "missing-value", "not-an-integer", "not-a-number", "out-of-domain"),
    }
    assert set(expected.skipped) == {"degrees", "answer"}
    assert set(expected.imputed) == {"age"}
    assert len(set(expected.rows["_unit"].tolist())) > 40
    assert_same(clean(engine, job), expected)


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_each_kind_of_line_is_found_at_its_number(engine: str, tmp_path: Path):
    lines = [
        ONE,  # line 2
        b"",
        ONE.replace(b"51", b"12.7"),
        ONE + b",",
        b" \t",
        ONE.replace(b"51", b"NA"),
        ONE.replace(b"51", b'"x'),
        ONE[:-9] + b",1,13121",  # line 9, without a label
        ONE.replace(b"51", b"116"),
    ]
    path = tmp_path / "raw.csv"
    for end in (b"\n", b"\r", b"\r\n"):
        path.write_bytes(BOM + end.join([HEADER.encode(), *lines]))
        found = clean(engine, job_of(path, folder=tmp_path))
        assert [(one.line, *one.refusal) for one in found.refused] == [
            (4, "age", "12.7", "not-an-integer"),
            (5, "", "19", "field-count"),
            (8, "", GOOD.replace("51", '"x')[:80], "bad-quotes"),
            (9, "employed", "", "missing-label"),
            (10, "age", "116", "out-of-domain"),
        ]
        assert sorted(found.rows["age"].tolist()) == [40, 51]
        assert +found.imputed == {"age": 1}


@pytest.mark.parametrize(
    ("lines", "refused", "num_kept"),
    [
        ([ONE + b",7", ONE.rsplit(b",", 1)[0], ONE], [2, 3], 1),  # one too many, one too few
        # 17 commas, but 17 fields: a quoted comma does not make up for a missing field
        ([ONE.replace(b"13,1101,", b'"13,1101",'), ONE, b'"13"' + ONE[2:]], [2], 2),
    ],
)
def test_two_mistakes_do_not_cancel(
    lines: list[bytes], refused: list[int], num_kept: int, tmp_path: Path
):
    path = tmp_path / "raw.csv"
    path.write_bytes(b"\n".join([HEADER.encode(), *lines]))
    for engine in FAST_ENGINES:
        found = clean(engine, job_of(path, folder=tmp_path))
        assert [(one.line, one.refusal.rule) for one in found.refused] == [
            (line, "field-count") for line in refused
        ]
        assert len(found.rows) == num_kept


@needs_fulton
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree_on_the_real_file_and_keep_all_of_it(engine: str, tmp_path: Path):
    job = job_of(FULTON, folder=tmp_path)
    found = clean(engine, job)
    assert len(found.rows) == 25_766
    assert found.refused == []
    assert round(float(found.rows["employed"].mean()), 4) == 0.6281
    assert_same(found, clean("sequential", job))


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
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100_003)
    job = job_of(path, folder=tmp_path)
    found = clean("polars", job)
    assert_same(found, clean("sequential", job))
    assert 100 < len(found.refused) < 1500
    assert sum(found.imputed.values()) > 100


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_rows_sides_shards_and_order_are_those_of_the_oracle_functions(engine: str, tmp_path: Path):
    path = tmp_path / "synthetic.csv"
    write_synthetic(path, 500, seed=2)
    head, *lines = path.read_bytes().splitlines()
    layout = parse_header(head, CENSUS_2000)
    split = Split(salt="another", test_fraction=0.5, shards=3)
    found = clean(engine, job_of(path, folder=tmp_path, split=split))
    places = found.rows[["_side", "_shard", "_unit"]].tolist()
    for line, codes, where in zip(lines, codes_of(found), places, strict=True):
        assert Record(codes, ()) == read_record(line, layout)
        assert where == place(line, split)


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_progress_counts_every_record_and_never_more_than_the_file(engine: str, tmp_path: Path):
    path = tmp_path / "synthetic.csv"
    write_synthetic(path, 45_000, seed=3)
    reports: list[tuple[int, int]] = []
    clean(engine, job_of(path, folder=tmp_path, progress=lambda *report: reports.append(report)))
    assert reports == sorted(reports)
    assert 30_000 <= reports[-1][0] <= 45_000
    assert reports[-1][1] <= path.stat().st_size


@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_header_is_a_data_error_that_names_the_file(engine: str, tmp_path: Path):
    good, wrong = tmp_path / "good.csv", tmp_path / "wrong.csv"
    good.write_text(f"{HEADER}\n{GOOD}\n")
    wrong.write_text(HEADER.replace("age", "years"))
    with pytest.raises(DataError, match=r"wrong\.csv: header .* missing: age; .* 'years'"):
        clean(engine, job_of(good, wrong, folder=tmp_path))


def test_auto_is_polars_and_an_unknown_engine_is_refused():
    assert engines.resolve("auto") == "polars"
    with pytest.raises(UsageError, match=r"engine must be one of auto, .*sequential.*, got 'x'"):
        engines.resolve("x")
    assert set(FAST_ENGINES) <= set(engines.ENGINES)
