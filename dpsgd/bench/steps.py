"""The rows of `bench`: milliseconds of a step for every workload and engine, and their ratios."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dpsgd.bench import engines as bench_engines
from dpsgd.bench import peers as bench_peers
from dpsgd.bench.engines import PLAIN, SGD
from dpsgd.bench.measure import SECONDS_PER_ENGINE, in_turns
from dpsgd.bench.workloads import Workload
from dpsgd.errors import ConfigError

if TYPE_CHECKING:
    from mpi4py import MPI


def measure(
    workload: Workload,
    names: Sequence[str],
    threads: int,
    comm: MPI.Intracomm,
    seconds_per_engine: float = SECONDS_PER_ENGINE,
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for torch-sgd, for plain and for each of `names`; and notes on what was done or not.

    An engine that cannot train the model, or is not installed, has no row.
    """
    begin = time.monotonic()
    steps: dict[str, bench_engines.Step] = {}
    notes: list[str] = []
    peers = [name for name in names if name in bench_peers.MODES]
    if peers and bench_peers.missing():
        notes.append(f"left out: {', '.join(peers)}: {bench_peers.CURE}")
        names = [name for name in names if name not in peers]
    for name in dict.fromkeys((SGD, PLAIN, *names)):
        try:
            steps[name], note = bench_engines.build(name, workload, comm)
        except ConfigError as error:
            note = f"left out: {error}"
        notes += [note] if note else []
    gc.collect()
    turns = in_turns(steps, seconds_per_engine)
    sgd, plain = turns[SGD].median, turns[PLAIN].median
    rows = [
        {
            "workload": workload.name,
            "engine": name,
            "batch_size": workload.batch_size,
            "threads": threads,
            "ms_per_step": one.median * 1e3,
            "ratio_to_sgd": one.median / sgd,
            "ratio_to_own_plain": one.median / plain,
            "steps": one.calls * len(one.seconds),
            "ms_per_step_fastest": min(one.seconds) * 1e3,
        }
        for name, one in turns.items()
    ]
    for step in steps.values():
        if isinstance(step, bench_engines.OurStep):
            step.close()
    print(f"{workload.name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return rows, notes
