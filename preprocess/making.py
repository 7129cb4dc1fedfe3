"""From raw files to a data set, whichever engine does the work; what all commands share.

    make_dataset(specs.read_spec("adult"), find_sources(["adult.data"]), Path("data/adult"))

Nothing is fitted here, and nothing charged: `preprocess.__main__` does that before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preprocess import engines
from preprocess.engines.base import Engine, Job, Progress
from preprocess.gather import Found, Gathered
from preprocess.parquet import readable
from preprocess.schema import as_schema
from preprocess.shards import FORMAT, QUARANTINE
from preprocess.sources import Source
from preprocess.spec import Spec
from preprocess.split import HASH_NAME, Split
from preprocess.writer import new_dataset, origin, scratch_folder, write_dataset


def make_dataset(
    spec: Spec,
    sources: Sequence[Source],
    output: Path | None,
    *,
    joined: Source | None = None,
    split: Split | None = None,
    engine: str = engines.AUTO,
    clean: Engine | None = None,
    processes: int | None = None,
    master: str | None = None,
    progress: Progress = lambda records, num_bytes: None,
    check: Callable[[Found], None] = lambda found: None,
    made_from: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> Found:
    """Clean the sources and write the folder `output`; gives the counts. Without output only these.

    `clean` does the work in place of the named engine. `check` may raise before anything appears at
    `output`. `made_from` is by default the origin of these sources, and `more` goes into the
    manifest. Raises DataError for what the files are at fault for, UsageError for the output.
    """
    split = split or Split()
    work = clean or engines.load(engine)
    files = [*sources, *([joined] if joined else [])]
    with scratch_folder(output) as scratch:
        job = Job(
            spec=spec,
            split=split,
            sources=[readable(source, spec, scratch) for source in sources],
            joined=readable(joined, spec, scratch) if joined else None,
            scratch=scratch,
            processes=processes or os.cpu_count() or 1,
            master=master,
            progress=progress,
        )
        if output is None:
            with Gathered(job, None) as gathered:
                gathered.take(work(job))
            for _ in gathered.shards():
                pass  # counts them
            return gathered.found
        with new_dataset(output) as folder:
            with Gathered(job, folder / QUARANTINE) as gathered:
                gathered.take(work(job))
            check(gathered.found)
            facts = {
                "format": FORMAT,
                "spec": spec.name,
                "unit": spec.unit.kind,
                "unit_key": spec.unit.key or None,
                "max_records_per_unit": spec.unit.max_records,
                "engine": engine,
                "split": {"hash": HASH_NAME, "salt": split.salt,
                          "test_fraction": split.test_fraction, "shards": split.shards},
                "made_from": made_from or origin(files, as_schema(spec), split),
                **(more or {}),
            }  # fmt: skip
            write_dataset(folder, gathered, facts, job)
        return gathered.found
