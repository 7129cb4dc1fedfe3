"""Peak memory of a step beside Opacus: python -m dpsgd.bench --memory

An MLP 16-1024-1024-1 has 1.07 million parameters; 256 gradients of that size are 1.1 GB in float32.
Each engine takes three steps in a process of its own, at B and at 2 B. What is shown is the peak of
the resident memory minus what it was after steps of a tiny model, so that all libraries are loaded:
parameters, batch and everything that training keeps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from dpsgd.errors import ConfigError

HIDDEN = (1024, 1024)
BATCH_SIZES = (256, 512)
STEPS = 3
SMALL, SMALL_BATCH = (8, 8), 4  # to load first what the libraries load when it is used


def measure(engine: str, batch_size: int, threads: int) -> dict[str, Any]:
    """A row, from a process of its own. Raises ConfigError if that fails.

    Linux lets a process begin with the peak of the one that started it, so this one is to be small:
    torch is not loaded here.
    """
    words = [sys.executable, "-m", __name__, engine, str(batch_size), str(threads)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ConfigError(f"engine {engine} ended with code {done.returncode}: {reason[0]}")
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def _one(engine: str, batch_size: int, threads: int) -> dict[str, Any]:
    """The row, measured in this process."""
    import torch

    torch.set_num_threads(threads)
    from collectives.guard import start
    from dpsgd import models
    from dpsgd.bench import engines as bench_engines
    from dpsgd.bench.workloads import ACTIVATION, NUM_FEATURES, Workload

    comm = start()

    def steps(hidden: tuple[int, ...], rows: int) -> int:
        """Take them; gives the number of parameters."""
        model = models.build("mlp", NUM_FEATURES, hidden, activation=ACTIVATION)
        work = Workload(name="memory", batch_size=rows, make=lambda: model)
        if engine == bench_engines.SGD:
            step = bench_engines.torch_step(*work.batch())
        else:
            step, _ = bench_engines.build(engine, work, comm)
        for _ in range(STEPS):
            step()
        return model.num_params

    steps(SMALL, SMALL_BATCH)
    before = _peak_bytes()
    num_params = steps(HIDDEN, batch_size)
    peak = _peak_bytes() - before
    return {
        "engine": engine,
        "batch_size": batch_size,
        "num_params": num_params,
        "peak_bytes": peak,
        "ratio_to_params": peak / (4 * num_params),
    }


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(_one(sys.argv[1], *map(int, sys.argv[2:]))))
