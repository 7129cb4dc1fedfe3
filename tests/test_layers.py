"""Every kind of layer, in every engine that takes any module, against one example at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="layers are torch modules")

import torch
from torch import Tensor, nn

from dpsgd import engines, terms
from dpsgd.networks import Network

F32 = NDArray[np.float32]
FEATURES = 24
ROWS = 12
ENGINES = ("bookkeeping", "two-pass", "vmap")
pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop", "ignore:Using padding='same' with even kernel"
)
every_engine = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are small, and threads of tests side by side wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Readout(nn.Module):
    """Anything to one logit an example, without parameters; different for every element."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x.tanh() @ torch.arange(1, x.shape[1] + 1).to(x.dtype).cos()


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, Readout())


def shaped(*shape: int) -> nn.Module:
    """Features as [batch, *shape]."""
    return nn.Unflatten(1, shape)


def frozen(module: nn.Module, *names: str) -> nn.Module:
    """All parameters of a module, or those of these names, are not trained."""
    for name, parameter in module.named_parameters():
        if not names or name in names:
            parameter.requires_grad_(False)
    return module


class Does(nn.Module):
    """Its children, put together by a function."""

    def __init__(self, forward: Callable[..., Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


class Scale(nn.Module):
    """Owns a parameter that is no layer's."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.scale.sum()


class Gate(nn.Module):
    """Owns a parameter, and has a child that owns others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(width))
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate) * self.inner(x) + self.gate * x


def tied(*, bias_too: bool) -> nn.Module:
    """Two linear layers with one weight."""
    one, other = nn.Linear(6, 6), nn.Linear(6, 6)
    other.weight = one.weight
    if bias_too:
        other.bias = one.bias
    return chain(shaped(4, 6), one, nn.Tanh(), other)


def language() -> nn.Module:
    """The weight of the embedding is that of the last layer."""
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5)
    head.weight = embedding.weight
    return chain(embedding, nn.Tanh(), head)


def attention(how: Callable[..., Tensor], batch_first: bool = True, **options: Any) -> nn.Module:
    heads = nn.MultiheadAttention(4, 2, batch_first=batch_first, **options)
    return chain(shaped(6, 4), nn.Linear(4, 4), Does(how, heads=heads))


def itself(**options: Any) -> Callable[..., Tensor]:
    """Self attention with these arguments."""
    return lambda m, x: m.heads(x, x, x, **options)[0]


CAUSAL = torch.ones(6, 6, dtype=torch.bool).triu(1)
FLOATS = torch.linspace(-1, 1, 36).view(6, 6)
PER_HEAD = torch.linspace(-1, 1, 72).view(2, 6, 6)


def padded(module: Any, x: Tensor) -> Tensor:
    """The last tokens of an example are padding, of each another number."""
    length = 1 + 1 * (x.detach()[:, 0, 0] > 0)
    late = torch.arange(6) >= 6 - length[:, None]
    mask = torch.zeros(late.shape, dtype=x.dtype).masked_fill(late, -math.inf)
    return module.heads(x, x, x, key_padding_mask=mask, attn_mask=FLOATS.to(x.dtype))[0]


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        4, 2, 8, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    return chain(shaped(6, 4), layer, nn.Linear(4, 2))


def image(*layers: nn.Module) -> nn.Module:
    return chain(shaped(2, 3, 4), *layers)


def line(*layers: nn.Module) -> nn.Module:
    return chain(shaped(2, 12), *layers)


def bag(how: Callable[..., Tensor], **options: Any) -> nn.Module:
    return chain(Does(how, bag=nn.EmbeddingBag(4, 3, **options)), nn.Linear(3, 2))


def positions(how: Callable[..., Tensor], length: int) -> nn.Module:
    """Tokens and where they are."""
    return chain(
        Does(how, token=nn.Embedding(4, 5), place=nn.Embedding(length, 5)), nn.Tanh(),
        nn.Linear(5, 2),
    )  # fmt: skip


