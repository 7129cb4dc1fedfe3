"""One record after the other, in plain Python. Slow, short, and the reference for all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from preprocess.engines.base import Batch, Job, Refused
from preprocess.header import read_header
from preprocess.records import NOT_IN_UNIVERSE, Refusal, read_record
from preprocess.rows import pack, row_struct, row_type
from preprocess.sources import lines_of, open_source

RECORDS_IN_BATCH = 20_000


def clean(job: Job) -> Iterator[Batch]:
    """Read files as `engines.base` promises."""
    packer, dtype = row_struct(job.spec), row_type(job.spec)
    rows, refused, imputed, skipped = bytearray(), list[Refused](), Counter[str](), Counter[str]()
    num_records = num_bytes = 0

    def batch() -> Batch:
        return Batch(
            rows=np.frombuffer(bytes(rows), dtype),
            refused=refused.copy(),
            imputed=imputed.copy(),
            skipped=skipped.copy(),
        )

    for number, source in enumerate(job.sources):
        with open_source(source) as file:
            layout, first_line = read_header(file, job.spec)
            for line_number, line in enumerate(lines_of(file), first_line):
                num_bytes += len(line) + 1
                record = read_record(line, layout, job.lookup)
                if record is None:
                    continue
                num_records += 1
                if not isinstance(record, Refusal):
                    rows += pack(packer, line, record, job.split)
                    imputed.update(record.imputed)
                elif record.rule == NOT_IN_UNIVERSE:
                    skipped[record.column] += 1
                else:
                    refused.append(Refused(number, line_number, record))
                if num_records % RECORDS_IN_BATCH == 0:
                    yield batch()
                    for done in (rows, refused, imputed, skipped):
                        done.clear()
                    job.progress(num_records, num_bytes)
    yield batch()
