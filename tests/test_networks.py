"""Torch modules as models, and what of them is refused, with the name of the culprit and a cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="these models are torch modules")

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpsgd import engines, models
from dpsgd.errors import ConfigError
from dpsgd.networks import Network
from test_layers import (
    Does,
    _one_thread,  # noqa: F401
    attention,
    chain,
    frozen,
    image,
    itself,
    of_features,
    shaped,
)

ENGINES = ("bookkeeping", "loop", "two-pass", "vmap")
MIXES = "depends on the others in its batch"


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_network_starts_from_its_seed_and_is_rebuilt_from_what_it_describes(name: str) -> None:
    model = models.build(name, 9, (), levels=(3, 2, 4))
    assert np.array_equal(model.initial(5), model.initial(5))
    assert not np.array_equal(model.initial(5), model.initial(6))
    assert len(model.initial(5)) == model.num_params == model.tensors[-1].place.stop
    before = torch.random.get_rng_state()
    again = models.rebuild(json.loads(json.dumps(model.describe())))
    assert np.array_equal(again.initial(5), model.initial(5))
    assert again.tensors == model.tensors
    assert torch.equal(torch.random.get_rng_state(), before), "it drew from the global stream"


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_record_has_the_same_logit_in_every_batch(name: str) -> None:
    model = models.build(name, 9, (), levels=(3, 2, 4))
    inputs, params = model.probe(20), model.initial(5)
    inputs[15:] = inputs[:5]
    whole = model.logits(params, inputs)
    assert whole.dtype == np.float32 and np.array_equal(whole[15:], whole[:5])
    for rows in (1, 7):
        parts = [model.logits(params, inputs[i : i + rows]) for i in range(0, 20, rows)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert model.logits(params, inputs[:0]).shape == (0,)


class Functional(nn.Module):
    """Batch normalisation in training mode alone, as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = torch.zeros(4, dtype=x.dtype), torch.ones(4, dtype=x.dtype)
        x = self.inner(x.view(-1, 4, 6))
        return functional.batch_norm(x, mean, variance, training=self.training)


def gated() -> nn.Module:
    """Mixes through a gate that starts at zero."""
    gate = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(gate.weight)
    return chain(Does(lambda m, x: x + m.gate(x.mean(0)[:, None])[:, 0], gate=gate))


def silent() -> nn.Module:
    """Mixes behind a last layer that starts at zero."""
    last = nn.Linear(24, 3)
    nn.init.zeros_(last.weight)
    return chain(Does(lambda m, x: m.last(x - x.mean(0)), last=last))


