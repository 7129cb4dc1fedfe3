"""Many lines at once; see `preprocess.blocks`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.blocks import Block, read
from preprocess.engines.base import Batch, Job, Refused
from preprocess.rows import row_type
from preprocess.split import places_of


def clean(job: Job) -> Iterator[Batch]:
    """Read files as `engines.base` promises."""
    dtype = row_type(job.spec)
    num_records = num_bytes = 0
    for number, source in enumerate(job.sources):
        for block in read(source, job.spec, job.lookup, job.split):
            yield Batch(
                rows=_rows(block, job, dtype),
                refused=[Refused(number, line, refusal) for line, refusal in block.refused],
                imputed=block.imputed,
                skipped=Counter({name: len(lines) for name, lines in block.skipped.items()}),
            )
            num_records += block.num_records
            num_bytes += block.num_bytes
            job.progress(num_records, num_bytes)


def _rows(block: Block, job: Job, dtype: np.dtype[np.void]) -> NDArray[Any]:
    rows = np.empty(len(block.kept), dtype)
    has_units = bool(job.spec.unit.key)
    sides, shards, units = places_of(block.unit_digests if has_units else block.digests, job.split)
    rows["_side"], rows["_shard"], rows["_unit"] = sides, shards, units
    if has_units:
        rows["_order"] = block.digests[:, 2]
    for name, codes in block.codes.items():
        rows[name] = codes
    return rows
