"""What executors do in Python: put odd lines through the oracle.

Nothing but the standard library is needed here. What is found goes to files in a folder, so that
the driver has the answers to MAX_LINES lines in memory, and no more.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from preprocess.join import cut
from preprocess.records import (
    NOT_IN_UNIVERSE,
    Layout,
    Lookup,
    Refusal,
    read_record,
    split_line,
)
from preprocess.rows import pack, row_struct
from preprocess.spec import Spec
from preprocess.split import Split

MAX_LINES = 20_000


@dataclass(slots=True)
class Answers:
    """What the oracle says of some lines; `rows` are as `preprocess.rows.pack` makes them."""

    rows: bytearray = field(default_factory=bytearray)
    refused: list[tuple[int, Refusal]] = field(default_factory=list)  # by id of the line
    imputed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)


def ask(
    lines: Iterable[tuple[int, bytes, Lookup | None]], layout: Layout, split: Split
) -> Iterator[Answers]:
    """Answers about lines, each with its id and the part of the second file that is about it."""
    packer = row_struct(layout.spec)
    remaining = iter(lines)
    while chunk := list(islice(remaining, MAX_LINES)):
        answers = Answers()
        for number, line, lookup in chunk:
            record = read_record(line, layout, lookup)
            if record is None:
                continue
            if not isinstance(record, Refusal):
                answers.rows += pack(packer, line, record, split)
                answers.imputed.update(record.imputed)
            elif record.rule == NOT_IN_UNIVERSE:
                answers.skipped[record.column] += 1
            else:
                answers.refused.append((number, record))
        yield answers


def write_answers(
    rows: Iterable[tuple[Any, ...]], layout: Layout, split: Split, folder: Path
) -> Iterator[str]:
    """Asks about rows (id, line, [key, matches, fields ...]); gives the names of the files."""
    for answers in ask(map(_with_lookup, rows), layout, split):
        path = (
            folder / uuid4().hex
        )  # an attempt that fails, or is one of two, leaves a useless file
        with path.open("xb") as file:
            pickle.dump(answers, file)
        yield path.name


def read_answers(path: Path) -> Answers:
    """The content of such a file, which only the user can have written."""
    with path.open("rb") as file:
        answers: Answers = pickle.load(file)
    return answers


def with_keys(
    rows: Iterable[tuple[int, bytes]], layout: Layout
) -> Iterator[tuple[int, bytes, str | None]]:
    """Adds the key by which the second file is searched, if the line can be cut."""
    assert layout.join is not None
    for number, line in rows:
        fields = split_line(line.decode("utf-8", errors="replace"), layout.spec.separator)
        is_cut = fields is not None and len(fields) == layout.num_fields
        yield number, line, fields[layout.join].strip(layout.blanks) if is_cut and fields else None


def cut_second(
    rows: Iterable[tuple[bytes]], places: tuple[int, ...], spec: Spec
) -> Iterator[tuple[str, ...]]:
    """Key and fields of odd lines of the second file; none of those that cannot be cut."""
    for (line,) in rows:
        if (found := cut(line, places, spec)) is not None:
            yield found[0], *found[1]


def _with_lookup(row: tuple[Any, ...]) -> tuple[int, bytes, Lookup | None]:
    number, line, *second = row
    if not second:
        return number, bytes(line), None
    key, matches, *fields = second
    lookup = {} if matches is None else {key: tuple(fields) if matches == 1 else None}
    return number, bytes(line), lookup
