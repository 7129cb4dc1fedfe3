"""The contract of every gradient engine in the table, against one example at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpsgd import engines, models
from dpsgd.products import BLOCK_ROWS

torch = pytest.importorskip("torch", reason="the reference engine needs the extra torch")

F32 = NDArray[np.float32]
MODELS = [models.build("logistic", 10, (8,)), models.build("mlp", 10, (8,)),
          models.build("mlp", 10, (8, 5), activation="relu")]  # fmt: skip
every_engine = pytest.mark.parametrize("name", engines.NAMES)
every_model = pytest.mark.parametrize("model", MODELS, ids=["logistic", "mlp", "relu"])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are small, and threads of tests side by side wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def built(name: str, model: models.Model, clip: float) -> engines.Engine:
    return engines.build(name, model, clip)


def batch(rows: int, seed: int = 0, scale: float = 1.0) -> tuple[F32, F32]:
    generator = np.random.default_rng(seed)
    features = (generator.normal(size=(rows, 10)) * scale).astype(np.float32)
    return features, generator.integers(0, 2, rows).astype(np.float32)


def params_of(model: models.Model, seed: int = 1) -> F32:
    generator = np.random.default_rng(seed)
    return (model.initial(seed) + generator.normal(size=model.num_params) * 0.3).astype(np.float32)


def clipped_sum(
    name: str, model: models.Model, clip: float, features: F32, labels: F32
) -> NDArray[np.float64]:
    out = np.full(model.num_params, 7.0)  # what was there before must not matter
    params, before = params_of(model), (features.copy(), labels.copy())
    built(name, model, clip).clipped_sum(params, features, labels, out)
    assert np.array_equal(features, before[0], equal_nan=True), "the engine changed its input"
    assert np.array_equal(params, params_of(model)), "the engine changed the parameters"
    return out


@cache
def reference(number: int, clip: float) -> NDArray[np.float64]:
    return clipped_sum("loop", MODELS[number], clip, *batch(2 * BLOCK_ROWS + 17))


@every_engine
@every_model
@pytest.mark.parametrize("clip", [0.05, 0.5, math.inf])
def test_equals_one_example_at_a_time(name: str, model: models.Model, clip: float) -> None:
    features, labels = batch(2 * BLOCK_ROWS + 17)
    expected = reference(MODELS.index(model), clip)
    found = clipped_sum(name, model, clip, features, labels)
    assert np.linalg.norm(found - expected) <= 1e-5 * min(clip, 1) * len(labels)


@every_engine
@every_model
def test_one_example_is_the_gradient_scaled_to_the_norm(name: str, model: models.Model) -> None:
    features, labels = batch(1)
    plain = clipped_sum(name, model, math.inf, features, labels)
    clipped = clipped_sum(name, model, 0.01, features, labels)
    norm = float(np.linalg.norm(plain))
    assert norm > 0.01
    assert np.linalg.norm(clipped) == pytest.approx(0.01, rel=1e-5)
    np.testing.assert_allclose(clipped / 0.01, plain / norm, rtol=1e-4, atol=1e-7)


@every_engine
@every_model
def test_an_empty_batch_gives_zeros(name: str, model: models.Model) -> None:
    assert not clipped_sum(name, model, 1.0, *batch(0)).any()


@every_engine
@every_model
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_contributes_zero(
    name: str, model: models.Model, bad: float
) -> None:
    features, labels = batch(BLOCK_ROWS + 5)
    features[3, 2] = bad
    others = np.arange(len(labels)) != 3
    expected = clipped_sum(name, model, 0.2, features[others], labels[others])
    found = clipped_sum(name, model, 0.2, features, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@every_engine
@pytest.mark.parametrize("size", [1e13, 1e20, 3e38])
def test_a_huge_gradient_is_clipped_without_overflow(name: str, size: float) -> None:
    model = MODELS[0]
    features, labels = batch(1)
    features[0] = size * np.sign(features[0]) / 4
    labels[0] = 1 - float(model.logits(params_of(model), features)[0] > 0)
    found = clipped_sum(name, model, 0.5, features, labels)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found) == pytest.approx(0.5, rel=1e-3)


@every_engine
@every_model
@pytest.mark.parametrize("size", [1e20, 3e38])
def test_huge_features_give_what_one_example_at_a_time_gives(
    name: str, model: models.Model, size: float
) -> None:
    features, labels = batch(12, seed=3)
    features = size * np.sign(features) / 4
    for row in range(len(labels)):  # hidden units are saturated, or dead: most gradients are zero
        one = features[row : row + 1].astype(np.float32), labels[row : row + 1]
        expected = clipped_sum("loop", model, 0.5, *one)
        np.testing.assert_allclose(clipped_sum(name, model, 0.5, *one), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 2047, 2048, 2049, 5000, 3, 0])
@every_model
def test_fused_gives_the_sum_of_its_parts_in_any_order_of_sizes(
    model: models.Model, rows: int
) -> None:
    features, labels = batch(rows)
    features[rows // 7 :: 1000] = np.nan
    features[rows // 3 :: 1500] = 1e20
    expected = np.zeros(model.num_params)
    for first in range(0, rows, 100):
        part = slice(first, first + 100)
        expected += clipped_sum("fused", model, 0.2, features[part], labels[part])
    found = clipped_sum("fused", model, 0.2, features, labels)
    np.testing.assert_allclose(found, expected, atol=1e-6 * 0.2 * max(1, rows))


def worst_difference(
    name: str, model: models.Model, features: F32, labels: F32, clip: float, examples: int = 4
) -> float:
    """Largest move of the sum when one of some examples is blanked, in units of C."""
    whole = clipped_sum(name, model, clip, features, labels)
    worst = 0.0
    for row in range(0, len(labels), max(1, len(labels) // examples)):
        blanked = features.copy()
        blanked[row] = np.nan  # contributes zero and stays in its place
        without = clipped_sum(name, model, clip, blanked, labels)
        worst = max(worst, float(np.linalg.norm(whole - without)) / clip)
    return worst


@every_engine
@every_model
def test_blanking_one_example_moves_the_sum_by_at_most_the_sensitivity(
    name: str, model: models.Model
) -> None:
    rho = built(name, model, 1.0).rho
    features, labels = batch(2 * BLOCK_ROWS + 3, scale=4.0)
    worst = worst_difference(name, model, features, labels, clip=0.1)
    assert worst <= 1 + rho
    assert worst > 0.99, "clipping did not bite, so this batch tests nothing"


def absorbing_batch(rows: int) -> tuple[models.Model, F32, F32]:
    """Gradients in one direction: a plain float32 sum of a quarter of a million loses the small
    bits, and others when one row is blanked."""
    generator = np.random.default_rng(0)
    features = (1 + generator.random((rows, 10))).astype(np.float32)
    return MODELS[0], features, np.zeros(rows, np.float32)


@every_engine
def test_small_terms_that_a_float32_sum_absorbs_stay_within_the_sensitivity(name: str) -> None:
    rows = {"fused": 2**18, "bookkeeping": 2**18}.get(name, 2**9)  # the others are slow
    model, features, labels = absorbing_batch(rows)
    rho, examples = built(name, model, 1.0).rho, 10 if name == "fused" else 2
    assert worst_difference(name, model, features, labels, 0.25, examples) <= 1 + rho


def test_without_the_blocks_the_same_batch_breaks_the_sensitivity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, features, labels = absorbing_batch(2**18)
    rho = built("fused", model, 1.0).rho
    monkeypatch.setattr("dpsgd.engines.fused.CHUNK_ROWS", len(features))
    monkeypatch.setattr("dpsgd.products.BLOCK_ROWS", len(features))
    monkeypatch.setitem(globals(), "built", engines.build)  # nothing made for blocks, none kept
    assert worst_difference("fused", model, features, labels, 0.25, 8) > 1 + rho


@every_engine
def test_a_huge_example_without_gradient_contributes_nothing(name: str) -> None:
    model = MODELS[0]
    features, labels = batch(1)
    features[0] = 1e20 * np.sign(params_of(model)[:10])
    labels[0] = 1  # right beyond doubt: the gradient is exactly zero
    assert not clipped_sum(name, model, 0.5, features, labels).any()


@every_engine
@every_model
def test_parts_are_final_when_they_are_announced_and_cover_the_whole_once(
    name: str, model: models.Model
) -> None:
    expected = clipped_sum(name, model, 0.2, *batch(40))
    orders = []
    for features, labels in (batch(40), batch(0)):
        out, order = np.full(model.num_params, 7.0), []
        engine = built(name, model, 0.2)
        for part in engines.stages(engine, params_of(model), features, labels, out):
            assert np.array_equal(out[part], expected[part] * bool(len(labels))), "not final"
            order.append(part)
        covered = np.concatenate([np.arange(len(out))[part] for part in order])
        assert sorted(covered) == list(range(len(out)))
        orders.append(order)
    assert orders[0] == orders[1], "the order tells whether there was an example"


@every_engine
@pytest.mark.parametrize("size", [1e-44, 1e-23, 1e-19, 1e-3, 1e3, 1e13, 1e18, 1e30])
def test_the_contribution_of_one_example_is_at_most_c_at_any_size(name: str, size: float) -> None:
    model = MODELS[2]
    for seed in range(3):
        features, labels = batch(1, seed, size)
        for clip in (1e-6, 0.1):
            found = clipped_sum(name, model, clip, features, labels)
            assert np.linalg.norm(found) <= clip * (1 + built(name, model, clip).rho)


def test_a_missing_package_names_the_extra(monkeypatch: Any) -> None:
    import sys

    from dpsgd.errors import ConfigError

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dpsgd.engines.loop", raising=False)
    with pytest.raises(ConfigError, match=r"needs torch.*dpsgd\[torch\]"):
        engines.build("loop", MODELS[0], 1.0)
