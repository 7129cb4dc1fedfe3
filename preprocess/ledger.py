"""The privacy ledger as a file: JSON lines beside a data set, appended and synced.

What the lines mean is told in `dpsgd.ledger`. Private statistics are its first entry.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from preprocess.errors import UsageError


def beside(dataset: Path) -> Path:
    """The default place of the ledger of a data set."""
    folder = Path(os.path.realpath(dataset))
    return folder.with_name(folder.name + ".ledger.jsonl")


def one_release(
    run: str, unit: str, noise_multiplier: float, delta: float, imprecision: float
) -> list[dict[str, Any]]:
    """The entries of one Gaussian release about all units."""
    return [
        {
            "entry": "run",
            "run": run,
            "unit": unit,
            "private": True,
            "sample_rate": 1.0,
            "noise_multiplier": noise_multiplier,
            "steps": 1,
            "delta": delta,
            "imprecision_per_step": imprecision,
        },
        {"entry": "reserve", "run": run, "events": 1},
    ]


def check(path: Path) -> None:
    """Raise UsageError for a file that is no ledger, which must not be appended to."""
    if not os.path.lexists(path):
        return
    with path.open("rb") as file:
        start = file.read(1 << 16).split(b"\n")[0]
    try:
        is_ledger = not start or "entry" in json.loads(start)
    except (ValueError, TypeError):
        is_ledger = False
    if not is_ledger:
        raise UsageError(f"--ledger must be a privacy ledger or a new file, got {path}")


def append(path: Path, entry: dict[str, Any]) -> None:
    """Write one line and sync it. The file is readable by its owner only. Raises OSError."""
    line = (json.dumps(entry, allow_nan=False) + "\n").encode()
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _drop_torn_line(descriptor)
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        _sync_folder(path.parent)


def _drop_torn_line(descriptor: int) -> None:
    """Cut off a last line without its end: a crash before its sync, so nothing of it was used."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        content = os.pread(descriptor, size, 0)
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
