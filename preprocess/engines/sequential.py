"""One record after the other, in plain Python. Slow, short, and the reference for all others.

Lines are found by Python's own universal newlines: Latin-1 maps every byte to one character and
back, so a line can be cut as text and hashed as the bytes that it was.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np

from preprocess.engines.base import Cleaned, Progress, Refused, open_raw
from preprocess.header import read_header
from preprocess.records import Refusal, read_record
from preprocess.spec import Spec
from preprocess.split import Split, place

RECORDS_BETWEEN_REPORTS = 20_000


def clean(path: Path, spec: Spec, split: Split, progress: Progress) -> Cleaned:
    """Read a file as `engines.base` promises."""
    codes = bytearray()
    sides = bytearray()
    shards: list[int] = []
    refused: list[Refused] = []
    imputed: Counter[str] = Counter()
    num_bytes = 0
    with open_raw(path) as file:
        layout, first_line = read_header(file, spec)
        text = io.TextIOWrapper(file, encoding="latin-1", newline=None)
        for number, characters in enumerate(text, first_line):
            line = characters.removesuffix("\n").encode("latin-1")
            num_bytes += len(characters)
            record = read_record(line, layout)
            if record is None:
                continue
            if isinstance(record, Refusal):
                refused.append(Refused(number, record))
            else:
                side, shard = place(line, split)
                codes += bytes(record.codes)
                sides.append(side)
                shards.append(shard)
                imputed.update(record.imputed)
            if number % RECORDS_BETWEEN_REPORTS == 0:
                progress(len(shards) + len(refused), num_bytes)
    return Cleaned(
        codes=np.frombuffer(codes, dtype=np.uint8).reshape(-1, len(spec.columns)),
        sides=np.frombuffer(sides, dtype=np.uint8),
        shards=np.array(shards, dtype=np.uint16),
        refused=refused,
        imputed=imputed,
    )