def slightly() -> nn.Module:
    return chain(nn.Linear(24, 3), Does(lambda m, x: x - 1e-4 * x.mean(0)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (lambda: chain(nn.Linear(24, 4), nn.BatchNorm1d(4)), r"layer 1 \(BatchNorm1d\).*GroupNorm"),
        (
            lambda: image(nn.BatchNorm2d(2, affine=False), nn.Linear(4, 2)),
            r"layer 1 \(BatchNorm2d\)",
        ),
        (
            lambda: image(nn.InstanceNorm2d(2, track_running_stats=True), nn.Linear(4, 2)),
            r"layer 1 \(Instance",
        ),
        (lambda: chain(nn.Linear(24, 4), Does(lambda m, x: x - x.mean(0))), MIXES),
        (lambda: chain(nn.Linear(24, 4), nn.Softmax(0)), MIXES),
        (lambda: attention(itself(), batch_first=False), rf"{MIXES}.*batch_first=True"),
        (lambda: chain(Functional()), MIXES),
        (lambda: chain(nn.Dropout(0.5), Functional(), nn.Dropout(0.5)), MIXES),
        (gated, MIXES),
        (silent, MIXES),
        (lambda: nn.Linear(24, 2), "must give one logit an example"),
        (lambda: nn.Linear(24, 1), "must give one logit an example"),
    ],
)
def test_what_mixes_examples_is_refused(
    factory: Callable[[], nn.Module], says: str, engine: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        engines.build(engine, of_features(factory), 1.0)


@pytest.mark.parametrize("engine", ["bookkeeping", "two-pass", "vmap"])
def test_a_little_mixing_is_seen_in_float64(engine: str) -> None:
    with pytest.raises(ConfigError, match=MIXES):
        engines.build(engine, of_features(slightly), 1.0)


def outside(gate: bool) -> Network:
    """The weight of the embedding is used by a function too; behind a gate that starts at zero."""

    def forward(module: Any, x: Tensor) -> Tensor:
        tokens = module.words(x)
        scores = functional.linear(tokens, module.words.weight)
        return module.gate(scores) if gate else scores

    def factory() -> nn.Module:
        last = nn.Linear(5, 1)
        nn.init.zeros_(last.weight)
        return chain(Does(forward, words=nn.Embedding(5, 4), gate=last))

    facts = {"levels": [5] * 6}
    return Network(name="outside", factory=factory, takes="levels", facts=facts)


def reversed_rows() -> nn.Module:
    """One layer sees the examples in another order, and the others do not know."""
    return chain(nn.Linear(24, 4), Does(lambda m, x: m.a(x.flip(0)).flip(0), a=nn.Linear(4, 4)))


class Constant(nn.Module):
    """A layer applied to three constant rows, as many as the probe has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.inner(torch.ones(3, 8, dtype=x.dtype))
        return x.view(-1, 3, 8) * keys


@pytest.mark.parametrize("engine", ["bookkeeping", "two-pass"])
@pytest.mark.parametrize(
    ("model", "says"),
    [
        (outside(gate=False), r"parameter 0\.words\.weight .* outside .*--engine vmap"),
        (outside(gate=True), r"parameter 0\.words\.weight .* outside .*--engine vmap"),
        (of_features(reversed_rows), r"first dimension everywhere.*--engine vmap"),
        (of_features(lambda: chain(Constant())), r"layer Linear must have the batch.*engine vmap"),
        (
            of_features(
                lambda: chain(shaped(6, 4), nn.GRU(4, 2, batch_first=True), Does(lambda m, x: x[0]))
            ),
            r"layer GRU must take and give tensors.*--engine vmap",
        ),
    ],
    ids=["outside", "outside-behind-a-gate", "reversed", "constant", "gru"],
)
def test_what_book_keeping_would_get_wrong_is_refused(
    model: Network, says: str, engine: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        engines.build(engine, model, 1.0)


def test_bags_with_offsets_are_refused() -> None:
    bags = Does(
        lambda m, x: m.bag(x.flatten(), torch.arange(len(x))) * x, bag=nn.EmbeddingBag(4, 3)
    )
    model = Network(
        name="bags", factory=lambda: chain(Does(lambda m, x: m.bags(x[:, :1]), bags=bags)),
        takes="levels", facts={"levels": [4] * 2},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"EmbeddingBag must take ids \[batch, bag\]"):
        engines.build("bookkeeping", model, 1.0)


def test_what_vmap_is_advised_for_it_can_do() -> None:
    for model in (outside(gate=False), of_features(lambda: chain(Constant()))):
        inputs, labels, params = model.probe(5), np.ones(5, np.float32), model.initial(0)
        found, expected = np.zeros((2, model.num_params))
        engines.build("vmap", model, 0.1).clipped_sum(params, inputs, labels, found)
        engines.build("loop", model, 0.1).clipped_sum(params, inputs, labels, expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * 0.5)


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_the_fused_engine_refuses_a_network_and_names_another(name: str) -> None:
    model = models.build(name, 9, (), levels=(3, 2, 4))
    with pytest.raises(ConfigError, match=rf"fused is for dense models.*got {name}.*bookkeeping"):
        engines.build("fused", model, 1.0)
    assert engines.choose(model) == "bookkeeping"


def test_dropout_does_not_disturb_the_checks_and_is_on_again_after_them() -> None:
    def factory() -> nn.Module:
        heads = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
        return chain(shaped(6, 4), nn.Linear(4, 4), Does(itself(), heads=heads), nn.Dropout(0.4))

    for name in ENGINES:
        engine: Any = engines.build(name, of_features(factory), 1.0)
        module = getattr(engine, "module", None) or engine._module
        assert module.module.training and module.module[3].p == 0.4
        assert module.module[2].heads.dropout == 0.3


def test_frozen_parameters_are_no_part_of_the_vector() -> None:
    model = of_features(lambda: chain(frozen(nn.Linear(24, 5)), nn.Linear(5, 3)))
    assert [tensor.name for tensor in model.tensors] == ["1.weight", "1.bias"]
    assert model.num_params == len(model.initial(0)) == 18
