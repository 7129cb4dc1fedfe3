"""Small inputs, jobs and outputs that several tests of preprocess share."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import clean_environment
from preprocess import engines, shards
from preprocess.engines.base import Batch, Job, Refused
from preprocess.gather import Gathered
from preprocess.records import Refusal
from preprocess.rows import row_type
from preprocess.sources import find_sources
from preprocess.spec import Spec
from preprocess.specs import CENSUS_2000
from preprocess.split import Split
from preprocess.writer import new_dataset, write_dataset

GOOD = "13,1101,1,51,11,2200,0,0,0,1,0,1,0,0,0,0,1,13121"
HEADER = ",".join(CENSUS_2000.header)
NAMES = [column.name for column in CENSUS_2000.columns]
REFUSED = [
    Refused(0, 7, Refusal("age", 'a"b,c', "not-an-integer")),
    Refused(0, 9, Refusal("", "17", "field-count")),
]
ODD_TOKENS = [
    *(b"0", b"1", b"16", b"51", b"115", b"116", b"007", b" 1", b"1\t", b"", b"NA", b"na", b"?"),
    *(b".", b'"1"', b'"1', b'1"', b'" 1 "', b'"1,1"', b'""', b'"1""1"', b"12.7", b" 12", b"1_2"),
    *(b"+1", b"-1", b"0x10", b"1e1", b"\xef\xbc\x91\xef\xbc\x92", b"\xff", b"\x00", b"1\x00"),
    *(b"\xc2\xa01", b"\x0b1", b"\x85", b"\xe2\x80\xa8", b"#1", b"9999999999", b"256", b"65535"),
    *(b"null", b"true", b"\x1a", b"'1'", b"1;1", b"\\", b"\x1c", b"1.0", b"\xef\xbb\xbf1", b'"1\t'),
    *(
        b'"1,\n2"',
        b'"1\r\n2"',
        b"1\n2",
        b"-0",
        b"1|1",
        b"1\t1",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
    ),
]
"""Fields that some parser or other would take for a number; a line end in them ends the line."""
LINE_ENDS = [b"\n", b"\r\n", b"\r"]
FAST_ENGINES = ("sequential", "polars")
"""Those that work in this process: quick enough for hundreds of small files."""
ENGINES = [
    pytest.param(name, marks=pytest.mark.spark) if name == "spark" else pytest.param(name)
    for name in engines.ENGINES
]
"""All of them, for tests of one file each."""


def job_of(
    *inputs: Path | str,
    folder: Path,
    spec: Spec = CENSUS_2000,
    split: Split | None = None,
    join: Path | None = None,
    progress: Callable[[int, int], None] = lambda records, num_bytes: None,
) -> Job:
    """What the command would ask an engine for; work in progress goes to a folder in `folder`."""
    made: list[Path] = []

    def scratch() -> Path:
        if not made:
            made.append(Path(mkdtemp(dir=folder, prefix="scratch-")))
        return made[0]

    return Job(
        spec=spec,
        split=split or Split(),
        sources=find_sources(inputs),
        joined=find_sources([join])[0] if join else None,
        scratch=scratch,
        processes=2,
        progress=progress,
    )


def together(batches: Iterable[Batch], spec: Spec = CENSUS_2000) -> Batch:
    """All batches as one."""
    every = list(batches)
    return Batch(
        rows=np.concatenate([np.empty(0, row_type(spec)), *(batch.rows for batch in every)]),
        refused=[refused for batch in every for refused in batch.refused],
        imputed=sum((batch.imputed for batch in every), Counter()),
        skipped=sum((batch.skipped for batch in every), Counter()),
    )


def clean(engine: str, job: Job) -> Batch:
    """What an engine gives for a job."""
    return together(engines.load(engine)(job), job.spec)


def assert_same(found: Batch, expected: Batch) -> None:
    """As `engines.base` promises: the same rows in any order, all else in the same order."""
    assert found.rows.dtype == expected.rows.dtype
    assert sorted(row.tobytes() for row in found.rows) == sorted(
        row.tobytes() for row in expected.rows
    )
    assert found.refused == expected.refused
    assert +found.imputed == +expected.imputed
    assert +found.skipped == +expected.skipped


def codes_of(batch: Batch, spec: Spec = CENSUS_2000) -> list[tuple[float, ...]]:
    """The codes of each row."""
    rows: list[tuple[float, ...]] = batch.rows[[c.name for c in spec.columns]].tolist()
    return rows


def odd_text(
    good: Callable[[Random], list[bytes]], num_lines: int, seed: int, separator: bytes = b","
) -> bytes:
    """Lines of good fields, two in three of them damaged in some way, with all line ends."""
    draw = Random(seed)
    text = b""
    for _ in range(num_lines):
        fields = good(draw)
        kind = draw.randrange(12)
        if kind < 6:
            for _ in range(draw.randint(1, 2)):
                fields[draw.randrange(len(fields))] = draw.choice(ODD_TOKENS)
        if kind == 6:
            fields.pop(draw.randrange(len(fields)))
        if kind == 7:
            fields.insert(draw.randrange(len(fields)), draw.choice(ODD_TOKENS))
        line = draw.choice([b"", b" \t", b"\x00", b'"']) if kind == 8 else separator.join(fields)
        text += line + draw.choice(LINE_ENDS)
    return text


def cleaned(num_rows: int = 200, num_shards: int = 4) -> Batch:
    """Rows that say where they came from: the codes of column c in row r are (r + c) mod 251.

    Their order is the reverse one. The last shard stays empty.
    """
    numbers = np.arange(num_rows)
    rows = np.zeros(num_rows, row_type(CENSUS_2000))
    rows["_side"] = numbers % 5 == 0
    rows["_shard"] = numbers * 7 % num_shards % 3
    rows["_unit"] = num_rows - numbers
    for place, name in enumerate(NAMES):
        rows[name] = (numbers + place) % 251
    return Batch(rows=rows, refused=REFUSED, imputed=Counter({"educ": 2, "age": 1}))


def write(path: Path, batch: Batch | None = None) -> dict[str, Any]:
    """A data set of these rows in four shards; gives its manifest."""
    with new_dataset(path) as folder:
        write_into(folder, batch)
    return shards.read_manifest(path)


def write_into(folder: Path, batch: Batch | None = None) -> None:
    """The same in a folder that is there."""
    job = job_of(__file__, folder=folder, split=Split(shards=4))
    job = replace(job, sources=[replace(job.sources[0], name="raw.csv")])
    with Gathered(job, folder / shards.QUARANTINE) as gathered:
        gathered.take([batch or cleaned()])
    write_dataset(folder, gathered, {"format": shards.FORMAT, "unit": "record"}, job)


def read(dataset: Path, side: str) -> dict[str, NDArray[Any]]:
    """All rows of one side of a data set."""
    manifest = shards.read_manifest(dataset)
    return shards.read_rows(dataset, manifest, side, 0, shards.num_rows(manifest, side))


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(*arguments: str | Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """python -m preprocess, as a process of its own."""
    return subprocess.run(
        [sys.executable, *python, "-m", "preprocess", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
