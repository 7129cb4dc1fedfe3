"""Units of privacy: all records of a person or household on one side, at most so many of them."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from preprocess import __main__ as command
from preprocess import shards
from preprocess.split import Split, digest_of, place
from preprocess_samples import FAST_ENGINES, contents, read

SPEC = """
format = 2
name = "visits"
header = ["person", "number", "label"]
missing_tokens = [""]
label = "label"
columns = [{name = "number", low = 0, high = 99999}, {name = "label", low = 0, high = 1}]
unit = {kind = "person", key = "person", max_records = 4}
[encoding]
row_norm = 1
features = [{kind = "number", column = "number", divide_by = 1000}]
"""
PEOPLE = {f"p{person}": 1 + person % 7 for person in range(150)}  # 1 to 7 visits each
LINES = [
    f"{person},{10 * place + visit},{visit % 2}"
    for place, (person, visits) in enumerate(PEOPLE.items())
    for visit in range(visits)
]


def make(
    folder: Path, lines: list[str], *more: str, spec: str = SPEC, name: str = "set"
) -> dict[str, Any]:
    """A data set of these lines in folder/name; gives its manifest."""
    (folder / "spec.toml").write_text(spec)
    (folder / f"{name}.csv").write_text("\n".join(["person,number,label", *lines, ""]))
    arguments = ["--input", folder / f"{name}.csv", "--output", folder / name, "--spec",
                 folder / "spec.toml", "--shards", "3", *more]  # fmt: skip
    assert command.main(list(map(str, arguments))) == 0
    return shards.read_manifest(folder / name)


def units_of(dataset: Path) -> dict[tuple[str, int], list[list[int]]]:
    """By side and shard, the numbers of the records of each unit, in the order they are stored."""
    found = {}
    for entry in shards.read_manifest(dataset)["files"]:
        table = pl.read_parquet(dataset / entry["path"])
        units = [
            group["number"].to_list() for _, group in table.group_by("_unit", maintain_order=True)
        ]
        side, _, part = entry["path"].partition("/part-")
        found[side, int(part[:5])] = units
    return found


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_records_of_a_unit_are_on_one_side_in_one_shard_where_its_key_is_hashed_to(
    engine: str, tmp_path: Path
):
    make(tmp_path, LINES, "--engine", engine)
    split = Split(shards=3)
    where = {}
    for (side, shard), units in units_of(tmp_path / "set").items():
        for numbers in units:
            (person,) = {number // 10 for number in numbers}
            where[f"p{person}"] = (int(side == "test"), shard)
    assert where == {person: place(person.encode(), split)[:2] for person in PEOPLE}
    assert len(set(where.values())) == 6


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_of_a_unit_at_most_so_many_are_kept_those_with_the_smallest_hashes(
    limit: int, tmp_path: Path
):
    manifest = make(tmp_path, LINES, spec=SPEC.replace("max_records = 4", f"max_records = {limit}"))
    by_person = defaultdict(list)
    for line in LINES:
        person, number, _ = line.split(",")
        by_person[person].append((digest_of(line.encode(), Split())[16:24], int(number)))
    expected = sorted([n for _, n in sorted(lines)[:limit]] for lines in by_person.values())
    found = [unit for units in units_of(tmp_path / "set").values() for unit in units]
    assert sorted(found) == expected
    kept = sum(min(visits, limit) for visits in PEOPLE.values())
    counts = manifest["counts"]
    assert (counts["kept"], counts["records"]) == (kept, len(LINES))
    assert counts.get("over_unit_limit", 0) == len(LINES) - kept
    assert counts["train"] + counts["test"] == kept


def test_the_order_of_the_file_changes_no_byte_of_any_shard(tmp_path: Path):
    make(tmp_path, LINES, name="one")
    lines = LINES.copy()
    random.Random(1).shuffle(lines)
    make(tmp_path, lines, name="other")
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} == {"manifest.json"}


def test_removing_one_unit_moves_no_other(tmp_path: Path):
    make(tmp_path, LINES)
    before = units_of(tmp_path / "set")
    for gone in (0, 6, 90):
        make(tmp_path, [line for line in LINES if not line.startswith(f"p{gone},")])
        expected = {
            where: [unit for unit in units if unit[0] // 10 != gone]
            for where, units in before.items()
        }
        assert units_of(tmp_path / "set") == expected


def test_units_of_a_shard_are_numbered_from_0_side_by_side_and_counted(tmp_path: Path):
    manifest = make(tmp_path, LINES)
    total = 0
    for entry in manifest["files"]:
        numbers = pl.read_parquet(tmp_path / "set" / entry["path"])["_unit"]
        assert numbers.dtype == pl.UInt32
        assert numbers.to_list() == sorted(numbers.to_list())
        assert set(numbers.to_list()) == set(range(entry["units"]))
        assert max(Counter(numbers.to_list()).values()) == 4
        total += entry["units"]
    assert total == len(PEOPLE)
    found = read(tmp_path / "set", "train")
    assert list(found) == ["number", "label", "_unit"]


def test_the_manifest_tells_unit_key_and_limit(tmp_path: Path):
    manifest = make(tmp_path, LINES)
    told = {key: manifest[key] for key in ("unit", "unit_key", "max_records_per_unit")}
    assert told == {"unit": "person", "unit_key": "person", "max_records_per_unit": 4}
    schema = shards.read_schema(tmp_path / "set", manifest)
    assert schema["unit"] == {"kind": "person", "key": "person", "max_records": 4}


def test_a_record_without_the_key_of_its_unit_is_refused(tmp_path: Path):
    manifest = make(tmp_path, [*LINES, ",1,0", ' " ",1,0'])
    assert manifest["counts"]["refused_by_rule"] == {"missing-unit": 2}
    quarantine = (tmp_path / "set" / "quarantine.csv").read_text().splitlines()
    assert [line.split(",", 2)[2] for line in quarantine] == [
        "column,value,rule",
        *["person,,missing-unit"] * 2,
    ]


def test_blanks_and_quotes_around_a_key_do_not_make_another_unit(tmp_path: Path):
    lines = ["p1,1,0", " p1 ,2,1", '"p1",3,0', '" p1\t",4,1', "P1,5,0", "p01,6,1"]
    for engine in FAST_ENGINES:
        make(tmp_path, lines, "--engine", engine, "--force")
        found = [set(unit) for units in units_of(tmp_path / "set").values() for unit in units]
        assert sorted(found, key=min) == [{1, 2, 3, 4}, {5}, {6}]


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_equal_lines_of_a_unit_are_distinct_records_up_to_the_limit(engine: str, tmp_path: Path):
    manifest = make(tmp_path, ["p1,7,0"] * 9 + ["p2,8,1"], "--engine", engine)
    assert manifest["counts"]["over_unit_limit"] == 5
    units = [unit for units in units_of(tmp_path / "set").values() for unit in units]
    assert sorted(units) == [[7] * 4, [8]]


def test_a_dry_run_counts_units_as_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    real = make(tmp_path, [*LINES, "x"])["counts"]
    before = contents(tmp_path)
    arguments = ["--input", tmp_path / "set.csv", "--spec", tmp_path / "spec.toml", "--dry-run",
                 "--json", "--shards", "3"]  # fmt: skip
    capsys.readouterr()
    for engine in FAST_ENGINES:
        assert command.main([*map(str, arguments), "--engine", engine]) == 0
        assert json.loads(capsys.readouterr().out)["counts"] == real
    assert contents(tmp_path) == before
