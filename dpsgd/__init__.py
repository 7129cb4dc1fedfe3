"""Differentially private training over MPI: every rank runs the same loop on its own data.

    run           mpirun -np 4 python -m dpsgd.run: command line and exit codes
    config        all options, validated            options     where their values come from
    trainer       the step and the loop             data        the rows that this rank owns
    planning      all public numbers of a run       statement   what may be claimed afterwards
    accounting    from events to epsilon            calibration from epsilon to noise
    ledger        what is spent, before it is used  streams     keyed cryptographic random streams
    sampling      Poisson sampling                  release     grid, noise, what is on the wire
    engines/      sums of clipped gradients         models      logistic, mlp
    optimizers    SGD, momentum, Adam, averaging    metrics     exact test metrics
    run_folder    what a run leaves behind          show        what people see
    accuracy      python -m dpsgd.accuracy          phases      where the time goes

From a program or a notebook:

    import dpsgd
    config = dpsgd.Config(epsilon=3.0)
    dataset = dpsgd.load_dataset("data/demo", comm)
    result = dpsgd.train(config, dataset, comm)

Public names are resolved on first use, so that `--help` and usage errors load nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from launch.python import require_python

if TYPE_CHECKING:
    from dpsgd.config import Config
    from dpsgd.data import Dataset, load_dataset
    from dpsgd.errors import UserError
    from dpsgd.trainer import Result, train

require_python()

__version__ = "0.1.0"

_HOME = {
    "Config": "dpsgd.config",
    "Dataset": "dpsgd.data",
    "Result": "dpsgd.trainer",
    "UserError": "dpsgd.errors",
    "load_dataset": "dpsgd.data",
    "train": "dpsgd.trainer",
}

__all__ = ["Config", "Dataset", "Result", "UserError", "load_dataset", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dpsgd' has no attribute {name!r}")
