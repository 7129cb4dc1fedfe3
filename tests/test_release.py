"""The release: grid, sensitivity, and noise of the size that is promised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpsgd import streams
from dpsgd.errors import ConfigError
from dpsgd.release import CAPACITY, Grid, Release, plain_grid, private_grid

WIDTH = {"int32": np.int32, "int64": np.int64}


def grid(**changes: object) -> Grid:
    numbers: dict[str, object] = {
        "wire": "auto", "max_grad_norm": 1.0, "rho": 0.002, "noise_multiplier": 3.5,
        "num_params": 8065, "expected_batch_size": 2061.0, "world_size": 4,
    }  # fmt: skip
    return private_grid(**(numbers | changes))  # type: ignore[arg-type]


def encoded(values: np.ndarray, made: Grid, event: int = 0, rank: int = 0) -> np.ndarray:
    out = np.zeros(len(values), WIDTH[made.wire])
    release = Release(made, streams.insecure(1, rank).noise)
    release.encode(values.astype(np.float64).copy(), event, out)
    return out


def test_the_recipe_travels_as_int32_with_less_than_a_thousandth_of_extra_noise() -> None:
    made = grid()
    assert made.wire == "int32"
    assert made.sensitivity / 1.002 - 1 < 1e-3


def test_total_noise_is_sigma_times_the_whole_sensitivity() -> None:
    made = grid(noise_multiplier=2.0, world_size=8)
    sensitivity = 1.002 + made.spacing * math.sqrt(8065)
    assert made.sensitivity == pytest.approx(sensitivity)
    assert made.noise_std * math.sqrt(8) == pytest.approx(2.0 * sensitivity)


@pytest.mark.parametrize("wire", CAPACITY)
@pytest.mark.parametrize("world_size", [1, 4, 7])
def test_no_data_and_no_noise_can_overflow_the_wire(wire: str, world_size: int) -> None:
    made = grid(wire=wire, world_size=world_size)
    largest_noise = streams.MAX_GAUSSIAN * made.noise_std / made.spacing + 0.5
    assert world_size * (made.limit + largest_noise) <= CAPACITY[wire]
    for extreme in (math.inf, -math.inf, 1e300):
        values = encoded(np.full(1000, extreme), made)
        assert (np.abs(values.astype(np.float64)) <= made.limit + largest_noise).all()


def test_not_a_number_becomes_zero_plus_noise() -> None:
    made = grid()
    assert np.array_equal(encoded(np.full(9, np.nan), made), encoded(np.zeros(9), made))


@pytest.mark.parametrize("seed", range(20))
def test_rounding_moves_neighbouring_sums_by_at_most_the_sensitivity(seed: int) -> None:
    """Without noise: two sums C (1 + rho) apart are at most Delta apart on the grid."""
    made = grid(wire="int32", num_params=1000, expected_batch_size=1e6)
    quiet = Grid(
        spacing=made.spacing, limit=made.limit, noise_std=0.0, sensitivity=0.0, wire="int32"
    )
    generator = np.random.default_rng(seed)
    one = generator.normal(size=1000) * 3
    step = generator.normal(size=1000)
    other = one + step / np.linalg.norm(step) * 1.002
    moved = (encoded(one, quiet) - encoded(other, quiet)) * made.spacing
    assert np.linalg.norm(moved) <= made.sensitivity


@pytest.mark.parametrize("world_size", [1, 4])
def test_noise_of_the_expected_size_is_really_there(world_size: int) -> None:
    """The sum over all ranks has standard deviation sigma Delta (false alarm below 1e-9)."""
    made = grid(world_size=world_size, num_params=200_000)
    zeros = np.zeros(200_000)
    total = sum(encoded(zeros, made, rank=rank).astype(np.int64) for rank in range(world_size))
    noise = total * made.spacing
    deviation = noise.std() / (3.5 * made.sensitivity)
    assert abs(deviation - 1) < 6.5 / math.sqrt(2 * len(noise))
    assert abs(noise.mean()) < 6.5 * 3.5 * made.sensitivity / math.sqrt(len(noise))


def test_noise_differs_between_events_and_between_ranks() -> None:
    made = grid()
    zeros = np.zeros(100)
    drawn = [encoded(zeros, made, event=e, rank=r) for e in (0, 1) for r in (0, 1)]
    assert len({one.tobytes() for one in drawn}) == 4


def test_each_share_of_noise_is_at_least_four_grid_steps() -> None:
    made = grid(noise_multiplier=0.5, world_size=64, expected_batch_size=1e6)
    assert made.noise_std >= 4 * made.spacing


def test_a_wire_too_coarse_for_the_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="wire int32 cannot carry"):
        grid(wire="int32", expected_batch_size=1e9, noise_multiplier=0.3, world_size=64)
    finer = grid(wire="auto", expected_batch_size=1e9, noise_multiplier=0.3, world_size=64)
    assert finer.wire == "int64"


def test_grids_are_powers_of_two_so_that_scaling_is_exact() -> None:
    for made in (grid(), grid(wire="int64"), grid(max_grad_norm=0.3), plain_grid(3)):
        assert math.log2(made.spacing).is_integer()


def test_a_plain_sum_is_released_unchanged_up_to_its_fine_grid() -> None:
    made = plain_grid(4)
    values = np.random.default_rng(0).normal(size=100) * 100
    release = Release(made, streams.insecure(0, 0).noise)
    out = np.zeros(100, np.int64)
    release.encode(values.copy(), 0, out)
    np.testing.assert_allclose(release.decode(out), values, atol=made.spacing)
