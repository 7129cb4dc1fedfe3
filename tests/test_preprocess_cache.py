"""The cache of a data set: used where it is whole, and never needed."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess import shards
from preprocess.making import make_dataset
from preprocess.schema import from_schema
from preprocess.sources import find_sources
from preprocess.split import SIDES, Split
from preprocess_samples import (
    read,
    write,
)


def flip(content: bytes) -> bytes:
    """The same with one bit changed."""
    return bytes([content[0] ^ 1]) + content[1:]


def changed_cache(dataset: Path, how: str) -> None:
    path = dataset / "cache" / "train.codes"
    content = path.read_bytes()
    if how == "gone":
        shutil.rmtree(dataset / "cache")
    elif how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        new = {
            "damaged": flip(content),
            "cut": content[:-1],
            "longer": content + b"x",
            "empty": b"",
        }
        path.write_bytes(new[how])


HOWS = ["damaged", "cut", "longer", "empty", "missing", "gone", "a folder"]


@pytest.mark.parametrize("how", HOWS)
def test_a_cache_that_is_not_whole_is_not_used(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "set")
    whole = read(tmp_path / "set", "train")
    changed_cache(tmp_path / "set", how)
    opened: list[str] = []
    read_shard = shards._read_shard

    def recorded(dataset: Path, entry: dict[str, Any], types: dict[str, str]) -> Any:
        opened.append(entry["path"])
        return read_shard(dataset, entry, types)

    monkeypatch.setattr(shards, "_read_shard", recorded)
    found = read(tmp_path / "set", "train")
    assert opened == (
        ["train/part-00000.parquet"]  # the others have a checksum of their own
        if how == "damaged"
        else [f"train/part-0000{number}.parquet" for number in range(3)]
    )
    for name, column in whole.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)


def test_a_whole_cache_is_all_that_is_read(tmp_path: Path):
    manifest = write(tmp_path / "set")
    expected = read(tmp_path / "set", "train")
    for entry in manifest["files"]:
        (tmp_path / "set" / entry["path"]).unlink()
        cached = tmp_path / "set" / "cache" / f"{entry['path'].partition('/')[0]}.codes"
        place = entry["cache"]
        content = cached.read_bytes()[place["offset"] :][: place["bytes"]]
        assert zlib.adler32(content) == place["adler32"]
    found = read(tmp_path / "set", "train")
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)


def test_numbers_of_every_kind_are_the_same_from_the_cache_and_from_parquet(tmp_path: Path):
    """Rows of 1 + 4 + 4 + 1 + 4 bytes, an odd number of them: most columns are not aligned."""
    document = {
        "format": 2,
        "name": "kinds",
        "header": ["key", "byte", "integer", "number", "label"],
        "missing_tokens": [],
        "label": "label",
        "columns": [
            {"name": "byte", "low": 0, "high": 255},
            {"name": "integer", "low": -999_999_999, "high": 999_999_999},
            {"name": "number", "kind": "number", "low": -1e6, "high": 1e6},
            {"name": "label", "levels": ["no", "yes"]},
        ],
        "unit": {"kind": "person", "key": "key", "max_records": 5},
        "encoding": {
            "row_norm": 1,
            "features": [{"kind": "scaled", "column": "number", "low": 0, "high": 1}],
        },
    }
    lines = [
        f"k{n % 30},{n},{(-1) ** n * 7_654_321 * n},{n / 7 - 9:.6f},{['no', 'yes'][n % 2]}"
        for n in range(131)
    ]
    raw, target = tmp_path / "raw.csv", tmp_path / "set"
    raw.write_text("\n".join([",".join(document["header"]), *lines]))
    make_dataset(from_schema(document), find_sources([raw]), target, split=Split(shards=3))
    cached = {side: read(target, side) for side in SIDES}
    shutil.rmtree(target / "cache")
    kinds = {"byte": "uint8", "integer": "int32", "number": "float32", "label": "uint8"}
    for side in SIDES:
        found = read(target, side)
        assert {name: str(column.dtype) for name, column in found.items()} == kinds | {
            "_unit": "uint32"
        }
        for name, column in cached[side].items():
            assert column.dtype == found[name].dtype
            np.testing.assert_array_equal(column, found[name])
    numbers = {n: float(np.float32(f"{n / 7 - 9:.6f}")) for n in range(131)}
    for row in zip(*(cached["train"][name].tolist() for name in kinds), strict=True):
        n = row[0]
        assert row == (n, (-1) ** n * 7_654_321 * n, numbers[n], n % 2)
