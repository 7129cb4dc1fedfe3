"""The format of a data set on disk, and how to read rows of it back.

    DATASET/manifest.json               what is there, with checksums; written last
            schema.json                 columns, domains, encoding: all that a trainer needs to know
            train/part-00000.parquet    one column of codes for each used column
            test/part-00000.parquet     the same; a shard may be empty
            cache/train.codes           the same without Parquet, for the memory map of a reader
            quarantine.csv              refused records: file, line, column, value, rule; mode 0600

A split ("train" or "test") is the concatenation of its shards. Where the unit of privacy may have
several records, a shard has a column `_unit` that numbers its units from 0; the records of a unit
follow each other. The cache holds, for each shard, one column after the other as it lies in memory;
it may be deleted. Importing this module is cheap: Polars and numpy come only when rows are read.
Every function raises DataError with the name of the file at fault.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 2
MANIFEST = "manifest.json"
SCHEMA = "schema.json"
QUARANTINE = "quarantine.csv"
CACHE = "cache"
UNIT = "_unit"

_PART = re.compile(r"(train|test)/part-[0-9]{5}\.parquet")
_MAKE_ONE = "make one with python -m preprocess"


def part_path(side: str, shard: int) -> str:
    """Where a shard is, relative to the data set."""
    return f"{side}/part-{shard:05d}.parquet"


def cache_path(side: str) -> str:
    """Where the cache of a split is, relative to the data set."""
    return f"{CACHE}/{side}.codes"


def read_manifest(dataset: Path) -> dict[str, Any]:
    """The manifest, checked as far as the readers below rely on it."""
    if not dataset.is_dir():
        raise DataError(f"data set must be an existing folder, got {dataset}: {_MAKE_ONE}")
    path = dataset / MANIFEST
    if not path.exists():
        raise DataError(f"{dataset} must hold {MANIFEST}, it is not a data set: {_MAKE_ONE}")
    manifest = _read_json(path)
    files = manifest.get("files")
    if not isinstance(files, list) or not all(_is_file_entry(entry) for entry in files):
        raise DataError(f"{path} must list files with path, rows, bytes and sha256")
    return manifest


def read_schema(dataset: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The public schema of the rows, checked against the manifest."""
    path = dataset / SCHEMA
    found = hashlib.sha256(_read_bytes(path)).hexdigest()
    if found != manifest.get("schema_sha256"):
        raise DataError(f"{path} was changed or damaged, make the data set again")
    schema = _read_json(path)
    for key, kind in (("label", str), ("columns", list), ("encoding", dict)):
        if not isinstance(schema.get(key), kind):
            raise DataError(f"{path} must have {key!r}, a {kind.__name__}")
    return schema


def num_rows(manifest: dict[str, Any], split: str) -> int:
    """Rows of "train" or "test", over all shards."""
    return sum(entry["rows"] for entry in _parts(manifest, split))


def stored_types(schema: dict[str, Any]) -> dict[str, str]:
    """Names of the stored columns of a shard, and how their values are stored."""
    types = {}
    for column in schema["columns"]:
        if column["name"] == schema["label"] and schema.get("classes"):
            types[column["name"]] = "uint8"
        elif "levels" in column:
            types[column["name"]] = "uint8" if len(column["levels"]) <= 256 else "int32"
        elif column["kind"] == "number":
            types[column["name"]] = "float32"
        else:
            is_small = column["low"] >= 0 and column["high"] <= 255
            types[column["name"]] = "uint8" if is_small else "int32"
    if schema["unit"] != "record":
        types[UNIT] = "uint32"
    return types


def read_rows(
    dataset: Path, manifest: dict[str, Any], split: str, start: int, stop: int
) -> dict[str, NDArray[Any]]:
    """Rows start..stop-1 of a split: one array per column, read-only where they are mapped.

    Opens only the shards that overlap, and checks them against the manifest.
    """
    import numpy as np

    total = num_rows(manifest, split)
    if not 0 <= start <= stop <= total:
        raise DataError(f"rows of {split} must lie in 0..{total}, got {start}..{stop}")
    types = stored_types(read_schema(dataset, manifest))
    pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in types}
    cache = _map_cache(dataset, manifest, split)
    first = 0  # row of the split at which the shard begins
    for entry in _parts(manifest, split):
        low, high = max(start - first, 0), min(stop - first, entry["rows"])
        if low < high:
            shard = _read_cached(cache, entry, types) or _read_shard(dataset, entry, types)
            for name in types:
                pieces[name].append(shard[name][low:high])
        first += entry["rows"]
    return {
        name: arrays[0]
        if len(arrays) == 1
        else np.concatenate([np.empty(0, dtype=types[name]), *arrays])
        for name, arrays in pieces.items()
    }


