"""The privacy ledger: what may touch the data is written down, and synced, before it does.

One append-only file of JSON lines beside the data set records every run on it:

    {"entry": "run", "run": ..., "unit": "record", "sample_rate": ..., "noise_multiplier": ..., ...}
    {"entry": "reserve", "run": ..., "events": 64}        before the first of these steps
    {"entry": "return", "run": ..., "events": 10}         after a clean stop that all ranks saw

Rank 0 writes; a barrier makes sure that no rank is ahead of what is on disk. A crash leaves events
reserved that were never used: the budget is overstated, never understated. A run without privacy,
or with a known seed, is recorded as such and makes the composition infinite. The file is readable
by its owner only; it holds no data and no keys.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpsgd.accounting import Steps
from dpsgd.errors import ConfigError, PrivacyError, UserError

if TYPE_CHECKING:
    from mpi4py import MPI

    from dpsgd.planning import Run

RESERVATION = 64
"""Events reserved at a time: one sync, a quarter of a millisecond, for so many steps."""


class Ledger:
    """Reserves the events of one run. Every rank makes the same calls; rank 0 writes.

    Raises ConfigError, on all ranks, where the file cannot be written, and PrivacyError where what
    it says cannot be read.
    """

    def __init__(self, path: Path, comm: MPI.Intracomm, run: Run) -> None:
        self._path = path
        self._comm = comm
        self._run = run
        self._next = 0
        self._reserved = 0
        header = {
            "entry": "run",
            "run": run.id,
            "unit": run.unit,
            "private": run.private,
            "sample_rate": run.sample_rate,
            "noise_multiplier": run.noise_multiplier,
            "steps": run.steps,
            "delta": run.delta,
            "imprecision_per_step": run.imprecision_per_step,
        }
        self._append(header, check=True)

    def next(self) -> int:
        """The number of the next event, which is on disk before this returns on any rank."""
        if self._next == self._reserved:
            more = max(1, min(RESERVATION, self._run.steps - self._reserved))
            self._append({"entry": "reserve", "run": self._run.id, "events": more})
            self._reserved += more
        self._next += 1
        return self._next - 1

    def close(self) -> None:
        """Give back what was reserved and not used. Call it after a clean stop of all ranks."""
        self._comm.Barrier()
        if unused := self._reserved - self._next:
            self._append({"entry": "return", "run": self._run.id, "events": unused})
        self._reserved = self._next

    def _append(self, entry: dict[str, Any], check: bool = False) -> None:
        """Write on rank 0; all ranks go on, or raise, when it is done."""
        error: UserError | None = None
        if self._comm.rank == 0:
            try:
                if check and self._path.exists():
                    history(self._path)
                append(self._path, entry)
            except UserError as caught:
                error = caught
        error = self._comm.bcast(error)
        if error is not None:
            raise error


def append(path: Path, entry: dict[str, Any]) -> None:
    """Write one line and sync it. Raises ConfigError where the file cannot be written."""
    line = (json.dumps(entry, allow_nan=False) + "\n").encode()
    try:
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
    except OSError as error:
        raise ConfigError(
            f"ledger {path} cannot be written: {error.strerror}; give a writable file with "
            f"--ledger or DPSGD_LEDGER"
        ) from None


def _drop_torn_line(descriptor: int) -> None:
    """Cut off a last line without its end: a crash before its sync, so nothing of it was used."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        content = os.pread(descriptor, size, 0)
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)


def history(path: Path) -> list[tuple[Steps, float]] | None:
    """All releases on record, each with its imprecision; None if one of them was not private.

    Raises PrivacyError for a line that cannot be read: what it spent is then unknown. Only a last
    line without its end is passed over, because no event is used before its line is complete.
    """
    runs: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        try:
            entry = json.loads(line)
            run = entry["run"]
            if entry["entry"] == "run":
                runs[run] = entry
                counts.setdefault(run, 0)
            else:
                counts[run] += {"reserve": 1, "return": -1}[entry["entry"]] * entry["events"]
        except (ValueError, KeyError, TypeError):
            raise PrivacyError(
                f"ledger {path} line {number} cannot be read, so what was spent is unknown; "
                f"restore it from a copy, or name another with --ledger"
            ) from None
    if any(counts[run] > 0 and not entry["private"] for run, entry in runs.items()):
        return None
    return [
        (
            Steps(
                sample_rate=entry["sample_rate"],
                noise_multiplier=entry["noise_multiplier"],
                count=counts[run],
            ),
            entry["imprecision_per_step"] * counts[run],
        )
        for run, entry in runs.items()
        if counts[run] > 0
    ]


def merged(steps: list[Steps]) -> list[Steps]:
    """Equal releases as one with their total count."""
    counts: dict[tuple[float, float], int] = {}
    for one in steps:
        key = one.sample_rate, one.noise_multiplier
        counts[key] = counts.get(key, 0) + one.count
    return [
        Steps(sample_rate=rate, noise_multiplier=noise, count=count)
        for (rate, noise), count in counts.items()
    ]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PrivacyError(f"ledger {path} cannot be read: {error}") from None
    complete = text[: text.rfind("\n") + 1]
    return [line for line in complete.splitlines() if line]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
