"""The models and batches that `bench` measures. Names are known before numpy and torch are loaded.

    mlp64-256     MLP 16-64-64-1 at batch size 256       cnn-256         two convolutions, 28 x 28
    mlp64-4096    the same at 4096                       transformer-64  two blocks over 14 columns
    mlp256-1024   MLP 16-256-256-1 at 1024

Inputs and labels are random, from a public seed: no engine's time depends on their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpsgd import models

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUM_FEATURES = 16
ACTIVATION = "relu"
IMAGE = (1, 28, 28)
LEVELS = (16, 16, 9, 7, 5, 5, 4, 3, 2, 2, 2, 2, 2, 2)
WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and how many examples are in a batch."""

    name: str
    batch_size: int
    make: Callable[[], models.Model]

    def batch(self) -> tuple[models.Model, NDArray[Any], NDArray[np.float32]]:
        """The model, its inputs [batch_size, ...] and labels 0 or 1 [batch_size]."""
        import numpy as np

        model = self.make()
        labels = np.random.default_rng(1).integers(0, 2, self.batch_size)
        return model, model.probe(self.batch_size), labels.astype(np.float32)


def _mlp(width: int) -> models.Model:
    return models.build("mlp", NUM_FEATURES, (width, width), activation=ACTIVATION)


def _cnn() -> models.Model:
    from dpsgd import networks

    return networks.image_cnn(IMAGE)


def _transformer() -> models.Model:
    from dpsgd import networks

    return networks.transformer(LEVELS, width=WIDTH)


WORKLOADS = {
    one.name: one
    for one in (
        Workload(name="mlp64-256", batch_size=256, make=lambda: _mlp(64)),
        Workload(name="mlp64-4096", batch_size=4096, make=lambda: _mlp(64)),
        Workload(name="mlp256-1024", batch_size=1024, make=lambda: _mlp(256)),
        Workload(name="cnn-256", batch_size=256, make=_cnn),
        Workload(name="transformer-64", batch_size=64, make=_transformer),
    )
}