OF_FEATURES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: chain(nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)),
    "linear-3d-built": lambda: chain(shaped(6, 4), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
    "linear-3d-gram": lambda: chain(
        shaped(3, 8), nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 7, bias=False)
    ),
    "linear-3d-of-one-position": lambda: chain(shaped(1, 24), nn.Linear(24, 5)),
    "linear-4d-built": lambda: chain(shaped(2, 3, 4), nn.Linear(4, 5)),
    "linear-4d-gram": lambda: chain(shaped(2, 3, 4), nn.Linear(4, 32)),
    "conv1d": lambda: line(nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2)),
    "conv1d-gram": lambda: line(nn.Conv1d(2, 30, 4, stride=4), nn.Tanh(), nn.Conv1d(30, 9, 2)),
    "conv1d-circular": lambda: line(nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular")),
    "conv1d-no-bias": lambda: line(nn.Conv1d(2, 3, 4, padding="same", bias=False)),
    "conv2d": lambda: image(
        nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 2), dilation=(2, 1))
    ),
    "conv2d-reflect": lambda: image(nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect")),
    "conv2d-replicate": lambda: image(nn.Conv2d(2, 3, 2, padding=1, padding_mode="replicate")),
    "conv2d-groups": lambda: image(nn.Conv2d(2, 4, 2, groups=2)),
    "conv-transpose": lambda: line(nn.ConvTranspose1d(2, 3, 3)),
    "layer-norm": lambda: image(nn.LayerNorm((3, 4)), nn.Linear(4, 3), nn.LayerNorm(3, bias=False)),
    "rms-norm": lambda: image(nn.RMSNorm((3, 4)), nn.Linear(4, 3), nn.RMSNorm(3)),
    "group-norm-2d": lambda: chain(nn.Linear(24, 6), nn.GroupNorm(2, 6)),
    "group-norm-3d": lambda: line(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4)),
    "group-norm-4d": lambda: image(nn.Conv2d(2, 4, 2), nn.GroupNorm(1, 4)),
    "instance-norm": lambda: line(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3, affine=True)),
    "prelu": lambda: chain(nn.Linear(24, 6), nn.PReLU(6)),
    "bilinear": lambda: chain(
        Does(lambda m, x: m.pair(x[:, :4], x[:, 4:8]), pair=nn.Bilinear(4, 4, 3))
    ),
    "attention": lambda: attention(itself()),
    "attention-without-weights": lambda: attention(itself(need_weights=False)),
    "attention-no-bias": lambda: attention(itself(need_weights=False), bias=False),
    "attention-bool-mask": lambda: attention(itself(attn_mask=CAUSAL, need_weights=False)),
    "attention-causal": lambda: attention(
        itself(attn_mask=CAUSAL, is_causal=True, need_weights=False)
    ),
    "attention-float-mask": lambda: attention(
        lambda m, x: m.heads(x, x, x, attn_mask=FLOATS.to(x.dtype))[0]
    ),
    "attention-mask-of-each-head": lambda: attention(
        lambda m, x: m.heads(x, x, x, attn_mask=PER_HEAD.to(x.dtype).repeat(len(x), 1, 1))[0]
    ),
    "attention-padding": lambda: attention(padded),
    "attention-cross": lambda: attention(
        lambda m, x: m.heads(x[:, :2], x[:, 2:], x[:, 2:].tanh(), need_weights=False)[0]
    ),
    "attention-of-the-features": lambda: chain(
        shaped(6, 4), Does(itself(), heads=frozen(nn.MultiheadAttention(4, 2, batch_first=True),
                                                  "in_proj_weight", "in_proj_bias")),
    ),
    "attention-queries-trained": lambda: chain(
        shaped(6, 4),
        Does(lambda m, x: m.heads(m.q(x), x, x)[0], q=nn.Linear(4, 4),
             heads=frozen(nn.MultiheadAttention(4, 2, batch_first=True),
                          "in_proj_weight", "in_proj_bias")),
    ),
    "attention-frozen-weight": lambda: attention_of(
        frozen(nn.MultiheadAttention(4, 2, batch_first=True), "in_proj_weight", "out_proj.bias")
    ),
    "encoder-layer": lambda: encoder(norm_first=False),
    "encoder-layer-norm-first": lambda: encoder(norm_first=True),
    "relu-in-place": lambda: chain(nn.ReLU(inplace=True), nn.Linear(24, 5), nn.ReLU(inplace=True),
                                   nn.Linear(5, 3)),
    "raw-parameter": lambda: chain(nn.Linear(24, 5), Scale(5), nn.Tanh(), Scale(1)),
    "parameter-and-children": lambda: chain(shaped(6, 4), Gate(4), nn.Tanh(), Gate(4)),
    "residual": lambda: chain(
        nn.Linear(24, 6),
        Does(lambda m, x: x + m.b((x + m.a(x)).relu()), a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
    ),
    "called-twice": lambda: chain(
        shaped(4, 6), Does(lambda m, x: m.a(m.a(x).tanh()) + m.a(-x), a=nn.Linear(6, 6))
    ),
    "called-twice-without-positions": lambda: chain(
        nn.Linear(24, 6), Does(lambda m, x: m.a(m.a(x).tanh()), a=nn.Linear(6, 6))
    ),
    "called-with-and-without-positions": lambda: chain(
        shaped(4, 6), Does(lambda m, x: m.a(x) + m.a(x[:, 0])[:, None], a=nn.Linear(6, 6))
    ),
    "norm-called-twice": lambda: chain(
        shaped(4, 6), Does(lambda m, x: m.n(m.n(x).exp()) , n=nn.LayerNorm(6))
    ),
    "tied-linear": lambda: tied(bias_too=True),
    "tied-weight-own-bias": lambda: tied(bias_too=False),
    "frozen-layer": lambda: chain(nn.Linear(24, 5), frozen(nn.Linear(5, 5)), nn.Linear(5, 3)),
    "frozen-weight": lambda: chain(shaped(6, 4), frozen(nn.Linear(4, 5), "weight"), nn.Tanh(),
                                   frozen(nn.LayerNorm(5), "weight")),
    "frozen-bias": lambda: chain(shaped(6, 4), frozen(nn.Linear(4, 5), "bias"), nn.Tanh(),
                                 frozen(nn.LayerNorm(5), "bias")),
    "unused": lambda: chain(Does(lambda m, x: m.a(x), a=nn.Linear(24, 3), b=nn.Linear(4, 4))),
    "without-gradient": lambda: chain(
        Does(lambda m, x: m.a(x) + m.b(x).detach(), a=nn.Linear(24, 3), b=nn.Linear(24, 3))
    ),
}  # fmt: skip


