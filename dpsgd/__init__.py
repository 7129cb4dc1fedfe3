"""Differentially private training over MPI: every rank runs the same loop on its own data.

    run           mpirun -np 4 python -m dpsgd.run: command line, exit codes, run folder
    config        one frozen dataclass; file < environment < command line
    trainer       the step and the loop
    data          the part of a data set that this rank owns
    sampling      Poisson sampling               streams     keyed cryptographic random streams
    engines/      sums of clipped gradients      release     grid, noise, what goes on the wire
    accounting    epsilon and calibration        ledger      what was spent, before it is spent
    models        logistic, mlp                  optimizers  SGD, momentum, Adam, averaging

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

if TYPE_CHECKING:
    from dpsgd.config import Config
    from dpsgd.data import Dataset, load_dataset
    from dpsgd.errors import UserError
    from dpsgd.trainer import Result, train

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
