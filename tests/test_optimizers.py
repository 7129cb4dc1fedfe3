"""Optimizers, learning-rate schedules and weight averaging."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dpsgd import config, optimizers
from dpsgd.config import Config
from dpsgd.errors import ConfigError

F32 = NDArray[np.float32]

MAKERS: dict[str, Callable[[int], optimizers.Optimizer]] = {
    "adam": lambda n: optimizers.build("adam", n, 0.05),
    "adam, corrected": lambda n: optimizers.build(
        "adam", n, 0.05, adam_bias_correction=True, noise_std=0.5
    ),
    "momentum": lambda n: optimizers.build("momentum", n, 0.05),
    "sgd": lambda n: optimizers.build("sgd", n, 0.05),
}
every_optimizer = pytest.mark.parametrize("name", sorted(MAKERS))
every_schedule = pytest.mark.parametrize("name", sorted(optimizers.SCHEDULES))


def gradients(steps: int, num_params: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=(steps, num_params)).astype(np.float32)


def after(optimizer: optimizers.Optimizer, start: F32, grads: F32) -> F32:
    params = start.copy()
    for grad_mean in grads:
        optimizer.step(params, grad_mean)
    return params


def test_the_tables_have_the_names_of_the_options() -> None:
    assert tuple(sorted(optimizers.OPTIMIZERS)) == config.OPTIMIZERS
    assert tuple(sorted(optimizers.SCHEDULES)) == config.SCHEDULES
    assert {name.split(",")[0] for name in MAKERS} == set(optimizers.OPTIMIZERS)


def test_every_optimizer_equals_its_reference() -> None:
    torch = pytest.importorskip("torch", reason="the reference needs the extra torch")
    made = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    }
    assert set(made) == set(optimizers.OPTIMIZERS)
    grads = gradients(400, 50)
    for name, reference in made.items():
        theirs = torch.zeros(50, dtype=torch.float64)
        other = reference([theirs])
        for gradient in grads:
            theirs.grad = torch.tensor(gradient, dtype=torch.float64)
            other.step()
        ours = after(optimizers.build(name, 50, 0.05), np.zeros(50, np.float32), grads)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-5, atol=2e-6, err_msg=name)


def corrected_adam(grads: F32, noise_std: float) -> tuple[NDArray[np.float64], float]:
    """Algorithm 1 of DP-AdamBC as printed, in float64, from zero; and how much was floored."""
    params, first, second = np.zeros((3, grads.shape[1]))
    floored = 0.0
    for step, gradient in enumerate(grads.astype(np.float64), start=1):
        first = 0.9 * first + (1 - 0.9) * gradient
        second = 0.999 * second + (1 - 0.999) * gradient**2
        corrected = second / (1 - 0.999**step) - noise_std**2
        floored += np.mean(corrected < 1e-8) / len(grads)
        params -= 0.05 * first / (1 - 0.9**step) / np.sqrt(np.maximum(corrected, 1e-8))
    return params, floored


@pytest.mark.parametrize("noise_std", [0.0, 1e-3])
def test_bias_correction_equals_the_algorithm_of_the_paper(noise_std: float) -> None:
    signal = np.linspace(0, 4e-3, 200, dtype=np.float32)
    grads = signal + np.float32(1e-3) * gradients(300, 200)
    expected, floored = corrected_adam(grads, noise_std)
    assert (0.05 < floored < 0.5) if noise_std else floored < 0.05, "both branches are taken"
    made = optimizers.build("adam", 200, 0.05, adam_bias_correction=True, noise_std=noise_std)
    ours = after(made, np.zeros(200, np.float32), grads)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)
    plain = after(optimizers.build("adam", 200, 0.05), np.zeros(200, np.float32), grads)
    assert (np.abs(plain - expected).max() > 1) == bool(noise_std), "the noise makes a difference"


def test_bias_correction_is_for_adam_alone() -> None:
    with pytest.raises(ValueError, match="adam_bias_correction must be used with adam, got sgd"):
        optimizers.build("sgd", 1, 1.0, adam_bias_correction=True)
    with pytest.raises(ConfigError, match="must be used with optimizer adam, got momentum"):
        Config(optimizer="momentum", adam_bias_correction=True)
    assert Config(adam_bias_correction=True).optimizer == "adam"
    assert not Config().adam_bias_correction


@every_optimizer
def test_equal_gradients_give_equal_bits(name: str) -> None:
    start, grads = gradients(1, 77, seed=1)[0], gradients(50, 77)
    assert np.array_equal(*(after(MAKERS[name](77), start, grads) for _ in range(2)))


@every_optimizer
def test_an_elements_update_depends_on_its_own_gradients_alone(name: str) -> None:
    start, grads = gradients(1, 77, seed=1)[0], gradients(50, 77)
    whole = after(MAKERS[name](77), start, grads)
    for part in (slice(0, 1), slice(1, 38), slice(38, 77)):  # wherever it lies in the buffer
        alone = after(MAKERS[name](len(start[part])), start[part], grads[:, part])
        assert np.array_equal(whole[part], alone)


@every_optimizer
def test_parameters_change_in_place_and_nothing_of_their_size_is_allocated(name: str) -> None:
    params, (grad_mean,) = np.zeros(100_000, np.float32), gradients(1, 100_000)
    before, optimizer = grad_mean.copy(), MAKERS[name](100_000)
    assert peak_bytes(lambda: optimizer.step(params, grad_mean)) < params.nbytes / 50
    assert params.all(), "every gradient moves its parameter"
    assert np.array_equal(grad_mean, before)


def peak_bytes(call: Callable[[], None]) -> int:
    """What three calls allocate at most at one time; numpy tells tracemalloc of its buffers."""
    tracemalloc.start()
    try:
        for _ in range(3):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_optimizer
@pytest.mark.parametrize("num_params", [0, 1])
def test_the_smallest_buffers_work(name: str, num_params: int) -> None:
    start = np.ones(num_params, np.float32)
    stepped = after(MAKERS[name](num_params), start, np.ones((3, num_params), np.float32))
    assert stepped.shape == (num_params,)
    assert (stepped < start).all()


@every_optimizer
def test_zero_gradients_change_nothing(name: str) -> None:
    start = gradients(1, 77)[0]
    assert np.array_equal(after(MAKERS[name](77), start, np.zeros((3, 77), np.float32)), start)


@pytest.mark.parametrize(
    ("name", "warmup", "factors"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, 0.5 + math.sqrt(1 / 8), 0.5, 0.5 - math.sqrt(1 / 8)]),
        ("constant", 3, [0.25, 0.5, 0.75, 1, 1]),
        ("linear", 1, [0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", 2, [1 / 3, 2 / 3, 1, 0.5]),
        ("linear", 3, [0.25, 0.5, 0.75, 1]),  # warm-up, then one step
    ],
)
def test_schedules_at_every_step(name: str, warmup: int, factors: list[float]) -> None:
    made = optimizers.schedule(name, warmup, len(factors))
    assert [made(step) for step in range(1, len(factors) + 1)] == pytest.approx(factors)


@every_schedule
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 600), (1, 2), (50, 600), (599, 600)])
def test_a_schedule_rises_to_one_and_never_falls_to_zero(
    name: str, warmup: int, steps: int
) -> None:
    made = optimizers.schedule(name, warmup, steps)
    factors = [made(step) for step in range(1, steps + 1)]
    assert factors[warmup] == max(factors) == 1
    assert min(factors) > 0
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


@every_schedule
@pytest.mark.parametrize("step", [0, 11])
def test_a_step_outside_the_run_is_refused(name: str, step: int) -> None:
    with pytest.raises(ValueError, match=f"step must be from 1 to 10, got {step}"):
        optimizers.schedule(name, 2, 10)(step)


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_the_schedule_multiplies_the_learning_rate(name: str) -> None:
    made = [
        optimizers.build(name, 5, 0.5, optimizers.schedule("linear", 1, 5)),
        optimizers.build(name, 5, 0.5),
    ]
    moves = []
    for optimizer in made:
        path = [np.zeros(5, np.float32)]
        for gradient in gradients(5, 5):
            path.append(after(optimizer, path[-1], gradient[None]))
        moves.append(np.diff(path, axis=0))
    factors = np.float32([[0.5], [1], [0.75], [0.5], [0.25]])
    np.testing.assert_allclose(moves[0], factors * moves[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"schedule": "cosin"}, "schedule must be one of .*; did you mean cosine"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"warmup": 5, "steps": 5}, "warmup must be less than the 5 steps, got 5"),
        ({"warmup": 600}, "warmup must be less than the 600 steps, got 600"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Config(**values)  # type: ignore[arg-type]


def test_a_warmup_longer_than_the_epochs_is_refused_once_the_data_are_known() -> None:
    options = Config(epochs=1.0, sample_rate=0.1, warmup=10)
    with pytest.raises(ConfigError, match="warmup must be less than the 10 steps, got 10"):
        options.resolved_steps(1000)
    assert Config(epochs=1.0, sample_rate=0.1, warmup=9).resolved_steps(1000) == 10


def test_the_average_is_exponential_and_without_decay_the_last() -> None:
    first, second = np.float32([1, 2]), np.float32([3, 7])
    average = optimizers.Average(first, 0.75)
    average.update(second)
    assert np.array_equal(average.params, 0.75 * first + 0.25 * second)
    last = optimizers.Average(first, 0.0)
    last.update(second)
    assert np.array_equal(last.params, second)


def test_the_weights_of_the_average_sum_to_one() -> None:
    params = gradients(1, 50)[0]
    average = optimizers.Average(params, 0.9999)  # as float32, 1.7e-4 of 1e-4 less
    for _ in range(30_000):
        average.update(params)
    np.testing.assert_allclose(average.params, params, rtol=2e-5)


def test_the_average_allocates_nothing() -> None:
    params = np.ones(100_000, np.float32)
    average = optimizers.Average(params, 0.99)
    assert peak_bytes(lambda: average.update(params)) < params.nbytes / 50
