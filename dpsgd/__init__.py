"""Differentially private training over MPI: every rank runs the same loop on its own data.

    run           mpirun -np 4 python -m dpsgd.run: command line and exit codes
    arguments     the command line: flags, --json
    config        all options, validated            options     where their values come from
    trainer       the step and the loop             data        the rows that this rank owns
    planning      all public numbers of a run       statement   what may be claimed afterwards
    accounting    from events to epsilon            calibration from epsilon to noise
    ledger        what is spent, before it is used  streams     keyed cryptographic random streams
    sampling      Poisson sampling                  release     grid, noise, what is on the wire
    exchange      parts of the sum on their way     ddp         the same by PyTorch's DDP
    engines/      sums of clipped gradients         microbatch  batches in pieces
        products      sums of outer products        layers/     per-example gradients of layers
        flat_module   a module on a flat buffer     recorder    what layers see
        terms         norms and sums of a layer
        allocator     freed memory is kept
    models        logistic, mlp                     networks    cnn, transformer: torch modules
    optimizers    SGD, momentum, Adam, averaging    metrics     exact test metrics
    run_folder    what a run leaves behind          show        what people see
    phases        where the time goes               errors      what a user can cure, exit codes
    bench/        python -m dpsgd.bench             profile     python -m dpsgd.profile
    predict       python -m dpsgd.predict: a raw file scored by a trained model
        model_file    the model read back           scoring     from raw lines to predictions
    accuracy      python -m dpsgd.accuracy: with and without privacy, on the same splits
        accuracy_models    accuracy_table    accuracy_picture

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
from launch.world import share_cores, under_launcher

if TYPE_CHECKING:
    from dpsgd.config import Config
    from dpsgd.data import Dataset, load_dataset
    from dpsgd.errors import UserError
    from dpsgd.predict import predict_file
    from dpsgd.trainer import Result, train

require_python()
if under_launcher():  # BLAS reads these variables when numpy is loaded, which is not yet
    share_cores()

__version__ = "0.1.0"

_HOME = {
    "Config": "dpsgd.config",
    "Dataset": "dpsgd.data",
    "Result": "dpsgd.trainer",
    "UserError": "dpsgd.errors",
    "load_dataset": "dpsgd.data",
    "predict_file": "dpsgd.predict",
    "train": "dpsgd.trainer",
}

__all__ = ["Config", "Dataset", "Result", "UserError", "load_dataset", "predict_file", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dpsgd' has no attribute {name!r}")
