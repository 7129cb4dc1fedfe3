"""Models: what the flat parameter buffer means, where it starts, and the logits that it gives.

    logistic      one linear layer
    mlp           hidden layers of --hidden and --activation, then one logit
    cnn           convolutions along the row of features, then one logit
    transformer   an embedding for each column, attention between the columns, then one logit

The first two are dense: plain numpy, no torch needed. The others are torch modules, in
`dpsgd.networks`, which also has the dense ones for engines that take any module. One flat float32
vector holds all parameters; `Model.tensors` says where each of them lies.

A hidden layer of a dense model gives act(x W^T + b). With the activation `scaled-tanh`, the
default, that is (0.5 / sqrt(width)) tanh(...), so that its output has norm at most 0.5: per-example
gradients stay of the size of the clipping bound and the logits stay calibrated. W of the first
layer is drawn from N(0, 1 / num_features), W of later layers from N(0, 0.25) (from N(0, gain^2 /
inputs) for `tanh` and `relu`, gain^2 being 1 and 2); biases, and the weights of `logistic`, start
at zero.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dpsgd.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

DENSE = ("logistic", "mlp")
NAMES = (*DENSE, "cnn", "transformer")
ACTIVATIONS = ("scaled-tanh", "tanh", "relu")
BLOCK_ROWS = 2048  # of float64 copies, so that they stay small
MIN_CNN_FEATURES = 4
MAX_SIZE = 2**24  # of what a file may ask for

Inputs = Literal["features", "levels"]
"""What a model takes: encoded features, float32 [batch, num_features], or the number of the level
of every column, int64 [batch, columns]."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One parameter tensor and where it lies in the flat buffer, row by row."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def place(self) -> slice[int, int, None]:
        """Its elements."""
        return slice(self.offset, self.offset + math.prod(self.shape))


