"""Gradient engines: the sum of per-example gradients, each clipped to norm C.

One file an engine, found by being here; it defines `build(model, max_grad_norm) -> Engine`.
Guarantees, tested for every engine in the table:

    changing one example to a zero gradient moves the sum by at most C (1 + rho);
    an empty batch gives zeros;
    an example whose gradient is not finite contributes zero and does not touch the others;
    a huge finite gradient is clipped without overflow;
    the result is that of `loop`, one example at a time, up to rounding.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol

from dpsgd.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dpsgd.models import Model

NAMES = tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


class Engine(Protocol):
    """Computes sums of clipped per-example gradients of one model."""

    rho: float
    """What rounding can add to the sensitivity C, relative to it; public."""

    def clipped_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[np.float32],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Write the sum of g_i min(1, C / |g_i|) over the batch to `out`.

        Shapes: params and out [num_params], features [batch, num_features], labels [batch].
        """


def build(name: str, model: Model, max_grad_norm: float) -> Engine:
    """The engine `name` for a model; `max_grad_norm` may be infinite (no clipping).

    Raises ConfigError if a package that the engine needs is not installed.
    """
    try:
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"engine {name!r} needs {missing.name}, which is not installed: "
            f"pip install 'dpsgd[torch]', or make install"
        ) from None
    engine: Engine = module.build(model, max_grad_norm)
    return engine
