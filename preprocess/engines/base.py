"""What an engine takes and gives. All engines give the same for any input, however odd.

    clean(job) -> batches

Guarantees, tested for every engine of the table against `sequential`:
    the same rows, each with its side, shard and order, in any order of batches;
    the same refusals with the same files, lines, columns, values and rules, in order;
    the same numbers of imputed values and of records that are not in the universe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preprocess.join import read_lookup
from preprocess.records import Refusal
from preprocess.sources import Source
from preprocess.spec import Spec
from preprocess.split import Split

Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the number of records and of bytes done so far."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused record, its file and the number of its line; the first line of a file is 1."""

    source: int  # place in `Job.sources`
    line: int
    refusal: Refusal


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done. `scratch()` is a folder for work in progress, which only the user can
    enter, and which vanishes at the end; it is made when it is asked for."""

    spec: Spec
    split: Split
    sources: list[Source]
    joined: Source | None = None  # the second file, where the spec has a join
    scratch: Callable[[], Path]
    processes: int = 1
    master: str | None = None  # of Spark
    progress: Progress = lambda records, num_bytes: None

    @cached_property
    def lookup(self) -> dict[str, tuple[str, ...] | None] | None:
        """The second file in memory, for engines that work on one machine."""
        return None if self.joined is None else read_lookup(self.joined, self.spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A part of what a job gives; `rows` have the type of `preprocess.rows.row_type`."""

    rows: NDArray[Any]
    refused: list[Refused] = field(default_factory=list)
    imputed: Counter[str] = field(default_factory=Counter)  # by column
    skipped: Counter[str] = field(default_factory=Counter)  # not in the universe, by column

    @property
    def num_records(self) -> int:
        """Kept, refused and skipped ones."""
        return len(self.rows) + len(self.refused) + self.skipped.total()


Engine: TypeAlias = Callable[[Job], Iterator[Batch]]


def empty_rows(dtype: np.dtype[np.void]) -> NDArray[Any]:
    """None of them."""
    return np.empty(0, dtype)
