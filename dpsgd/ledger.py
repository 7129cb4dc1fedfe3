"""The privacy ledger: what may touch the data is written down, and synced, before it does.

One append-only file of JSON lines beside the data set records every run on it:

    {"entry": "run", "run": ..., "unit": "record", "sample_rate": ..., "noise_multiplier": ..., ...}
    {"entry": "reserve", "run": ..., "events": 64}        before the first of these steps

Numbers that preprocess fitted for a budget are a run of one step, of sample rate 1.

Guarantees:
    events are on disk before they are used, on every rank: rank 0 writes, the others wait for it;
    what was spent is never understated: a crash leaves events reserved that were not used, and a
        line that cannot be read or makes no sense is an error;
    a run without privacy, or with a known seed, makes the composition infinite.

The file is readable by its owner only; it holds no data and no keys.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpsgd.accounting import Steps
from dpsgd.errors import ConfigError, PrivacyError, UserError
from preprocess import ledger

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
        for number, entry in enumerate([*self._fitted(), header]):
            self._append(entry, check=number == 0)

    def next(self) -> int:
        """The number of the next event, which is on disk before this returns on any rank."""
        if self._next == self._reserved:
            more = max(1, min(RESERVATION, self._run.steps - self._reserved))
            self._append({"entry": "reserve", "run": self._run.id, "events": more})
            self._reserved += more
        self._next += 1
        return self._next - 1

    def _fitted(self) -> list[dict[str, Any]]:
        """Entries about fitted numbers of the spec, if this ledger does not have them yet."""
        fitted = self._run.fitted
        if fitted is None:
            return []
        num_known = 0
        if self._comm.rank == 0:
            with suppress(
                UserError
            ):  # a ledger that cannot be read is refused, on all ranks, below
                lines = _lines(self._path) if self._path.exists() else []
                num_known = sum(fitted.id in line for line in lines)
        entries = ledger.one_release(
            fitted.id, self._run.unit, fitted.steps.noise_multiplier, self._run.delta,
            fitted.imprecision,
        )  # fmt: skip
        return entries[self._comm.bcast(num_known) :]  # a crash may have left the first of two

    def _append(self, entry: dict[str, Any], check: bool = False) -> None:
        """Write on rank 0; all ranks go on, or raise, when it is done."""
        error: UserError | None = None
        if self._comm.rank == 0:
            try:
                if check and self._path.exists():
                    history(self._path, self._run.unit)
                append(self._path, entry)
            except UserError as caught:
                error = caught
        error = self._comm.bcast(error)
        if error is not None:
            raise error


def append(path: Path, entry: dict[str, Any]) -> None:
    """Write one line and sync it. Raises ConfigError where the file cannot be written."""
    try:
        ledger.append(path, entry)
    except OSError as error:
        raise ConfigError(
            f"ledger {path} cannot be written: {error.strerror}; give a writable file with "
            f"--ledger or DPSGD_LEDGER"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One run as the ledger tells it."""

    private: bool
    steps: Steps
    imprecision_per_step: float

    @property
    def imprecision(self) -> float:
        """Total variation between its noise and true Gaussians."""
        return self.imprecision_per_step * self.steps.count


def history(path: Path, unit: str) -> list[Recorded]:
    """All runs on record that reserved events.

    Raises PrivacyError for a line that cannot be read, contradicts another or is for a different
    unit of privacy: what was spent is then unknown. Only a last line without its end is passed
    over, because no event is used before its line is complete.
    """
    runs: dict[str, Recorded] = {}
    for number, line in enumerate(_lines(path), start=1):
        try:
            _read_entry(json.loads(line), runs, unit)
        except (ValueError, KeyError, TypeError) as error:
            raise PrivacyError(
                f"ledger {path} line {number} cannot be read ({error}), so what was spent is "
                f"unknown; restore it from a copy, or name another with --ledger"
            ) from None
    return [run for run in runs.values() if run.steps.count]


def _read_entry(entry: dict[str, Any], runs: dict[str, Recorded], unit: str) -> None:
    name, kind = entry["run"], entry["entry"]
    if kind == "run":
        if name in runs:
            raise ValueError(f"run {name} begins twice")
        if entry["unit"] != unit:
            raise ValueError(f"unit must be {unit!r}, got {entry['unit']!r}")
        if not isinstance(entry["private"], bool) or not 0 <= entry["imprecision_per_step"] < 1:
            raise ValueError("private must be true or false, imprecision_per_step in [0, 1)")
        runs[name] = Recorded(
            private=entry["private"],
            steps=Steps(
                sample_rate=entry["sample_rate"],
                noise_multiplier=entry["noise_multiplier"],
                count=0,
            ),
            imprecision_per_step=entry["imprecision_per_step"],
        )
    elif kind == "reserve":
        events, run = entry["events"], runs[name]
        if type(events) is not int or events < 1:
            raise ValueError(f"events must be an integer of at least 1, got {events!r}")
        steps = replace(run.steps, count=run.steps.count + events)
        runs[name] = replace(run, steps=steps)
    else:
        raise ValueError(f"entry must be run or reserve, got {kind!r}")


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
    except IsADirectoryError:
        raise ConfigError(f"ledger must be a file, got the folder {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PrivacyError(f"ledger {path} cannot be read: {error}") from None
    complete = text[: text.rfind("\n") + 1]
    return [line for line in complete.splitlines() if line]
