"""Writes a data set: all of it, or nothing.

Everything is built in a hidden folder beside the target, which only the user can enter. The
manifest is written last, everything is synced, and one rename makes the data set appear. Whoever
sees a manifest therefore sees a complete data set.

Guarantees:
    a crash midway leaves no data set, and one that was there before stays as it was;
    only a data set, or an empty folder, is ever replaced.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from preprocess.errors import DataError, UsageError
from preprocess.output import TEMPORARY, umask
from preprocess.schema import as_schema
from preprocess.shards import (
    CACHE,
    MANIFEST,
    SCHEMA,
    UNIT,
    cache_path,
    part_path,
    read_manifest,
    read_schema,
)
from preprocess.sources import Source
from preprocess.split import SIDES, Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preprocess.engines.base import Job
    from preprocess.gather import Gathered

COUNTS_NOTE = (
    "exact diagnostics of the private file: must not be published, not covered by any epsilon"
)


@contextmanager
def new_dataset(dataset: Path) -> Iterator[Path]:
    """A folder to build in. It becomes `dataset` if the block ends well, and vanishes if not."""
    dataset = Path(os.path.realpath(dataset))
    made: list[Path] = []
    try:
        check_target(dataset)
        for parent in reversed([p for p in dataset.parents if not p.exists()]):
            parent.mkdir()
            made.append(parent)
        building = Path(tempfile.mkdtemp(dir=dataset.parent, prefix=TEMPORARY))
    except OSError as error:
        _remove_empty(made)
        raise UsageError(f"output must be writable, got {dataset}: {error.strerror}") from None
    try:
        yield building
        check_target(dataset)
        _publish(building, dataset)
    except OSError as error:
        raise UsageError(f"output must be writable, got {dataset}: {error.strerror}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        _remove_empty(made)


@contextmanager
def scratch_folder(dataset: Path | None) -> Iterator[Callable[[], Path]]:
    """A way to a folder for work in progress, made when it is asked for, gone when the block ends.

    It lies beside the data set, where there is room for it, else with temporary files.
    """
    made: list[Path] = []
    parent: Path | None = None
    if dataset is not None:  # one that is there now: those made for the data set may vanish
        parent = next(path for path in Path(os.path.realpath(dataset)).parents if path.exists())

    def folder() -> Path:
        if not made:
            try:
                made.append(Path(tempfile.mkdtemp(dir=parent, prefix=TEMPORARY)))
            except OSError as error:
                raise UsageError(
                    f"{parent or tempfile.gettempdir()} must be writable: {error.strerror}"
                ) from None
        return made[0]

    try:
        yield folder
    finally:
        for one in made:
            shutil.rmtree(one, ignore_errors=True)


def origin(sources: Sequence[Source], document: dict[str, Any], split: Split) -> dict[str, Any]:
    """What a data set is made from. Files are the same if path, size and time of change are."""
    return {
        "files": [
            {"path": os.path.realpath(source.path), "member": source.member,
             "bytes": source.state[0], "modified_ns": source.state[1]}
            for source in sources
        ],
        "spec_sha256": hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest(),
        "split": {"salt": split.salt, "test_fraction": split.test_fraction,
                  "shards": split.shards},
    }  # fmt: skip


def is_made_from(dataset: Path, made_from: dict[str, Any]) -> bool:
    """Whether a whole data set of this origin is there."""
    try:
        manifest = read_manifest(dataset)
        if manifest.get("made_from") != made_from:
            return False
        read_schema(dataset, manifest)
        return all(
            _sha256(dataset / entry["path"]) == entry["sha256"] for entry in manifest["files"]
        )
    except (DataError, OSError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_dataset(folder: Path, gathered: Gathered, facts: dict[str, Any], job: Job) -> None:
    """Fill a new folder with what was gathered; the manifest, with these facts, comes last."""
    schema = as_bytes(as_schema(job.spec))
    _write_synced(folder / SCHEMA, schema)
    files = _write_parts(folder, gathered, job)
    manifest = {
        **facts,
        "counts": gathered.found.as_json(),
        "counts_note": COUNTS_NOTE,
        "schema_sha256": hashlib.sha256(schema).hexdigest(),
        "files": files,
    }
    _write_synced(folder / MANIFEST, as_bytes(manifest))


def _write_parts(folder: Path, gathered: Gathered, job: Job) -> list[dict[str, Any]]:
    import polars as pl

    files = []
    numbers = [0] * len(SIDES)
    (folder / CACHE).mkdir()
    with ExitStack() as stack:
        caches = [stack.enter_context(new_synced(folder / cache_path(side))) for side in SIDES]
        for name in SIDES:
            (folder / name).mkdir()
        for side, rows in gathered.shards():
            columns = _columns(rows, job)
            buffer = io.BytesIO()
            pl.DataFrame(columns).write_parquet(buffer, statistics=False)
            content = buffer.getvalue()
            path = part_path(SIDES[side], numbers[side])
            numbers[side] += 1
            _write_synced(folder / path, content)
            cached = b"".join(column.tobytes() for column in columns.values())
            entry: dict[str, Any] = {
                "path": path,
                "rows": len(rows),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "cache": {
                    "offset": caches[side].tell(),
                    "bytes": len(cached),
                    "adler32": zlib.adler32(cached),
                },
            }
            if job.spec.unit.key:
                entry["units"] = int(columns[UNIT][-1]) + 1 if len(rows) else 0
            caches[side].write(cached)
            files.append(entry)
    for name in (*SIDES, CACHE):
        _sync(folder / name)
    return files


def _columns(rows: NDArray[Any], job: Job) -> dict[str, NDArray[Any]]:
    """What is stored of a shard: codes, and where a unit has several records, its number."""
    import numpy as np

    from preprocess.gather import unit_starts

    columns = {column.name: np.ascontiguousarray(rows[column.name]) for column in job.spec.columns}
    if job.spec.unit.key:
        is_first = np.zeros(len(rows), np.uint32)
        is_first[unit_starts(rows)[1:]] = 1
        columns[UNIT] = np.cumsum(is_first, dtype=np.uint32)
    return columns


def check_target(dataset: Path) -> None:
    """Raises UsageError for what must not, or cannot, be replaced by a data set."""
    if not dataset.exists():
        return
    if not dataset.is_dir():
        raise UsageError(f"output must be a folder, got the file {dataset}")
    if not (dataset / MANIFEST).is_file() and any(dataset.iterdir()):
        raise UsageError(
            f"output must be a new folder or a data set to replace, got {dataset}: "
            f"it is not empty and has no {MANIFEST}"
        )
    if os.path.ismount(dataset):
        raise UsageError(f"output must be a folder inside the mounted {dataset}, not all of it")


def _publish(building: Path, dataset: Path) -> None:
    building.chmod(0o777 & ~umask())
    _sync(building)
    old: Path | None = None
    if dataset.exists():
        old = Path(tempfile.mkdtemp(dir=dataset.parent, prefix=TEMPORARY))
        dataset.rename(old)  # onto an empty folder
    try:
        building.rename(dataset)
    except BaseException:  # also an interrupt
        if old is not None and not dataset.exists():
            old.rename(dataset)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    _sync(dataset.parent)


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):  # not empty: it now holds the data set
            folder.rmdir()


def as_bytes(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


@contextmanager
def new_synced(path: Path) -> Iterator[BinaryIO]:
    """A file that is on disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_synced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
