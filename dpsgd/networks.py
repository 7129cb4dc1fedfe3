"""Models that are torch modules. Each gives one logit an example [batch].

The transformer is the plain pre-norm encoder of Xiong et al., "On layer normalization in the
transformer architecture" (2020), over one token a column as in Gorishniy et al., "Revisiting deep
learning models for tabular data" (2021), section 3.3; the mean over the tokens gives the logit. All
columns share one embedding table, in which each has rows of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpsgd.models import BLOCK_ROWS, Dense, Inputs, Model, Tensor, laid_out

if TYPE_CHECKING:
    from torch import Tensor as Torch

ACTIVATIONS = {"scaled-tanh": nn.Tanh, "tanh": nn.Tanh, "relu": nn.ReLU}
FIXED_SEED = 0  # of what is not trained: it must be the same on every rank


@dataclass(frozen=True, kw_only=True)
class Network(Model):
    """A torch module made by `factory`; what of it requires gradients is what is trained.

    Ranks exchange models, so `factory` must be something that can be pickled.
    `facts` are what `describe` adds to the name, `takes` is what an example is made of.
    """

    factory: Callable[[], nn.Module] = field(repr=False, compare=False)
    takes: Inputs = "features"
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> Inputs:
        """What it takes."""
        return self.takes

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        named = self.module().named_parameters()
        return laid_out([(name, tuple(p.shape)) for name, p in named if p.requires_grad])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Parameters that are trained, each once, by the names that torch gives them."""
        return self._tensors

    def initial(self, seed: int) -> NDArray[np.float32]:
        """What torch starts a module with after this seed."""
        trained = [p for p in self._made(seed).parameters() if p.requires_grad]
        flat: NDArray[np.float32] = torch.cat([p.detach().reshape(-1) for p in trained]).numpy()
        return flat

    def describe(self) -> dict[str, Any]:
        """Name, facts and size."""
        return {"name": self.name, **self.facts, "num_params": self.num_params}

    def module(self) -> nn.Module:
        """A module, the same at every call."""
        return self._made(FIXED_SEED)

    def probe(self, rows: int) -> NDArray[Any]:
        """Normal features, or any levels."""
        generator = np.random.default_rng(0)
        if self.takes == "levels":
            return generator.integers(0, self.facts["levels"], (rows, len(self.facts["levels"])))
        return generator.standard_normal((rows, self.facts["num_features"]), np.float32)

    def logits(self, params: NDArray[np.float32], inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Logits [batch]."""
        module = self.module().double().eval()
        trained = [p for p in module.parameters() if p.requires_grad]
        flat = torch.tensor(params, dtype=torch.float64)
        found = np.empty(len(inputs), np.float32)
        with torch.no_grad():
            for parameter, tensor in zip(trained, self.tensors, strict=True):
                parameter.copy_(flat[tensor.place].view(tensor.shape))
            for start in range(0, len(inputs), BLOCK_ROWS):
                block = torch.from_numpy(inputs[start : start + BLOCK_ROWS])
                block = block.double() if block.is_floating_point() else block
                found[start : start + BLOCK_ROWS] = module(block).numpy()
        return found

    def _made(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.factory()


class Perceptron(nn.Module):
    """A dense model as a module."""

    def __init__(self, model: Dense) -> None:
        super().__init__()
        widths = model.widths
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.activation = ACTIVATIONS[model.activation]()
        self._scales = [model.scale(width) for width in model.hidden]

    def forward(self, x: Torch) -> Torch:
        """Features [batch, num_features] to logits [batch]."""
        *hidden, last = self.layers
        for layer, scale in zip(hidden, self._scales, strict=True):
            x = self.activation(layer(x))
            if scale != 1:
                x = x * scale
        logits: Torch = last(x).squeeze(-1)
        return logits


class Convolutions(nn.Module):
    """Two convolutions over images [channels, height, width], pooled, then two linear layers."""

    def __init__(self, image: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image
        self.image = image
        rows, columns = min(5, height), min(5, width)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, (rows, columns), padding=(rows // 2, columns // 2)),
            nn.Tanh(),
            nn.MaxPool2d((min(2, height), min(2, width))),
            nn.Conv2d(
                16, 32, (min(3, height), min(3, width)), padding=(int(height > 1), int(width > 1))
            ),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d((min(4, height), min(4, width))),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(32 * min(4, height) * min(4, width), 32), nn.Tanh(), nn.Linear(32, 1)
        )

    def forward(self, x: Torch) -> Torch:
        """Pixels or features [batch, channels * height * width] to logits [batch]."""
        logits: Torch = self.head(self.features(x.reshape(-1, *self.image))).squeeze(-1)
        return logits


class Block(nn.Module):
    """Attention between tokens, then two linear layers on each; both beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_mixing = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mixing = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Torch) -> Torch:
        """Tokens [batch, columns, width] to the same."""
        y = self.before_attention(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        mixed: Torch = x + self.mixing(self.before_mixing(x))
        return mixed


class Transformer(nn.Module):
    """Columns of levels to one logit."""

    first: Torch

    def __init__(self, levels: tuple[int, ...], width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("first", torch.tensor([0, *levels[:-1]]).cumsum(0), persistent=False)
        self.embedding = nn.Embedding(sum(levels), width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(len(levels)))

    def forward(self, x: Torch) -> Torch:
        """Numbers of levels [batch, columns] to logits [batch]."""
        tokens = self.blocks(self.embedding(x + self.first))
        logits: Torch = self.head(self.norm(tokens).mean(1)).squeeze(-1)
        return logits


def cnn(num_features: int) -> Network:
    """Convolutions along the features of a table, in their public order."""
    return image_cnn((1, 1, num_features), {"num_features": num_features})


def image_cnn(image: tuple[int, int, int], facts: Mapping[str, Any] | None = None) -> Network:
    """Convolutions over images of (channels, height, width)."""
    facts = facts or {"image": list(image), "num_features": math.prod(image)}
    return Network(name="cnn", factory=partial(Convolutions, image), facts=facts)


def transformer(
    levels: tuple[int, ...], width: int = 32, heads: int = 4, depth: int = 2
) -> Network:
    """Attention between the columns of a table, which have so many `levels`."""
    return Network(
        name="transformer",
        factory=partial(Transformer, levels, width, heads, depth),
        takes="levels",
        facts={"levels": list(levels), "width": width, "heads": heads, "depth": depth},
    )