def attention_of(heads: nn.Module) -> nn.Module:
    return chain(shaped(6, 4), Does(lambda m, x: m.heads(m.q(x), x, x)[0], heads=heads,
                                    q=nn.Linear(4, 4)))  # fmt: skip


OF_LEVELS: dict[str, Callable[[], nn.Module]] = {
    "embedding": lambda: chain(nn.Embedding(4, 3), nn.Linear(3, 2)),
    "embedding-padding": lambda: chain(nn.Embedding(4, 3, padding_idx=-2)),
    "embedding-of-one-column": lambda: chain(
        Does(lambda m, x: m.e(x[:, 0]), e=nn.Embedding(4, 3)), nn.Linear(3, 2)
    ),
    "positions": lambda: positions(lambda m, x: m.token(x) + m.place(torch.arange(6)), 6),
    "positions-as-many-as-probes": lambda: positions(
        lambda m, x: m.token(x[:, :3]) + m.place(torch.arange(3)), 3
    ),
    "positions-of-one": lambda: positions(
        lambda m, x: m.token(x[:, :1]) + m.place(torch.arange(1)), 1
    ),
    "positions-as-many-as-rows": lambda: positions(
        lambda m, x: m.token(torch.cat([x, x], 1)) + m.place(torch.arange(12)), 12
    ),
    "positions-expanded": lambda: positions(
        lambda m, x: m.token(x) + m.place(torch.arange(6).expand(len(x), 6)), 6
    ),
    "bag-sum": lambda: bag(lambda m, x: m.bag(x), mode="sum"),
    "bag-mean": lambda: bag(lambda m, x: m.bag(x)),
    "bag-of-one-id": lambda: bag(lambda m, x: m.bag(x[:, :1].repeat(1, 9)), mode="sum"),
    "bag-padding": lambda: bag(lambda m, x: m.bag(x), mode="mean", padding_idx=1),
    "bag-weights": lambda: bag(
        lambda m, x: m.bag(x, per_sample_weights=(x + 1).to(m.bag.weight.dtype).sin()),
        mode="sum",
        padding_idx=0,
    ),
    "bag-maximum": lambda: bag(lambda m, x: m.bag(x), mode="max"),
    "tied-embedding": language,
}


