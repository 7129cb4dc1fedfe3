"""Writes a data set: all of it, or nothing.

Everything is built in a hidden folder beside the target, which only the user can enter. The
manifest is written last, everything is synced, and one rename makes the data set appear. Whoever
sees a manifest therefore sees a complete data set.

Guarantees:
    a crash midway leaves no data set, and one that was there before stays as it was;
    only a data set, or an empty folder, is ever replaced.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.errors import UsageError
from preprocess.output import TEMPORARY, umask
from preprocess.records import RULES
from preprocess.schema import as_schema
from preprocess.shards import FORMAT, MANIFEST, QUARANTINE, SCHEMA, part_path
from preprocess.spec import Spec
from preprocess.split import HASH_NAME, SIDES, Split

if TYPE_CHECKING:
    from preprocess.engines.base import Cleaned, Refused

COUNTS_NOTE = "exact diagnostics of the private file: internal, not covered by any epsilon"


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


def write_dataset(
    folder: Path, cleaned: Cleaned, spec: Spec, split: Split, engine: str
) -> dict[str, Any]:
    """Fill a new folder; gives the manifest, which is written last: `describe` and the files."""
    schema = _as_json(as_schema(spec))
    _write_synced(folder / SCHEMA, schema)
    _write_quarantine(folder / QUARANTINE, cleaned.refused)
    files = _write_parts(folder, cleaned, spec, split)
    manifest = {
        **describe(cleaned, spec, split, engine),
        "schema_sha256": hashlib.sha256(schema).hexdigest(),
        "files": files,
    }
    _write_synced(folder / MANIFEST, _as_json(manifest))
    return manifest


def describe(cleaned: Cleaned, spec: Spec, split: Split, engine: str) -> dict[str, Any]:
    """What a manifest says about the records, known before anything is written."""
    return {
        "format": FORMAT,
        "spec": spec.name,
        "unit": spec.unit,
        "engine": engine,
        "split": {
            "hash": HASH_NAME,
            "salt": split.salt,
            "test_fraction": split.test_fraction,
            "shards": split.shards,
        },
        "counts": _counts(cleaned),
        "counts_note": COUNTS_NOTE,
    }


def _counts(cleaned: Cleaned) -> dict[str, Any]:
    by_rule = Counter(refused.refusal.rule for refused in cleaned.refused)
    kept, test = len(cleaned.sides), int(cleaned.sides.sum())
    return {
        "records": kept + len(cleaned.refused),
        "kept": kept,
        "refused": len(cleaned.refused),
        "refused_by_rule": {rule: by_rule[rule] for rule in RULES if by_rule[rule]},
        "imputed_by_column": dict(sorted(cleaned.imputed.items())),
        "train": kept - test,
        "test": test,
    }


def _write_parts(folder: Path, cleaned: Cleaned, spec: Spec, split: Split) -> list[dict[str, Any]]:
    import numpy as np
    import polars as pl

    names = [column.name for column in spec.columns]
    place = cleaned.sides.astype(np.int64) * split.shards + cleaned.shards
    order = np.argsort(place, kind="stable")  # rows of a shard keep the order of the file
    bounds = np.searchsorted(place[order], np.arange(len(SIDES) * split.shards + 1))
    files = []
    for side_number, side in enumerate(SIDES):
        (folder / side).mkdir()
        for shard in range(split.shards):
            part = side_number * split.shards + shard
            codes = cleaned.codes[order[bounds[part] : bounds[part + 1]]]  # [rows, columns]
            table = pl.DataFrame({name: codes[:, i] for i, name in enumerate(names)})
            buffer = io.BytesIO()
            table.write_parquet(buffer, statistics=False)
            content = buffer.getvalue()
            path = part_path(side, shard)
            _write_synced(folder / path, content)
            files.append(
                {
                    "path": path,
                    "rows": len(codes),
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            )
        _sync(folder / side)
    return files


def _write_quarantine(path: Path, refused: list[Refused]) -> None:
    """The refused values are raw data: for the eyes of the user who ran this."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["line", "column", "value", "rule"])
        rows.writerows((number, *refusal) for number, refusal in refused)
        file.flush()
        os.fsync(file.fileno())


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
    except OSError:
        if old is not None:
            old.rename(dataset)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    _sync(dataset.parent)


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):  # not empty: it now holds the data set
            folder.rmdir()


def _as_json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


def _write_synced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
