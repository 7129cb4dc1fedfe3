"""Defects: exactly as many as asked for, one a record, and people who do not notice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from preprocess import defects, synthetic
from preprocess.errors import UsageError
from preprocess.specs import CENSUS_2000
from preprocess.synthetic import write_synthetic

ALL = {"missing": 0.2, "out-of-range": 0.11, "ragged": 0.07, "non-ascii-digits": 0.13,
       "duplicates": 0.3}  # fmt: skip
DOMAINS = {CENSUS_2000.header.index(c.name): range(c.low, c.high + 1) for c in CENSUS_2000.columns}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 64)


def files(folder: Path, num_rows: int, seed: int, rates: dict[str, float]) -> list[list[bytes]]:
    """The lines without and with defects, after the header; the truth is in raw.truth.json."""
    write_synthetic(folder / "good.csv", num_rows, seed)
    write_synthetic(folder / "raw.csv", num_rows, seed, rates, folder / "raw.truth.json")
    good, raw = ((folder / name).read_bytes().split(b"\n") for name in ("good.csv", "raw.csv"))
    assert (good.pop(0), good.pop(), raw.pop()) == (raw.pop(0), b"", b"")
    return [good, raw]


def kind_of(index: int, good: list[bytes], raw: list[bytes]) -> str:
    """What happened to a line, found out by looking at it; a copy of an equal person is none."""
    if raw[index] == good[index]:
        return "none"
    fields = raw[index].decode().split(",")
    if len(fields) != 18:
        assert len(fields) in (17, 19)
        return "ragged"
    before = good[index].decode().split(",")
    changed = [place for place in range(18) if fields[place] != before[place]]
    token = fields[changed[0]]
    if len(changed) == 1 and changed[0] in DOMAINS:
        if token.strip(' \t"').lower() in CENSUS_2000.missing_tokens:
            return "missing"
        if not token.isascii():
            assert [int(digit) for digit in token] == [int(digit) for digit in before[changed[0]]]
            return "non-ascii-digits"
        if int(token) not in DOMAINS[changed[0]]:
            return "out-of-range"
    assert raw[index] in good[:index]
    return "duplicates"


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("num_rows", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_kind_has_exactly_its_number_of_records_over_the_whole_file(
    num_rows: int, seed: int, tmp_path: Path
):
    rates = {"missing": 0.25, "out-of-range": 0.1, "ragged": 0.15, "non-ascii-digits": 0.05}
    good, raw = files(tmp_path, num_rows, seed, rates)
    assert len(raw) == len(good) == num_rows
    found = Counter(kind_of(index, good, raw) for index in range(num_rows))
    del found["none"]
    asked = Counter({kind: round(rate * num_rows) for kind, rate in rates.items()})
    assert +asked == found
    truth = json.loads((tmp_path / "raw.truth.json").read_text())
    assert truth["injected"] == {**asked, "duplicates": 0}


@pytest.mark.usefixtures("small_chunks")
def test_a_duplicate_copies_an_undamaged_earlier_record_even_of_a_chunk_before(tmp_path: Path):
    rates = {"ragged": 0.19, "duplicates": 0.8}  # in most chunks nothing is left to copy
    good, raw = files(tmp_path, 1000, 3, rates)
    undamaged: set[bytes] = set()
    num_copies = 0
    for index, line in enumerate(raw):
        kind = kind_of(index, good, raw)
        num_copies += kind == "duplicates"
        assert kind != "duplicates" or line in undamaged
        if kind == "none":
            undamaged.add(line)
    truth = json.loads((tmp_path / "raw.truth.json").read_text())
    assert truth["injected"]["duplicates"] == 800
    assert 790 <= num_copies <= 800  # some copies meet their equal
    assert truth["counts"]["kept"] == 810


def test_the_first_record_is_spared_for_all_others_to_copy(tmp_path: Path):
    _, raw = files(tmp_path, 4, 1, {"duplicates": 0.75})
    assert len(set(raw)) == 1
    with pytest.raises(UsageError, match=r"at most 3 of 4 records, .* spared .* got 4"):
        defects.records_by_kind({"duplicates": 1.0}, 4)


@pytest.mark.usefixtures("small_chunks")
def test_rates_change_no_person(tmp_path: Path):
    for rates in (ALL, {"missing": 0.5}, {"ragged": 0.01}):
        good, raw = files(tmp_path, 500, 4, rates)
        kinds = Counter(kind_of(index, good, raw) for index in range(500))
        assert kinds["none"] >= 500 - sum(round(rate * 500) for rate in rates.values())


@pytest.mark.usefixtures("small_chunks")
def test_defects_are_spread_over_the_whole_file_and_over_the_columns(tmp_path: Path):
    """Every tenth of the file, both halves of the chunks and every used column get their part."""
    good, raw = files(tmp_path, 2000, 5, {"missing": 0.5})
    damaged = [index for index in range(2000) if raw[index] != good[index]]
    tenths = Counter(index // 200 for index in damaged)
    assert len(tenths) == 10
    assert all(70 < number < 130 for number in tenths.values())
    assert 450 < sum(index % 64 < 32 for index in damaged) < 550
    truth = json.loads((tmp_path / "raw.truth.json").read_text())["counts"]
    columns = truth["imputed_by_column"] | truth["refused_by_rule"]
    assert len(columns) == 14
    assert all(40 < number < 110 for number in columns.values())


@pytest.mark.usefixtures("small_chunks")
def test_without_defects_the_file_stays_what_it_was(tmp_path: Path):
    good, raw = files(tmp_path, 200, 6, dict.fromkeys(defects.KINDS, 0.0))
    assert raw == good
    truth = json.loads((tmp_path / "raw.truth.json").read_text())
    assert set(truth["injected"].values()) == {0}
    assert truth["counts"] == {"records": 200, "kept": 200, "refused": 0, "refused_by_rule": {},
                               "imputed_by_column": {}}  # fmt: skip


def test_the_same_seed_gives_the_same_file_and_truth_and_another_seed_others(tmp_path: Path):
    made = []
    for number, seed in enumerate((7, 7, 8)):
        folder = tmp_path / str(number)
        folder.mkdir()
        files(folder, 300, seed, ALL)
        made.append([(folder / name).read_bytes() for name in ("raw.csv", "raw.truth.json")])
    assert made[0] == made[1]
    assert made[0][0] != made[2][0]


@pytest.mark.usefixtures("small_chunks")
def test_memory_does_not_grow_with_the_rows_of_a_damaged_file():
    numbers = defects.records_by_kind(ALL, 200)
    pieces = defects.damage(synthetic.synthetic_text(200, 1), 200, numbers, 1, defects.Truth())
    assert [piece.count(b"\n") for piece in pieces] == [1, 64, 64, 64, 8]


def test_rates_that_sum_to_one_but_round_up_are_refused_rather_than_bent():
    rates = {"missing": 0.5, "ragged": 0.5}
    assert defects.records_by_kind(rates, 4)["ragged"] == 2
    with pytest.raises(
        UsageError, match=r"--missing, --ragged must damage at most 3 .* got 2 \+ 2"
    ):
        defects.records_by_kind(rates, 3)


def test_decimal_rates_may_sum_to_one_though_floats_added_in_turn_exceed_it():
    rates = {"missing": 0.05, "out-of-range": 0.55, "ragged": 0.3, "non-ascii-digits": 0.1}
    assert sum(rates.values()) > 1
    assert list(defects.records_by_kind(rates, 1000).values()) == [50, 550, 300, 100, 0]