def network(name: str) -> Network:
    if name in OF_FEATURES:
        return of_features(OF_FEATURES[name])
    facts = {"levels": [4] * 6}
    return Network(name=name, factory=OF_LEVELS[name], takes="levels", facts=facts)


def of_features(factory: Callable[[], nn.Module], features: int = FEATURES) -> Network:
    return Network(name="net", factory=factory, facts={"num_features": features})


def batch(model: Network, rows: int = ROWS) -> tuple[NDArray[Any], F32]:
    inputs = model.probe(rows)
    if "levels" in model.facts:
        inputs[0] = inputs[0, 0]  # an example with one id alone
    return inputs, (np.arange(rows) % 2).astype(np.float32)


def params_of(model: Network) -> F32:
    generator = np.random.default_rng(1)
    return (model.initial(1) + generator.normal(size=model.num_params) * 0.3).astype(np.float32)


def clipped_sum(
    engine: engines.Engine, inputs: NDArray[Any], labels: F32, params: F32
) -> NDArray[np.float64]:
    out = np.full(len(params), 7.0)
    before = inputs.copy(), params.copy()
    engine.clipped_sum(params, inputs, labels, out)
    assert np.array_equal(inputs, before[0], equal_nan=True), "the engine changed its input"
    assert np.array_equal(params, before[1]), "the engine changed the parameters"
    return out


@cache
def per_example(name: str) -> NDArray[np.float64]:
    """Gradients of every example by the reference engine [batch, num_params]."""
    model = network(name)
    (inputs, labels), params = batch(model), params_of(model)
    reference = engines.build("loop", model, math.inf)
    found = np.empty((len(labels), model.num_params))
    for row, out in enumerate(found):
        reference.clipped_sum(params, inputs[row : row + 1], labels[row : row + 1], out)
    return found


SECOND_PASS = (  # is plain autograd, and the first is that of bookkeeping
    "linear-3d-gram", "conv1d", "attention-cross", "parameter-and-children", "called-twice",
    "unused", "positions", "bag-mean", "tied-embedding",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, engine) for name in (*OF_FEATURES, *OF_LEVELS) for engine in ("bookkeeping", "vmap")]
    + [(name, "two-pass") for name in SECOND_PASS],
)
def test_a_layer_gives_what_one_example_at_a_time_gives(name: str, engine: str) -> None:
    model, gradients = network(name), per_example(name)
    norms = np.linalg.norm(gradients, axis=1)
    biting = 0.9 * float(np.sort(norms[norms > 0])[2])
    assert (norms > biting).mean() >= 0.5, "clipping must bite"
    for clip in (biting, math.inf) if engine == "bookkeeping" else (biting,):
        weights = np.minimum(1, clip / np.maximum(norms, 1e-300))
        built = engines.build(engine, model, clip)
        found = clipped_sum(built, *batch(model), params_of(model))
        error = np.linalg.norm(found - weights @ gradients)
        assert error <= 1e-5 * (weights @ norms), f"relative to all that is added, at C = {clip}"


@pytest.mark.parametrize("name", ["tied-embedding", "attention", "parameter-and-children"])
def test_parts_are_final_when_they_are_announced_and_cover_the_whole_once(name: str) -> None:
    model = network(name)
    (inputs, labels), params = batch(model), params_of(model)
    engine: Any = engines.build("bookkeeping", model, 0.1)
    expected = clipped_sum(engine, inputs, labels, params)
    orders = []
    for rows in (ROWS, 0):
        out = np.full(model.num_params, 7.0)
        order = []
        for part in engines.stages(engine, params, inputs[:rows], labels[:rows], out):
            assert np.array_equal(out[part], expected[part] * bool(rows)), "not final"
            order.append(part)
        covered = np.concatenate([np.arange(model.num_params)[part] for part in order])
        assert sorted(covered) == list(range(model.num_params))
        orders.append(order)
    assert orders[0] == orders[1]


