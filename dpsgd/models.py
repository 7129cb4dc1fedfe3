"""Models for tables: feed-forward networks with tanh layers and one logit, on one flat buffer.

`logistic` has no hidden layer; `mlp` has those of `--hidden`. A hidden layer gives
(0.5 / sqrt(width)) tanh(x W + b), so that its output has norm at most 0.5: per-example gradients
stay of the size of the clipping bound and the logits stay calibrated. W of the first layer is
drawn from N(0, 1 / num_features), W of later layers from N(0, 0.25); biases, and the weights of
`logistic`, start at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpsgd.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAMES = ("logistic", "mlp")
BLOCK_ROWS = 2048  # of float64 copies, so that they stay small


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear map inside the flat buffer: `weight` [inputs, outputs], then `bias` [outputs]."""

    inputs: int
    outputs: int
    offset: int

    @property
    def weight(self) -> slice[int, int, None]:
        """Elements of the weight, row by row."""
        return slice(self.offset, self.offset + self.inputs * self.outputs)

    @property
    def bias(self) -> slice[int, int, None]:
        """Elements of the bias."""
        return slice(self.weight.stop, self.weight.stop + self.outputs)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shapes only; the parameters are a separate flat float32 vector [num_params]."""

    name: str
    num_features: int
    hidden: tuple[int, ...]

    @property
    def layers(self) -> list[Layer]:
        """All layers, the one that gives the logit last."""
        layers, offset, inputs = [], 0, self.num_features
        for outputs in (*self.hidden, 1):
            layers.append(Layer(inputs=inputs, outputs=outputs, offset=offset))
            offset = layers[-1].bias.stop
            inputs = outputs
        return layers

    @property
    def num_params(self) -> int:
        """Length of the flat parameter vector."""
        return self.layers[-1].bias.stop

    def initial(self, seed: int) -> NDArray[np.float32]:
        """Initial parameters, a function of a public seed [num_params]."""
        import numpy as np  # names are checked before numpy is loaded

        generator = np.random.Generator(np.random.Philox(seed))
        params = np.zeros(self.num_params, np.float32)
        if self.hidden:
            for index, layer in enumerate(self.layers):
                deviation = 0.5 if index else 1 / math.sqrt(self.num_features)
                values = generator.standard_normal(layer.inputs * layer.outputs)
                params[layer.weight] = values * deviation
        return params

    def describe(self) -> dict[str, Any]:
        """What someone needs to rebuild the model from its file."""
        return {
            "name": self.name,
            "num_features": self.num_features,
            "hidden": list(self.hidden),
            "activation": "0.5 / sqrt(width) * tanh",
            "num_params": self.num_params,
        }


def build(name: str, num_features: int, hidden: tuple[int, ...]) -> Model:
    """The model `name`; `hidden` is ignored by `logistic`."""
    check_name(name)
    return Model(name=name, num_features=num_features, hidden=hidden if name == "mlp" else ())


def rebuild(described: dict[str, Any]) -> Model:
    """The inverse of `Model.describe`. Raises ConfigError for what this version cannot build."""
    num_features, hidden = described.get("num_features"), described.get("hidden")
    sizes: list[Any] = [num_features, *hidden] if isinstance(hidden, list) else [None]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(
            f"num_features and hidden of a model must be positive integers, got {num_features!r} "
            f"and {hidden!r}"
        )
    model = build(str(described.get("name")), sizes[0], tuple(sizes[1:]))
    for key, value in model.describe().items():
        if described.get(key) != value:
            raise ConfigError(f"{key} of this model must be {value!r}, got {described.get(key)!r}")
    return model


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` is a model that can be trained privately."""
    if name in NAMES:
        return
    if "batchnorm" in name.lower().replace("-", "").replace("_", ""):
        raise ConfigError(
            f"model {name!r} is refused: batch normalisation mixes the examples of a batch, so no "
            f"single example's gradient exists to be clipped; use GroupNorm or LayerNorm"
        )
    raise ConfigError(f"model must be one of {', '.join(NAMES)}, got {name!r}")


def layer_scale(width: int) -> float:
    """Factor of a hidden layer's tanh."""
    return 0.5 / math.sqrt(width)


def logits(
    model: Model, params: NDArray[np.float32], features: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Logits of the positive class [batch].

    How a product is rounded depends on the rows around it. Computed in float64 and rounded once, a
    record has, but for rare ties of the last rounding, the same logit in every batch.
    """
    import numpy as np

    *hidden, last = model.layers
    exact = params.astype(np.float64)
    found = np.empty(len(features), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # of a training that diverged
        for start in range(0, len(features), BLOCK_ROWS):
            value = features[start : start + BLOCK_ROWS].astype(np.float64)
            for layer in hidden:
                value = value @ exact[layer.weight].reshape(layer.inputs, layer.outputs)
                value += exact[layer.bias]
                np.tanh(value, out=value)
                value *= layer_scale(layer.outputs)
            found[start : start + BLOCK_ROWS] = value @ exact[last.weight] + exact[last.bias]
    return found
