"""A local MapReduce of the pair that also runs on Hadoop; see `preprocess.mapreduce`.

    files -> splits -> map tasks -> runs -> reduce tasks, one for each partition -> batches

A task is a process of its own, `job.processes` of them at a time; it starts the mapper or reducer
and does all that is bulky around it. This process only starts them, and turns what they leave in
files into batches, so that it does not grow with the data.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np

from preprocess.engines.base import Batch, Job
from preprocess.errors import DataError, UsageError
from preprocess.mapreduce import EXIT_DATA, EXIT_DISK, parts, tasks
from preprocess.mapreduce.job import describe_job
from preprocess.rows import row_type
from preprocess.sources import Source, as_plain_file

SPLIT_BYTES = 16 << 20
MIN_SPLIT_BYTES = 4 << 20
SPLITS_PER_PROCESS = 2
PARTITION_BYTES = 32 << 20  # of the files


def clean(job: Job) -> Iterator[Batch]:
    """Read files as `engines.base` promises."""
    plain = [as_plain_file(source, job.scratch()) for source in job.sources]
    joined = as_plain_file(job.joined, job.scratch()) if job.joined else None
    job = replace(job, sources=plain, joined=joined)
    splits = _splits([*plain, *filter(None, [joined])], job.processes)
    total = sum(length for *_, length in splits)
    num_partitions = max(job.processes, -(-total // PARTITION_BYTES))
    with TemporaryDirectory(dir=job.scratch(), prefix="mapreduce-") as name, \
            _Tasks(job.processes) as running:  # fmt: skip
        folder = Path(name).absolute()
        describe_job(job, folder / "JOB.json")
        runs = _map(job, folder, splits, num_partitions, running)
        yield from parts.batches(_reduce(job, folder, runs, running), job)


def _splits(sources: list[Source], processes: int) -> list[tuple[int, int, int]]:
    """Number of the file, first byte and length of each."""
    total = sum(source.num_bytes for source in sources)
    even = -(-total // (processes * SPLITS_PER_PROCESS))
    step = max(MIN_SPLIT_BYTES, min(SPLIT_BYTES, even))
    return [
        (number, start, min(step, source.num_bytes - start))
        for number, source in enumerate(sources)
        for start in range(0, source.num_bytes, step)
    ]


Run = tuple[str, list[int]]
"""A file, and where each partition ends in it."""


def _map(
    job: Job,
    folder: Path,
    splits: list[tuple[int, int, int]],
    num_partitions: int,
    running: _Tasks,
) -> list[Run]:
    """Map all splits."""
    sources = [*job.sources, *filter(None, [job.joined])]
    waiting = {}
    for number, (source, start, length) in enumerate(splits):
        output = str(folder / f"run-{number:06d}")
        request = {
            "do": "map", "job": str(folder / "JOB.json"), "source": source,
            "name": sources[source].name,
            "path": str(sources[source].path.absolute()), "state": sources[source].state,
            "start": start, "length": length, "output": output,
            "partitions": num_partitions, "number": number,
        }  # fmt: skip
        waiting[running.submit(request)] = number
    runs: dict[int, Run] = {}
    num_records = num_bytes = 0
    for done in as_completed(waiting):
        number, answer = waiting[done], done.result()
        runs[number] = (str(folder / f"run-{number:06d}"), answer["offsets"])
        source, _, length = splits[number]
        num_records += answer["records"]
        num_bytes += length if source < len(job.sources) else 0
        job.progress(num_records, num_bytes)
    return [runs[number] for number in range(len(splits))]


def _reduce(job: Job, folder: Path, runs: list[Run], running: _Tasks) -> Iterator[parts.Part]:
    """Reduce all partitions, and read what is left of each."""
    waiting = []
    dtype = row_type(job.spec)
    for partition in range(len(runs[0][1])):
        pieces = [(path, ends[partition - 1] if partition else 0, ends[partition])
                  for path, ends in runs]  # fmt: skip
        files = {name: str(folder / f"{name}-{partition:06d}") for name in ("rows", "control")}
        request = {"do": "reduce", "job": str(folder / "JOB.json"), "pieces": pieces, **files}
        waiting.append((running.submit(request), files))
    for done, files in waiting:
        done.result()
        yield np.fromfile(files["rows"], dtype), Path(files["control"])
        Path(files["rows"]).unlink()


class _Tasks:
    """Runs tasks, so many at a time. When the block ends none is left, nor what it has started."""

    def __init__(self, processes: int) -> None:
        self._threads = ThreadPoolExecutor(processes)
        self._lock = Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False

    def __enter__(self) -> _Tasks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._is_over = True
            for process in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        self._threads.shutdown(cancel_futures=True)

    def submit(self, request: dict[str, Any]) -> Future[tasks.Answer]:
        """The answer to a request, when it is there. Raises DataError, RuntimeError."""
        return self._threads.submit(self._run, request)

    def _run(self, request: dict[str, Any]) -> tasks.Answer:
        with self._lock:
            if self._is_over:
                raise CancelledError
            process = subprocess.Popen(
                [*tasks.PYTHON, tasks.__name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, env=tasks.environment(),
                process_group=0,  # with all that it starts
            )  # fmt: skip
            self._running.add(process)
        out, err = process.communicate(json.dumps(request))
        with self._lock:
            self._running.discard(process)
        if process.returncode == EXIT_DATA:
            raise DataError(json.loads(out)["error"])
        if process.returncode == EXIT_DISK:
            raise UsageError(json.loads(out)["error"])
        if process.returncode:
            raise RuntimeError(tasks.last_line(err))
        answer: tasks.Answer = json.loads(out)
        return answer
