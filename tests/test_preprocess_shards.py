"""A data set on disk: read in part, and damage found."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from preprocess import shards, writer
from preprocess.errors import DataError
from preprocess.schema import as_schema
from preprocess.specs import CENSUS_2000
from preprocess_samples import NAMES, cleaned, read, write


def test_what_is_written_is_what_is_read(tmp_path: Path):
    manifest = write(tmp_path / "set")
    assert shards.read_manifest(tmp_path / "set") == manifest
    assert shards.read_schema(tmp_path / "set", manifest) == as_schema(CENSUS_2000)
    rows = cleaned().rows
    for side, name in enumerate(("train", "test")):
        mine = rows[rows["_side"] == side]
        expected = np.sort(mine, order=["_shard", "_unit"])  # shards one after the other
        assert shards.num_rows(manifest, name) == len(expected)
        found = read(tmp_path / "set", name)
        assert list(found) == NAMES
        for column in NAMES:
            assert found[column].dtype == np.uint8
            np.testing.assert_array_equal(found[column], expected[column])


def test_ranges_of_rows_add_up_to_the_whole_split(tmp_path: Path):
    manifest = write(tmp_path / "set")
    whole = shards.read_rows(tmp_path / "set", manifest, "train", 0, 160)["age"]
    for start, stop in [(0, 0), (0, 1), (39, 41), (1, 159), (80, 160), (160, 160)]:
        part = shards.read_rows(tmp_path / "set", manifest, "train", start, stop)
        np.testing.assert_array_equal(part["age"], whole[start:stop])
        assert all(len(column) == stop - start for column in part.values())


def test_only_shards_that_overlap_are_opened(tmp_path: Path):
    manifest = write(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "cache")
    first = manifest["files"][0]
    for entry in manifest["files"][1:]:
        (tmp_path / "set" / entry["path"]).unlink()
    shards.read_rows(tmp_path / "set", manifest, "train", 0, first["rows"])
    with pytest.raises(DataError, match=r"part-00001\.parquet must exist"):
        shards.read_rows(tmp_path / "set", manifest, "train", 0, first["rows"] + 1)


def test_an_empty_shard_is_written_with_the_right_columns(tmp_path: Path):
    manifest = write(tmp_path / "set")
    empty = [entry for entry in manifest["files"] if entry["rows"] == 0]
    assert [entry["path"] for entry in empty] == [
        "train/part-00003.parquet",
        "test/part-00003.parquet",
    ]
    table = pl.read_parquet(tmp_path / "set" / empty[0]["path"])
    assert dict(table.schema) == dict.fromkeys(NAMES, pl.UInt8)


def test_a_changed_shard_is_found(tmp_path: Path):
    manifest = write(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "cache")
    path = tmp_path / "set" / "train/part-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"part-00001\.parquet must have sha256"):
        shards.read_rows(tmp_path / "set", manifest, "train", 0, 160)


def test_a_shard_of_other_columns_is_found_though_its_checksum_is_right(tmp_path: Path):
    write(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "cache")
    path = tmp_path / "set" / "train/part-00000.parquet"
    rows = pl.read_parquet(path)
    for table in (rows.with_columns(pl.col("age").cast(pl.Int64)), rows.drop("age"), rows.head(3)):
        table.write_parquet(path)
        manifest = shards.read_manifest(tmp_path / "set")
        manifest["files"][0]["sha256"] = writer.hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(DataError, match=r"rows of columns age \(uint8\), educ \(uint8\)"):
            shards.read_rows(tmp_path / "set", manifest, "train", 0, 160)


@pytest.mark.parametrize("name", ["manifest.json", "schema.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "must be JSON"),
        (b"\xff", "must be JSON"),
        (b"[]", "must be a JSON object, got a list"),
        (b"{}", "must have format 2, got None"),
        (b'{"format": 1}', "must have format 2, got 1"),
        (b'{"format": 2}', "must "),
        (None, "must "),
    ],
)
def test_a_damaged_description_is_named(
    name: str, content: bytes | None, words: str, tmp_path: Path
):
    write(tmp_path / "set")
    path = tmp_path / "set" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    manifest = {"schema_sha256": hashlib.sha256(content or b"").hexdigest()}
    with pytest.raises(DataError, match=words) as error:
        if name == "manifest.json":
            shards.read_manifest(tmp_path / "set")
        else:
            shards.read_schema(tmp_path / "set", manifest)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "path", ["../x", "train/../../etc/part-00000.parquet", "/train/part-00000"]
)
def test_a_manifest_cannot_point_outside_its_data_set(path: str, tmp_path: Path):
    manifest = write(tmp_path / "set")
    manifest["files"][0]["path"] = path
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="must list files"):
        shards.read_manifest(tmp_path / "set")


def test_no_data_set_and_rows_beyond_the_end_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=f"existing folder, got {tmp_path}/none"):
        shards.read_manifest(tmp_path / "none")
    with pytest.raises(DataError, match=r"must hold manifest\.json"):
        shards.read_manifest(tmp_path)
    manifest = write(tmp_path / "set")
    for start, stop in [(-1, 3), (3, 2), (0, 161)]:
        with pytest.raises(DataError, match=rf"must lie in 0\.\.160, got {start}\.\.{stop}"):
            shards.read_rows(tmp_path / "set", manifest, "train", start, stop)
    with pytest.raises(DataError, match="split must be train or test"):
        shards.num_rows(manifest, "validation")
