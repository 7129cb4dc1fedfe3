"""Per-example gradients of layers, without building them where that can be avoided.

A file a kind of layer, found by being here. It defines `MODULES`, the torch modules that it knows,
and `terms(module, inputs, gradients)`: given what went into one call of the module and the gradient
of the loss by what came out of it, both [batch, ...], what the call contributes to the gradients of
the module's own parameters, as `dpsgd.terms.Term`s. Anything else that owns parameters is
handled by `other`, one vmap a call.

Guarantee, tested for every layer in the table: norms and clipped sums equal those of one example at
a time, also for layers that are used twice or share parameters.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from dpsgd.layers import other
from dpsgd.terms import Term

Terms = Callable[[Any, Sequence[Tensor], Sequence[Tensor]], list[Term]]

KINDS: dict[type[nn.Module], Terms] = {}
for _file in pkgutil.iter_modules(__path__):
    _kind = importlib.import_module(f"{__name__}.{_file.name}")
    for _module in getattr(_kind, "MODULES", ()):
        KINDS[_module] = _kind.terms


def terms_of(module: nn.Module) -> Terms:
    """How the per-example gradients of a module's own parameters are found.

    A subclass may do something else with the parameters, so only the exact class counts.
    """
    found = KINDS.get(type(module), other.terms)
    usable = getattr(importlib.import_module(found.__module__), "usable", lambda module: True)
    return found if usable(module) else other.terms
