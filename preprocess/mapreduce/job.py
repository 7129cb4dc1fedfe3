"""JOB.json: what a mapper or reducer must know, wherever it runs.

Which columns a file has is found out once, when the job is described: a split from the middle of a
file has no header. Files may have their columns in different orders.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.errors import DataError
from preprocess.header import BOM, layout_of, parse_header, read_first_line, read_header
from preprocess.join import join_places
from preprocess.mapreduce import CONTROL, INPUT
from preprocess.mapreduce.reader import Reader
from preprocess.schema import as_schema, from_schema
from preprocess.sources import Source, open_source
from preprocess.spec import Spec
from preprocess.split import Split

if TYPE_CHECKING:
    from preprocess.engines.base import Job


@dataclass(frozen=True, kw_only=True)
class Input:
    """A raw file, and its header where it has one: the line, and the byte at which it begins."""

    name: str
    path: str
    state: tuple[int, int]  # size and time of change, as in `sources.Source`
    boms: int  # at its start; the first of them is no part of the text
    header: bytes = b""
    header_at: int = -1

    @property
    def num_bytes(self) -> int:
        """Of the whole file."""
        return self.state[0]

    def as_source(self) -> Source:
        """The same for `preprocess.sources`."""
        return Source(name=self.name, path=Path(self.path), packing="none",
                      num_bytes=self.num_bytes, state=self.state)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of JOB.json."""

    spec: Spec
    split: Split
    inputs: list[Input]
    joined: Input | None
    made_from: dict[str, Any] | None  # what the manifest says of it, see `writer.origin`

    def reader(self, source: int) -> Reader:
        """For the lines of an input."""
        spec, given = self.spec, self.inputs[source]
        if not spec.first_line_names:
            return Reader(layout_of(list(spec.header), spec))
        return Reader(parse_header(given.header, spec))

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Of the second file, as `join.cut` wants them."""
        return join_places(self.joined.header, self.spec) if self.joined else ()


@dataclass(frozen=True, slots=True)
class Part:
    """The split of an input that a mapper reads: the lines that begin in (start, start + length],
    or in [0, length] if it is the first. The second file's number is that after the last input."""

    source: int
    input: Input
    start: int
    length: int | None  # None: up to the end

    @property
    def name(self) -> str:
        """Key of what is told about it; the order of names is that of the files and splits."""
        return f"{CONTROL.decode()}{self.source:05d}-{self.start:016d}"

    @property
    def begins_before_header(self) -> bool:
        """Whether its first line is that of the header, or in front of it."""
        return self.start < self.input.header_at or self.start == self.input.header_at == 0


def describe_job(job: Job, path: Path, made_from: dict[str, Any] | None = None) -> None:
    """Write what mappers and reducers of a job need. Its files must be plain text."""
    split = job.split
    inputs = [_describe(source, job.spec) for source in job.sources]
    joined = None if job.joined is None else _describe(job.joined, job.spec, is_second=True)
    document = {
        "schema": as_schema(job.spec),
        "split": {"salt": split.salt, "test_fraction": split.test_fraction, "shards": split.shards},
        "inputs": list(map(_as_json, inputs)),
        "joined": joined and _as_json(joined),
        "made_from": made_from,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_job(path: Path | str) -> Description:
    """The inverse. Raises DataError."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        inputs = [_from_json(entry) for entry in document["inputs"]]
        joined = document["joined"] and _from_json(document["joined"])
        split = Split(**document["split"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} must be what plan has written: {error}") from None
    return Description(
        spec=from_schema(document["schema"]), split=split, inputs=inputs, joined=joined,
        made_from=document.get("made_from"),
    )  # fmt: skip


def find_part(description: Description, environment: Mapping[str, str]) -> Part:
    """Which split this mapper has; see `preprocess.mapreduce`.

    Raises DataError for a file that is not of the job.
    """
    inputs = description.inputs + ([description.joined] if description.joined else [])
    number = _number(environment, [one.path for one in inputs])
    length = environment.get("mapreduce_map_input_length")
    start = int(environment.get("mapreduce_map_input_start", 0))
    return Part(number, inputs[number], start, None if length is None else int(length))


def _number(environment: Mapping[str, str], paths: list[str]) -> int:
    """Of the path whose end is most like that of a file, such as hdfs://host/user/me/raw.csv."""
    given, file = environment.get(INPUT), environment.get("mapreduce_map_input_file")
    if given is not None:
        if given not in map(str, range(len(paths))):
            raise DataError(f"{INPUT} must be in 0..{len(paths) - 1}, got {given}")
        return int(given)
    if file is None:
        if len(paths) > 1:
            raise DataError(
                f"{INPUT} must be set where there are several files: 0 for {paths[0]}, and so on"
            )
        return 0
    ours = [_common_end(file, path) for path in paths]
    if not max(ours) or ours.count(max(ours)) > 1:
        raise DataError(
            f"mapreduce_map_input_file must end like one of {', '.join(paths)}, got {file}"
        )
    return ours.index(max(ours))


def _common_end(one: str, other: str) -> float:
    """How many folders and names at the end are the same."""
    if one.removeprefix("file:") == other:
        return math.inf
    ends = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return next((n for n, (left, right) in enumerate(ends) if left != right), math.inf)


def _describe(source: Source, spec: Spec, *, is_second: bool = False) -> Input:
    with open_source(source) as file:
        if source.packing != "none":
            raise DataError("must be plain text, not packed")
        if is_second:
            join_places(read_first_line(file)[0], spec)
        else:
            read_header(file, spec)
        end = file.tell()
        file.seek(0)
        boms = 0
        while file.read(len(BOM)) == BOM:
            boms += 1
        header, header_at = b"", -1
        if is_second or spec.first_line_names:
            file.seek(0)
            header = file.read(end).splitlines(keepends=True)[-1]
            header_at = end - len(header)
            header = header.rstrip(b"\r\n")
            header = header if header_at else header.removeprefix(BOM)
    return Input(name=source.name, path=os.path.realpath(source.path), state=source.state,
                 boms=boms, header=header, header_at=header_at)  # fmt: skip


def _as_json(one: Input) -> dict[str, Any]:
    return asdict(one) | {"header": one.header.decode("latin-1")}


def _from_json(entry: dict[str, Any]) -> Input:
    header = entry["header"].encode("latin-1")
    return Input(**entry | {"header": header, "state": tuple(entry["state"])})
