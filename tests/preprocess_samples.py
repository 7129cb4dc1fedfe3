"""Small inputs and outputs that several tests of preprocess share."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from helpers import clean_environment
from preprocess.engines.base import Cleaned, Refused
from preprocess.records import Refusal
from preprocess.specs import CENSUS_2000
from preprocess.split import Split
from preprocess.writer import new_dataset, write_dataset

GOOD = "13,1101,1,51,11,2200,0,0,0,1,0,1,0,0,0,0,1,13121"
NAMES = [column.name for column in CENSUS_2000.columns]
REFUSED = [
    Refused(7, Refusal("age", 'a"b,c', "not-an-integer")),
    Refused(9, Refusal("", "17", "field-count")),
]


def cleaned(num_rows: int = 200, num_shards: int = 4) -> Cleaned:
    """Rows that say where they came from: the codes of column c in row r are (r + c) mod 251."""
    rows = np.arange(num_rows)
    return Cleaned(
        codes=((rows[:, None] + np.arange(len(NAMES))) % 251).astype(np.uint8),
        sides=(rows % 5 == 0).astype(np.uint8),
        shards=(rows * 7 % num_shards % 3).astype(np.uint16),  # the last shard stays empty
        refused=REFUSED,
        imputed=Counter({"educ": 2, "age": 1}),
    )


def write(path: Path, rows: Cleaned | None = None) -> dict[str, Any]:
    """A data set of these rows; gives its manifest."""
    split = Split(shards=4)
    with new_dataset(path) as folder:
        return write_dataset(folder, rows or cleaned(), CENSUS_2000, split, "sequential")


def run(*arguments: str | Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """python -m preprocess, as a process of its own."""
    return subprocess.run(
        [sys.executable, *python, "-m", "preprocess", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