def laid_out(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[Tensor, ...]:
    """Tensors of these names and shapes, one after the other."""
    tensors, offset = [], 0
    for name, shape in shapes:
        tensors.append(Tensor(name=name, shape=tuple(shape), offset=offset))
        offset = tensors[-1].place.stop
    return tuple(tensors)


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """Shapes only; the parameters are a separate flat float32 vector [num_params]."""

    name: str

    @property
    def inputs(self) -> Inputs:
        """What it takes."""
        return "features"

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the flat buffer and of `module().parameters()`."""

    @property
    def num_params(self) -> int:
        """Length of the flat parameter vector."""
        return self.tensors[-1].place.stop

    @abstractmethod
    def initial(self, seed: int) -> NDArray[np.float32]:
        """Initial parameters, a function of a public seed [num_params]."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What someone needs to rebuild the model from its file."""

    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The same as a torch module, which gives one logit an example [batch].

        Raises ModuleNotFoundError without torch.
        """

    @abstractmethod
    def probe(self, rows: int) -> NDArray[Any]:
        """Public random inputs of the right shape, to try a module with [rows, ...]."""

    @abstractmethod
    def logits(self, params: NDArray[np.float32], inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of the positive class [batch].

        How a product is rounded depends on the rows around it. Computed in float64 and rounded
        once, a record has, but for rare ties of the last rounding, the same logit in every batch.
        """


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear map: its weight [outputs, inputs] and bias [outputs]."""

    inputs: int
    outputs: int
    weight: slice[int, int, None]
    bias: slice[int, int, None]


@dataclass(frozen=True, kw_only=True)
class Dense(Model):
    """logistic and mlp."""

    num_features: int
    hidden: tuple[int, ...]
    activation: str = ACTIVATIONS[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the inputs, of every hidden layer, and 1."""
        return (self.num_features, *self.hidden, 1)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """weight and bias of every layer, the one that gives the logit last."""
        shapes: list[tuple[str, tuple[int, ...]]] = []
        for number, (inputs, outputs) in enumerate(
            zip(self.widths[:-1], self.widths[1:], strict=True)
        ):
            shapes.append((f"layers.{number}.weight", (outputs, inputs)))
            shapes.append((f"layers.{number}.bias", (outputs,)))
        return laid_out(shapes)

    @property
    def layers(self) -> list[Layer]:
        """All layers, the one that gives the logit last."""
        tensors = self.tensors
        return [
            Layer(
                inputs=weight.shape[1],
                outputs=weight.shape[0],
                weight=weight.place,
                bias=bias.place,
            )
            for weight, bias in zip(tensors[::2], tensors[1::2], strict=True)
        ]

    def scale(self, width: int) -> float:
        """Factor behind the activation of a hidden layer."""
        return layer_scale(width) if self.activation == "scaled-tanh" else 1.0

    def initial(self, seed: int) -> NDArray[np.float32]:
        """See the module."""
        import numpy as np  # names are checked before numpy is loaded

        generator = np.random.Generator(np.random.Philox(seed))
        params = np.zeros(self.num_params, np.float32)
        if self.hidden:
            for index, layer in enumerate(self.layers):
                deviation = math.sqrt((2 if self.activation == "relu" else 1) / layer.inputs)
                if self.activation == "scaled-tanh" and index:
                    deviation = 0.5
                values = generator.standard_normal(layer.inputs * layer.outputs)
                params[layer.weight] = values * deviation
        return params

    def describe(self) -> dict[str, Any]:
        """Name, sizes, activation."""
        return {
            "name": self.name,
            "num_features": self.num_features,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "num_params": self.num_params,
        }

    def module(self) -> torch.nn.Module:
        """Linear layers with the activation between them."""
        from dpsgd.networks import Perceptron

        return Perceptron(self)

    def probe(self, rows: int) -> NDArray[Any]:
        """Normal features."""
        import numpy as np

        generator = np.random.default_rng(0)
        return generator.standard_normal((rows, self.num_features), np.float32)

    def logits(self, params: NDArray[np.float32], inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Logits [batch] of features [batch, num_features]."""
        import numpy as np

        *hidden, last = self.layers
        exact = params.astype(np.float64)
        found = np.empty(len(inputs), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # of a training that diverged
            for start in range(0, len(inputs), BLOCK_ROWS):
                value = inputs[start : start + BLOCK_ROWS].astype(np.float64)
                for layer in hidden:
                    value = value @ exact[layer.weight].reshape(layer.outputs, layer.inputs).T
                    value += exact[layer.bias]
                    if self.activation == "relu":
                        np.maximum(value, 0, out=value)
                    else:
                        np.tanh(value, out=value)
                        value *= self.scale(layer.outputs)
                found[start : start + BLOCK_ROWS] = value @ exact[last.weight] + exact[last.bias]
        return found


def layer_scale(width: int) -> float:
    """Factor of a hidden layer's scaled tanh."""
    return 0.5 / math.sqrt(width)


def build(
    name: str,
    num_features: int,
    hidden: tuple[int, ...],
    *,
    activation: str = ACTIVATIONS[0],
    levels: tuple[int, ...] = (),
) -> Model:
    """The model `name` for rows of `num_features` features, or of columns with so many `levels`.

    `hidden` and `activation` are ignored by all but `mlp`. Raises ConfigError for a name that is
    unknown, or a model that does not fit the inputs, or needs torch where there is none.
    """
    check_name(name)
    if name in DENSE:
        return Dense(
            name=name,
            num_features=num_features,
            hidden=hidden if name == "mlp" else (),
            activation=activation if name == "mlp" else ACTIVATIONS[0],
        )
    networks = _networks(name)
    if name == "cnn":
        if num_features < MIN_CNN_FEATURES:
            raise ConfigError(
                f"model cnn needs at least {MIN_CNN_FEATURES} features, got {num_features}"
            )
        model: Model = networks.cnn(num_features)
    else:
        model = networks.transformer(levels)
    return model


def inputs_of(name: str) -> Inputs:
    """What the model `name` takes."""
    return "levels" if name == "transformer" else "features"


def rebuild(described: dict[str, Any]) -> Model:
    """The inverse of `Model.describe`. Raises ConfigError for what this version cannot build."""
    name = str(described.get("name"))
    check_name(name)
    features, levels, hidden = (
        _sizes(described, key) for key in ("num_features", "levels", "hidden")
    )
    if len(features) != (inputs_of(name) == "features") or not (features or levels):
        raise ConfigError(
            f"a model must have num_features or levels, positive integers, got "
            f"{described.get('num_features')!r} and {described.get('levels')!r}"
        )
    activation = described.get("activation", ACTIVATIONS[0])
    if activation not in ACTIVATIONS:
        raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    model = build(name, sum(features), hidden, activation=activation, levels=levels)
    for key, value in model.describe().items():
        if described.get(key) != value:
            raise ConfigError(f"{key} of this model must be {value!r}, got {described.get(key)!r}")
    return model


def _sizes(described: dict[str, Any], key: str) -> tuple[int, ...]:
    """Positive integers under a key, one or a list; nothing if there is no such key."""
    found = described.get(key, [])
    sizes = found if isinstance(found, list) else [found]
    if not all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes):
        raise ConfigError(f"{key} of a model must be positive integers, got {found!r}")
    return tuple(sizes)


def _networks(name: str) -> Any:
    try:
        from dpsgd import networks
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"model {name!r} needs {missing.name}, which is not installed: "
            f"pip install 'dpsgd[torch]', or make install"
        ) from None
    return networks


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` is a model that can be trained privately."""
    if name in NAMES:
        return
    if "batchnorm" in name.lower().replace("-", "").replace("_", ""):
        raise ConfigError(
            f"model {name!r} is refused: batch normalisation mixes the examples of a batch, so no "
            f"single example's gradient exists to be clipped; use GroupNorm or LayerNorm"
        )
    close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"model must be one of {', '.join(NAMES)}, got {name!r}{hint}")
