"""What reducers wrote, as batches: rows first, then refusals in order, with the numbers of lines.

The lines of control, sorted, tell of one split after the other: first how many lines it has, then
what was refused in it. So the number of a line is a sum over the splits in front, made on the way.

Guarantees:
    the output of every split is there, and once, or DataError.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preprocess.engines.base import Batch, Job, Refused, empty_rows
from preprocess.errors import DataError
from preprocess.mapreduce.tasks import unpack
from preprocess.records import Refusal
from preprocess.rows import row_type
from preprocess.sources import COPY_BYTES

MAX_OPEN_FILES = 200
REFUSED_IN_BATCH = 20_000

Part: TypeAlias = tuple[NDArray[Any], Path | None]
"""Rows, and a file of sorted lines of control."""


def batches(parts: Iterable[Part], job: Job) -> Iterator[Batch]:
    """All that the parts have."""
    files = []
    num_records = 0
    for rows, control in parts:
        if control is not None:
            files.append(control)
        if len(rows):
            num_records += len(rows)
            yield Batch(rows=rows)
    splits = _Splits(job)
    for batch in _told(_merged(files), splits, job):
        num_records += batch.num_records
        yield batch
    splits.end()
    if num_records != splits.num_records:
        raise DataError(
            f"output must have {splits.num_records:,} records, as the splits had, got "
            f"{num_records:,}: parts are missing or there twice"
        )


def _told(lines: Iterable[bytes], splits: _Splits, job: Job) -> Iterator[Batch]:
    """What lines of control say."""
    refused, imputed, skipped = list[Refused](), Counter[str](), Counter[str]()
    nothing = empty_rows(row_type(job.spec))
    for line in lines:
        place, told = _parsed(line)
        if isinstance(told, list):
            refused.append(Refused(place[0], splits.line(*place), Refusal(*told)))
            if len(refused) == REFUSED_IN_BATCH:
                yield Batch(rows=nothing, refused=refused)
                refused = []
            continue
        imputed.update(told["imputed"])
        skipped.update(told["skipped"])
        if place:
            splits.begin(place[0], place[1], told)
    yield Batch(rows=nothing, refused=refused, imputed=imputed, skipped=skipped)


def _parsed(line: bytes) -> tuple[list[int], Any]:
    """Source, start and index, as many of them as there are, and what is told."""
    try:
        name, _, value = line.decode().partition("\t")
        told = json.loads(value)
        return [int(number) for number in name[1:].split("-") if number], told
    except ValueError:
        raise DataError(
            f"output must be what reducers wrote, a line of {len(line)} bytes is not"
        ) from None


def read_parts(paths: Iterable[Path], job: Job) -> Iterator[Part]:
    """The output files of reducers. Lines of control wait in files in the scratch folder."""
    dtype = row_type(job.spec)
    for number, path in enumerate(paths):
        told = []
        with path.open("rb") as file:
            while lines := file.readlines(COPY_BYTES):
                try:
                    rows, control = unpack(line.rstrip(b"\n") for line in lines)
                    yield np.frombuffer(rows, dtype), None
                except ValueError as error:
                    raise DataError(f"{path} must be what a reducer wrote: {error}") from None
                told += control
        sorted_control = job.scratch() / f"control-{number:06d}"
        sorted_control.write_bytes(b"".join(line + b"\n" for line in sorted(told)))
        yield empty_rows(dtype), sorted_control


@dataclass
class _Splits:
    """Adds up lines, and checks that splits lie one behind the other in every file."""

    job: Job
    num_records: int = 0
    _source: int = 0
    _start: int = 0
    _stop: int = 0  # byte at which the next split must begin
    _first_line: int = 1  # of the split
    _num_lines: int = 0
    _sources: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._sources = [*self.job.sources, *filter(None, [self.job.joined])]

    def begin(self, source: int, start: int, told: dict[str, Any]) -> None:
        """The next split, and what is told of it."""
        if source == self._source:
            self._first_line += self._num_lines
        else:
            self._check_stop()
            self._source += 1
            self._stop, self._first_line = 0, 1
        if (source, start) != (self._source, self._stop):
            self._missing()
        whole = self._sources[source].num_bytes
        self._start = start
        self._stop = whole if told["bytes"] is None else start + told["bytes"]
        self._num_lines = told["lines"]
        self.num_records += told["records"]

    def line(self, source: int, start: int, index: int) -> int:
        """The number in the file of a line in the split."""
        if (source, start) != (self._source, self._start):
            self._missing()
        return self._first_line + index

    def end(self) -> None:
        """No split is left."""
        self._check_stop()
        if self._source != len(self._sources) - 1:
            self._missing(self._source + 1)

    def _check_stop(self) -> None:
        if self._stop != self._sources[self._source].num_bytes:
            self._missing()

    def _missing(self, source: int | None = None) -> None:
        number = self._source if source is None else source
        name = self._sources[min(number, len(self._sources) - 1)].name
        raise DataError(
            f"output must have every split of {name} once, at byte {self._stop:,} it does not: "
            f"parts are missing or there twice, or the file was not the one that was planned with"
        )


def _merged(paths: list[Path]) -> Iterator[bytes]:
    """The lines of sorted files in order. Too many to be open at once are merged in steps."""
    step = 0
    while len(paths) > MAX_OPEN_FILES:
        target = paths[0].with_name(f"merged-{step:04d}")
        with target.open("wb") as out:
            out.writelines(_merged(paths[:MAX_OPEN_FILES]))
        paths, step = [*paths[MAX_OPEN_FILES:], target], step + 1
    with ExitStack() as stack:
        yield from heapq.merge(*(stack.enter_context(path.open("rb")) for path in paths))