def _map_cache(dataset: Path, manifest: dict[str, Any], split: str) -> memoryview | None:
    """The bytes of the cache, or None where it is not there or not whole."""
    path = dataset / cache_path(split)
    entries = [entry.get("cache") for entry in _parts(manifest, split)]
    if not all(map(_is_cache_entry, entries)):
        return None
    size = sum(entry["bytes"] for entry in entries if entry)
    try:
        if not size or path.stat().st_size != size:
            return None
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))
    except OSError:
        return None


def _is_cache_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), int) and entry[key] >= 0
        for key in ("offset", "bytes", "adler32")
    )


def _read_cached(
    cache: memoryview | None, entry: dict[str, Any], types: dict[str, str]
) -> dict[str, NDArray[Any]] | None:
    """A shard of the cache, or None where it is not what the manifest says."""
    import numpy as np

    if cache is None:
        return None
    place = entry["cache"]
    content = cache[place["offset"] : place["offset"] + place["bytes"]]
    sizes = {name: entry["rows"] * np.dtype(kind).itemsize for name, kind in types.items()}
    if sum(sizes.values()) != len(content) or zlib.adler32(content) != place["adler32"]:
        return None
    columns = {}
    offset = 0
    for name, size in sizes.items():
        columns[name] = np.frombuffer(content[offset : offset + size], types[name])
        offset += size
    return columns


def _parts(manifest: dict[str, Any], split: str) -> list[dict[str, Any]]:
    if split not in ("train", "test"):
        raise DataError(f"split must be train or test, got {split!r}")
    return [entry for entry in manifest["files"] if entry["path"].startswith(f"{split}/")]


def _is_file_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("path"), str)
        and _PART.fullmatch(entry["path"]) is not None
        and isinstance(entry.get("sha256"), str)
        and all(isinstance(entry.get(key), int) and entry[key] >= 0 for key in ("rows", "bytes"))
    )


def _read_json(path: Path) -> dict[str, Any]:
    content = _read_bytes(path)
    try:
        document = json.loads(content)
    except ValueError as error:  # also wrong UTF-8
        raise DataError(f"{path} must be JSON: {error}") from None
    if not isinstance(document, dict):
        raise DataError(f"{path} must be a JSON object, got a {type(document).__name__}")
    if document.get("format") != FORMAT:
        raise DataError(
            f"{path} must have format {FORMAT}, got {document.get('format')!r}: {_MAKE_ONE}"
        )
    return document


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} must exist, the data set is incomplete: {_MAKE_ONE}") from None
    except OSError as error:
        raise DataError(f"{path} must be readable: {error.strerror}") from None


def _read_shard(
    dataset: Path, entry: dict[str, Any], types: dict[str, str]
) -> dict[str, NDArray[Any]]:
    import polars as pl

    path = dataset / entry["path"]
    content = _read_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise DataError(
            f"{path} must have sha256 {entry['sha256'][:16]}..., got {found[:16]}...: "
            "it was changed or damaged, make the data set again"
        )
    try:
        table = pl.read_parquet(io.BytesIO(content), use_pyarrow=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} must be Parquet: {str(error).splitlines()[0]}") from None
    wrong = [name for name, kind in types.items() if str(table.schema.get(name)).lower() != kind]
    if wrong or table.height != entry["rows"]:
        raise DataError(
            f"{path} must have {entry['rows']} rows of columns "
            f"{', '.join(f'{name} ({kind})' for name, kind in types.items())}, "
            f"got {table.height} rows of {', '.join(table.columns)}"
        )
    return {name: table[name].to_numpy() for name in types}