@every_engine
@pytest.mark.parametrize("bad", [math.nan, 1e15, 3e38])
@pytest.mark.parametrize("name", ["linear-3d-gram", "encoder-layer", "group-norm-3d"])
def test_an_odd_example_does_not_touch_the_others(name: str, bad: float, engine: str) -> None:
    model, params = network(name), params_of(network(name))
    built = engines.build(engine, model, 0.2)
    inputs, labels = batch(model)
    inputs[3, 5] = bad  # one value of one position
    others = np.arange(ROWS) != 3
    found = clipped_sum(built, inputs, labels, params)
    for blanked in (3, 8):  # by an example that contributes nothing
        without = inputs.copy()
        without[blanked] = np.nan
        move = found - clipped_sum(built, without, labels, params)
        assert np.linalg.norm(move) <= 0.2 * (1 + built.rho)
    if not math.isfinite(bad):
        expected = clipped_sum(built, inputs[others], labels[others], params)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * 0.2 * ROWS)
    if bad == 3e38:
        return  # a variance that overflows in float32 makes a gradient that is another one
    expected = clipped_sum(engines.build("loop", model, 0.2), inputs, labels, params)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * 0.2 * ROWS)


def opposite(how: Callable[[Any, Tensor], Tensor], features: int) -> Network:
    """The logit is the difference of what comes out at two positions [batch, 2, 20]."""

    def forward(module: Any, x: Tensor) -> Tensor:
        first, second = how(module, x).unbind(1)
        return (first - second) @ torch.arange(1, 21).to(first.dtype).cos()

    return of_features(lambda: Does(forward, a=nn.Linear(30, 20, bias=False)), features)


NEARLY_EQUAL = opposite(
    lambda m, x: m.a(x.view(-1, 2, 30)), 60
)  # so that positions have opposite gradients and nearly the same input


def worst_contribution(engine: str, model: Network, inputs: F32, clip: float) -> float:
    """Largest norm of what one example adds to an empty batch, in units of C."""
    engine_built, worst = engines.build(engine, model, clip), 0.0
    for row in range(len(inputs)):
        out = np.zeros(model.num_params)
        params, label = model.initial(0) * np.float32(1e-3), np.ones(1, np.float32)
        engine_built.clipped_sum(params, inputs[row : row + 1], label, out)
        worst = max(worst, float(np.linalg.norm(out)) / clip)
    return worst


def sequences_that_cancel(apart: float) -> F32:
    generator = np.random.default_rng(1)
    tokens = generator.normal(size=(20, 1, 30)) * 1000
    tokens = tokens + generator.normal(size=(20, 2, 30)) * apart
    return tokens.reshape(20, 60).astype(np.float32)


@pytest.mark.parametrize("engine", [*ENGINES, "loop"])
@pytest.mark.parametrize("apart", [0.1, 1, 10, 100])
def test_a_sequence_made_to_cancel_contributes_no_more_than_c(apart: float, engine: str) -> None:
    inputs = sequences_that_cancel(apart)
    rho = engines.build(engine, NEARLY_EQUAL, 0.5).rho
    worst = worst_contribution(engine, NEARLY_EQUAL, inputs, 0.5)
    assert 0.99 < worst <= 1 + rho


def test_either_rule_is_enough_for_sequences_and_without_both_they_contribute_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = sequences_that_cancel(1)
    monkeypatch.setattr("dpsgd.terms.max_spread", lambda positions: 1e15)
    assert worst_contribution("bookkeeping", NEARLY_EQUAL, inputs, 0.5) <= 1
    monkeypatch.setattr("dpsgd.terms.UNIT", 0)
    assert worst_contribution("bookkeeping", NEARLY_EQUAL, inputs, 0.5) > 1.1


def test_a_word_that_cancels_itself_contributes_no_more_than_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(module: Any, x: Tensor) -> Tensor:
        scale = x.to(module.words.weight.dtype) * 1e3 + 1e6
        return (module.words(x * 0) * scale[:, :, None] * torch.tensor([[1.0], [-1.0]])).sum((1, 2))

    model = Network(
        name="words", factory=lambda: Does(forward, words=nn.Embedding(2, 40)), takes="levels",
        facts={"levels": [9, 9]},
    )  # fmt: skip
    pairs = np.array([[a, b] for a in range(9) for b in range(9)])
    assert worst_contribution("bookkeeping", model, pairs, 0.5) <= 1
    monkeypatch.setattr("dpsgd.terms.UNIT", 0)
    assert worst_contribution("bookkeeping", model, pairs, 0.5) > 1.01


