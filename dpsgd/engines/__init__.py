"""Gradient engines: the sum of per-example gradients, each clipped to norm C.

One file an engine, found by being here; it defines `build(model, max_grad_norm) -> Engine`.

    loop          one example at a time, in float64: the reference
    vmap          torch.func.vmap of the gradient
    bookkeeping   one forward, one backward, clipped sums from what the layers saw: any module
    two-pass      norms, then a second backward of the weighted loss
    fused         dense models in numpy, without autograd

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
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from dpsgd.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dpsgd.models import Model

NAMES = tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))
AUTO = "auto"


class Engine(Protocol):
    """Computes sums of clipped per-example gradients of one model."""

    rho: float
    """What rounding can add to the sensitivity C, relative to it; public."""

    def clipped_sum(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> None:
        """Write the sum of g_i min(1, C / |g_i|) over the batch to `out`.

        Shapes: params and out [num_params], features [batch, ...], labels [batch].
        """


class Staged(Engine, Protocol):
    """An engine that can say when a part of the sum is finished, so that it can be sent."""

    def stages(
        self,
        params: NDArray[np.float32],
        features: NDArray[Any],
        labels: NDArray[np.float32],
        out: NDArray[np.float64],
    ) -> Iterator[slice]:
        """As clipped_sum; yields each part of `out`, in the same order at every call, when it is
        final. Together they are the whole."""


def build(name: str, model: Model, max_grad_norm: float) -> Engine:
    """The engine `name` for a model; `max_grad_norm` may be infinite (no clipping).

    `auto` is `fused` where the model is dense, else `bookkeeping`. Raises ConfigError if the engine
    cannot train this model, or a package that it needs is not installed.
    """
    if name == AUTO:
        name = choose(model)
    try:
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"engine {name!r} needs {missing.name}, which is not installed: "
            f"pip install 'dpsgd[torch]', or make install"
        ) from None
    engine: Engine = module.build(model, max_grad_norm)
    return engine


def choose(model: Model) -> str:
    """The fastest engine for a model."""
    from dpsgd.models import DENSE

    return "fused" if model.name in DENSE else "bookkeeping"


def stages(
    engine: Engine,
    params: NDArray[np.float32],
    features: NDArray[Any],
    labels: NDArray[np.float32],
    out: NDArray[np.float64],
) -> Iterator[slice]:
    """`Staged.stages` of any engine: all at once if it has none."""
    if hasattr(engine, "stages"):
        yield from engine.stages(params, features, labels, out)
    else:
        engine.clipped_sum(params, features, labels, out)
        yield slice(0, len(out))
