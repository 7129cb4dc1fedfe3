"""What an engine gives, gathered: rows by shard, counts, and refusals in the quarantine.

Rows wait in memory, and beyond SPILL_BYTES in one file for each shard. So memory does not grow with
the data, but for one shard, which is sorted before it is written.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.engines.base import Batch, Job, Refused
from preprocess.errors import DataError
from preprocess.records import NOT_IN_UNIVERSE, RULES
from preprocess.rows import row_type
from preprocess.split import SIDES

SPILL_BYTES = 32 << 20
FIRST_LINES = 3  # that are remembered for each kind of refusal


@dataclass(kw_only=True)
class Found:
    """The counts of a job. They are exact, so they are as private as the data."""

    kept: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  # by rule and column
    first_lines: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    imputed: Counter[str] = field(default_factory=Counter)  # by column
    skipped: Counter[str] = field(default_factory=Counter)  # not in the universe, by column
    over_limit: int = 0  # records of units that have too many
    sides: Counter[str] = field(default_factory=Counter)  # records
    labels: set[float] = field(default_factory=set)  # two of them at most

    def add(self, batch: Batch, job: Job, label: str) -> None:
        """Count a batch."""
        self.kept += len(batch.rows)
        self.imputed += batch.imputed
        self.skipped += batch.skipped
        for refused in batch.refused:
            kind = refused.refusal.rule, refused.refusal.column
            self.refused[kind] += 1
            first = self.first_lines.setdefault(kind, [])
            if len(first) < FIRST_LINES:
                first.append(place_of(refused, job))
        if len(self.labels) < 2:
            self.labels.update(np.unique(batch.rows[label])[:2].tolist())

    def as_json(self) -> dict[str, Any]:
        """The counts of a manifest."""
        by_rule: Counter[str] = Counter()
        for (rule, _), number in self.refused.items():
            by_rule[rule] += number
        refused, skipped = by_rule.total(), self.skipped.total()
        more: dict[str, Any] = {}
        if skipped:
            more["not_in_universe"] = skipped
        if self.over_limit:
            more["over_unit_limit"] = self.over_limit
        return {
            "records": self.kept + refused + skipped,
            "kept": self.kept - self.over_limit,
            "refused": refused,
            **more,
            "refused_by_rule": {
                rule: by_rule[rule] for rule in RULES if by_rule[rule] and rule != NOT_IN_UNIVERSE
            },
            "imputed_by_column": dict(sorted((+self.imputed).items())),
            **{side: self.sides[side] for side in SIDES},
        }


def place_of(refused: Refused, job: Job) -> str:
    """Where a refused record is: the line, with the name of its file where there are several."""
    if len(job.sources) == 1:
        return str(refused.line)
    return f"{job.sources[refused.source].name}:{refused.line}"


class Gathered:
    """Rows of a job by shard; a context, at whose end the quarantine is complete.

    Without a quarantine nothing is written: of rows only what counting needs is kept, in memory.
    """

    def __init__(self, job: Job, quarantine: Path | None) -> None:
        self.found = Found()
        self._job = job
        names = list(row_type(job.spec).names or ())
        self._fields = names if quarantine is not None else _to_count(names)
        self._type = np.dtype([(name, row_type(job.spec)[name]) for name in self._fields])
        self._waiting = np.empty(SPILL_BYTES // self._type.itemsize, self._type)
        self._num_waiting = 0
        self._spilled = False
        self._file = None
        if quarantine is not None:
            descriptor = os.open(quarantine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = os.fdopen(
                descriptor, "w", encoding="utf-8", errors="surrogateescape", newline=""
            )
            self._quarantine = csv.writer(self._file, lineterminator="\n")
            self._quarantine.writerow(["file", "line", "column", "value", "rule"])

    def __enter__(self) -> Gathered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())

    def take(self, batches: Iterable[Batch]) -> None:
        """Gather all of it."""
        for batch in batches:
            self.found.add(batch, self._job, self._job.spec.label)
            if self._file is not None:
                self._quarantine.writerows(
                    (self._job.sources[one.source].name, one.line, *one.refusal)
                    for one in batch.refused
                )
            self._hold(batch.rows)

    def _hold(self, rows: NDArray[Any]) -> None:
        """Copy rows to those that wait, so that nothing else of a batch stays in memory."""
        if self._num_waiting + len(rows) > len(self._waiting):
            if self._file is not None and self._num_waiting:
                self._spill()
            needed = self._num_waiting + len(rows)
            if needed > len(self._waiting):
                more = np.empty(max(needed, 2 * self._num_waiting), self._type)
                more[: self._num_waiting] = self._waiting[: self._num_waiting]
                self._waiting = more
        held = self._waiting[self._num_waiting : self._num_waiting + len(rows)]
        for name in self._fields if self._file is None else ():
            held[name] = rows[name]
        if self._file is not None:
            held[:] = rows
        self._num_waiting += len(rows)

    def shards(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Side and rows of every shard, in the order of their numbers; a unit's rows are adjacent.

        Drops what a unit has beyond its limit.
        """
        num_shards = self._job.split.shards
        if self._spilled:
            self._spill()
            by_place: dict[int, NDArray[Any]] = {}
        else:
            by_place = dict(self._by_place())
            self._waiting = self._waiting[:0]
        for side in range(len(SIDES)):
            for shard in range(num_shards):
                place = side * num_shards + shard
                rows = by_place.pop(place, np.empty(0, self._type))
                if self._spilled and (path := self._path(place)).exists():
                    rows = np.fromfile(path, self._type)
                    path.unlink()
                yield side, self._in_order(rows, SIDES[side])
        if sum(self.found.sides.values()) + self.found.over_limit != self.found.kept:
            raise DataError(
                f"rows must be of shards 0..{num_shards - 1}, got {self.found.kept:,}, of which "
                f"{sum(self.found.sides.values()):,} are: they are of another split"
            )

    def _in_order(self, rows: NDArray[Any], side: str) -> NDArray[Any]:
        limit = self._job.spec.unit
        if not limit.key:
            if "_unit" in self._fields:
                rows = _sorted(rows, ["_unit"])
        elif len(rows):
            rows = _sorted(rows, ["_unit", "_order"])
            starts = unit_starts(rows)
            lengths = np.diff(starts, append=len(rows))
            within = np.arange(len(rows)) - np.repeat(starts, lengths)
            self.found.over_limit += int(np.count_nonzero(within >= limit.max_records))
            rows = rows[within < limit.max_records]
        self.found.sides[side] += len(rows)
        return rows

    def _by_place(self) -> Iterator[tuple[int, NDArray[Any]]]:
        rows = self._waiting[: self._num_waiting]
        num_shards = self._job.split.shards
        kind = np.uint16 if len(SIDES) * num_shards <= 1 << 16 else np.uint32  # 16 bits sort fast
        places = (rows["_side"].astype(np.uint32) * num_shards + rows["_shard"]).astype(kind)
        order = np.argsort(places, kind="stable")
        places = places[order]
        starts = np.flatnonzero(np.diff(places.astype(np.int64), prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=False):  # no rows, no start
            yield int(places[start]), _taken(rows, order[start:stop])

    def _spill(self) -> None:
        self._spilled = True
        for place, rows in self._by_place():
            with self._path(place).open("ab") as file:
                file.write(rows.tobytes())
        self._num_waiting = 0

    def _path(self, place: int) -> Path:
        return self._job.scratch() / f"rows-{place:06d}"


def _to_count(names: list[str]) -> list[str]:
    """What counting needs: where a row goes, and where a unit has several, which it is."""
    return ["_side", "_shard", "_unit", "_order"] if "_order" in names else ["_side", "_shard"]


def _sorted(rows: NDArray[Any], keys: list[str]) -> NDArray[Any]:
    """In the order of keys, and where these are equal and the rest is not, of the rest.

    Equal lines are equal rows, unless two files have their columns in different orders.
    """
    columns = [np.ascontiguousarray(rows[key]) for key in keys]
    order = np.lexsort(columns[::-1]) if len(keys) > 1 else np.argsort(columns[0])
    rows = _taken(rows, order)
    same = np.ones(max(len(rows) - 1, 0), np.bool_)
    for key in keys:
        same &= rows[key][1:] == rows[key][:-1]
    at = np.flatnonzero(same)
    if (rows[at] != rows[at + 1]).any():
        names = [*keys, *(name for name in rows.dtype.names or () if name not in keys)]
        rows = rows[np.lexsort([rows[name] for name in reversed(names)])]
    return rows


def _taken(rows: NDArray[Any], order: NDArray[np.intp]) -> NDArray[Any]:
    """rows[order]; as plain bytes it takes a third of the time."""
    matrix = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    return matrix.take(order, axis=0).view(rows.dtype).reshape(-1)


def unit_starts(rows: NDArray[Any]) -> NDArray[np.intp]:
    """Where the rows of each unit begin, in rows that are in order."""
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = rows["_unit"][1:] != rows["_unit"][:-1]
    return np.flatnonzero(is_first)
