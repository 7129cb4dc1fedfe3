"""The engines by name. Each is one file with a function `clean`; see `base` for the contract.

    sequential   plain Python, one record after the other: the oracle
    polars       the default: vectorised where a line is plain, the oracle where it is odd

A newcomer adds a file and a line here, and inherits the contract test and the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from preprocess.errors import UsageError

if TYPE_CHECKING:
    from preprocess.engines.base import Engine

ENGINES: dict[str, str] = {
    "sequential": "preprocess.engines.sequential",
    "polars": "preprocess.engines.polars",
}
"""Name to module. Modules are imported only when their engine is asked for."""

AUTO = "polars"
CHOICES = ("auto", *ENGINES)


def resolve(name: str) -> str:
    """The name of a real engine."""
    if name not in CHOICES:
        raise UsageError(f"engine must be one of {', '.join(CHOICES)}, got {name!r}")
    return AUTO if name == "auto" else name


def load(name: str) -> Engine:
    """The engine of this name."""
    engine: Engine = import_module(ENGINES[resolve(name)]).clean
    return engine
