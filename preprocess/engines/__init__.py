"""The engines by name. Each is one file with a function `clean`; see `base` for the contract.

    sequential   plain Python, one record after the other: the oracle
    polars       the default: vectorised where a line is plain, the oracle where it is odd
    mapreduce    the pair that runs under Hadoop Streaming, in processes of this machine
    spark        the same idea as polars with DataFrames, on one machine or a cluster

A file is found by being here, and inherits the contract test and the command line.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from preprocess.errors import UsageError

if TYPE_CHECKING:
    from preprocess.engines.base import Engine

ENGINES = tuple(sorted(module.name for module in iter_modules(__path__) if module.name != "base"))
"""The names. A module is imported only when its engine is asked for."""

AUTO = "polars"
CHOICES = ("auto", *ENGINES)


def resolve(name: str) -> str:
    """The name of a real engine."""
    if name not in CHOICES:
        raise UsageError(f"engine must be one of {', '.join(CHOICES)}, got {name!r}")
    return AUTO if name == "auto" else name


def load(name: str) -> Engine:
    """The engine of this name."""
    engine: Engine = import_module(f"{__name__}.{resolve(name)}").clean
    return engine
