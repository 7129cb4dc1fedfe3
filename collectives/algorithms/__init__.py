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
