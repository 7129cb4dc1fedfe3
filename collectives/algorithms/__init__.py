"""One file an algorithm. A file is found by being here: it defines `ALGORITHM`."""

from __future__ import annotations

import importlib
import pkgutil

from collectives.schedule import Algorithm


def _find() -> dict[str, Algorithm]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").ALGORITHM for name in modules]
    return {algorithm.name: algorithm for algorithm in found}


ALGORITHMS: dict[str, Algorithm] = _find()


def find(name: str) -> Algorithm:
    """The algorithm called `name` or `name:arguments`. Raises ValueError if there is none."""
    word, colon, arguments = name.partition(":")
    if word not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {name!r}")
    algorithm = ALGORITHMS[word]
    if not colon:
        return algorithm
    if algorithm.configure is None:
        able = ", ".join(key for key, one in ALGORITHMS.items() if one.configure is not None)
        raise ValueError(f"{word} takes no arguments ({able} do), got {name!r}")
    return algorithm.configure(arguments)