def test_squares_that_underflow_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opposite(lambda m, x: 1e18 * torch.stack([m.a(x), 0 * x[:, :20]], 1), 30)
    inputs = np.full((1, 30), 1e-23, np.float32)
    for engine in (*ENGINES, "loop"):
        assert worst_contribution(engine, model, inputs, 1e-5) <= 1.001
    monkeypatch.setattr("dpsgd.terms.TINY", 0)
    assert worst_contribution("bookkeeping", model, inputs, 1e-5) > 2


def absorbing(kind: str) -> terms.Term:
    """A quarter of a million gradients of nearly the same direction."""
    weight = nn.Parameter(torch.zeros(1, 10))
    generator = torch.Generator().manual_seed(0)
    a = 1 + torch.rand(2**18, 10, generator=generator)
    if kind == "each":
        return terms.Each((weight,), [a])
    return terms.Outer((weight,), a, torch.ones(len(a), 1))


def moved(kind: str) -> float:
    """How far blanking one of them moves the sum, in units of its norm."""
    term = absorbing(kind)
    keep = np.ones(2**18, np.bool_)
    with torch.no_grad():
        term.add_sum(keep.astype(np.float32), [whole := np.zeros(10)])
        worst = 0.0
        for row in range(0, 2**18, 2**15):
            keep[row] = False
            term.blanked(keep).add_sum(keep.astype(np.float32), [out := np.zeros(10)])
            keep[row] = True
            norm = math.sqrt(term.bounds()[0][row])
            worst = max(worst, float(np.linalg.norm(whole - out)) / norm)
    return worst


@pytest.mark.parametrize("kind", ["outer", "each"])
def test_a_sum_in_blocks_does_not_absorb_one_of_many(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert moved(kind) <= 1 + 1e-4
    monkeypatch.setattr("dpsgd.terms.BLOCK_ROWS", 2**18)
    assert moved(kind) > 1 + terms.RHO, "without blocks"


@pytest.mark.parametrize("positions", [2, 3, 7, 10, 13, 31, 64, 100, 129, 1000, 5000])
def test_blocks_of_positions_keep_the_rounding_of_one_example_within_rho(positions: int) -> None:
    rows = terms.block_rows(positions)
    for start in range(terms.GROUP * rows):  # where in a group of blocks an example begins
        block, group = (
            examples_beside(start, positions, size) for size in (rows, terms.GROUP * rows)
        )
        rounding = (rows * block + terms.LEVELS * group) * terms.UNIT * terms.max_spread(positions)
        assert 2 * rounding <= terms.RHO


def examples_beside(start: int, positions: int, size: int) -> int:
    """Examples in the blocks of this size that one which begins at `start` reaches into."""
    before, after = start % size, -(start + positions) % size
    return -(-before // positions) + 1 + -(-after // positions)


def test_a_second_pass_that_rounds_otherwise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = network("norm-called-twice"), 6
    generator = np.random.default_rng(0)
    nearly_equal = np.repeat(generator.normal(size=(rows, 4)) * 1e6, 6, 1)  # in each norm
    inputs = (nearly_equal + generator.normal(size=(rows, 24)) * 0.01).astype(np.float32)
    labels, params = np.ones(rows, np.float32), params_of(model)
    engine = engines.build("two-pass", model, 0.01)

    def worst_move() -> float:
        """Of the sum when one example is blanked, in units of C."""
        whole, worst = clipped_sum(engine, inputs, labels, params), 0.0
        for row in range(rows):
            blanked = inputs.copy()
            blanked[row] = np.nan
            move = whole - clipped_sum(engine, blanked, labels, params)
            worst = max(worst, float(np.linalg.norm(move)) / 0.01)
        return worst

    assert worst_move() <= 1 + engine.rho
    monkeypatch.setattr("dpsgd.engines.two_pass.MARGIN", 1e9)
    assert worst_move() > 2, "without the comparison"
