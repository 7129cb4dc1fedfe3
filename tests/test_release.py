"""The release: grid, sensitivity, and noise of the size that is promised."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from dpsgd import streams
from dpsgd.errors import ConfigError
from dpsgd.release import CAPACITY, CHUNK, Grid, Release, float_grid, plain_grid, private_grid

WIDTH = {"int32": np.int32, "int64": np.int64, "float32": np.float32}


def grid(**changes: object) -> Grid:
    numbers: dict[str, object] = {
        "wire": "auto", "noise": "split", "max_grad_norm": 1.0, "rho": 0.002,
        "noise_multiplier": 3.5, "num_params": 8065, "expected_batch_size": 2061.0, "world_size": 4,
    }  # fmt: skip
    return private_grid(**(numbers | changes))  # type: ignore[arg-type]


def encoded(values: np.ndarray, made: Grid, event: int = 0, rank: int = 0) -> np.ndarray:
    out = np.zeros(len(values), WIDTH[made.wire])
    release = Release(made, streams.insecure(1, rank).noise)
    noise = release.noise(event, 0, len(values), out=np.empty(len(values)))
    release.encode(values.astype(np.float64).copy(), out, noise)
    return out


def summed(made: Grid, noise: str, world_size: int, length: int) -> np.ndarray:
    """The global sum of zeros as the ranks get it, in units of the gradient."""
    ranks = [Release(made, streams.insecure(1, rank).noise) for rank in range(world_size)]
    if noise != "sharded":
        parts = [encoded(np.zeros(length), made, rank=rank) for rank in range(world_size)]
        return ranks[0].decode(sum(parts, np.zeros(length, parts[0].dtype)))
    buffer = np.zeros(length, WIDTH[made.wire])
    bounds = [length * rank // world_size for rank in range(world_size + 1)]
    for rank, release in enumerate(ranks):
        release.add_noise_(0, bounds[rank], buffer[bounds[rank] : bounds[rank + 1]])
    return ranks[0].decode(buffer)


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
@pytest.mark.parametrize("noise", ["split", "sharded", "local"])
@pytest.mark.parametrize("world_size", [1, 4, 7])
def test_no_data_and_no_noise_can_overflow_the_wire(wire: str, noise: str, world_size: int) -> None:
    made = grid(wire=wire, noise=noise, world_size=world_size)
    adding = 1 if noise == "sharded" else world_size
    largest_noise = streams.MAX_GAUSSIAN * made.noise_std / made.spacing + 0.5
    assert world_size * made.limit + adding * largest_noise <= CAPACITY[wire]
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
        spacing=made.spacing, limit=made.limit, noise_std=0.0, adders=4, sensitivity=0.0,
        wire="int32",
    )  # fmt: skip
    generator = np.random.default_rng(seed)
    one = generator.normal(size=1000) * 3
    step = generator.normal(size=1000)
    other = one + step / np.linalg.norm(step) * 1.002
    moved = (encoded(one, quiet) - encoded(other, quiet)) * made.spacing
    assert np.linalg.norm(moved) <= made.sensitivity


@pytest.mark.parametrize("noise", ["split", "sharded", "local"])
@pytest.mark.parametrize("wire", ["auto", "float32"])
@pytest.mark.parametrize("world_size", [1, 5])
def test_noise_of_the_expected_size_is_really_there(noise: str, wire: str, world_size: int) -> None:
    """The sum over all ranks has standard deviation sigma Delta (false alarm below 1e-9)."""
    length = 100_000
    if wire == "float32":
        made = float_grid(
            noise=noise, max_grad_norm=1.0, rho=0.002, noise_multiplier=3.5, world_size=world_size
        )
        assert made.sensitivity == 1.002
    else:
        made = grid(noise=noise, world_size=world_size, num_params=length)
    found = summed(made, noise, world_size, length)
    total = 3.5 * made.sensitivity
    assert made.total_noise_std == pytest.approx(total)
    assert abs(found.std() / total - 1) < 6.5 / math.sqrt(2 * length)
    assert abs(found.mean()) < 6.5 * total / math.sqrt(length)


def test_the_owner_alone_adds_noise_to_its_part() -> None:
    """Nobody else's stream matters, and what is not owned stays bare."""
    made = grid(noise="sharded", world_size=5)
    assert (made.adders, made.noise_std) == (1, 3.5 * made.sensitivity)
    buffer = np.full(10, 1000, WIDTH[made.wire])
    owner = Release(made, streams.insecure(1, 3).noise)
    owner.add_noise_(0, 4, buffer[4:6])
    assert (buffer[[0, 1, 2, 3, 6, 7, 8, 9]] == 1000).all()
    deviation = made.noise_std / made.spacing
    drawn = streams.insecure(1, 3).noise.gaussians(0, 10, deviation=deviation)[4:6]
    assert np.array_equal(buffer[4:6], 1000 + np.rint(drawn))


def test_one_normal_alone_may_be_rounded_coarsely() -> None:
    """It is post-processing; a sum of such shares is not, and needs a finer grid."""
    options = {
        "wire": "int32", "noise_multiplier": 0.01, "expected_batch_size": 1e8, "num_params": 1,
    }  # fmt: skip
    made = grid(noise="sharded", **options)
    assert made.noise_std < 4 * made.spacing
    with pytest.raises(ConfigError, match="coarser than a quarter of one rank's noise"):
        grid(noise="local", **options)
    with pytest.raises(ConfigError, match="coarser than max_grad_norm"):
        grid(noise="sharded", **(options | {"expected_batch_size": 1e12}))


@pytest.mark.parametrize("first", [0, 1, 6, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, CHUNK + 3])
def test_a_part_has_the_noise_that_it_has_in_the_whole(first: int, count: int) -> None:
    made = grid()
    release = Release(made, streams.insecure(1, 0).noise)
    whole = release.noise(5, 0, first + count, out=np.empty(first + count))
    part = release.noise(5, first, count, out=np.empty(count))
    assert np.array_equal(part, whole[first:])
    assert np.array_equal(part, np.rint(part))
    buffer = np.zeros(count, np.int64)
    release.add_noise_(5, first, buffer)
    assert np.array_equal(buffer, part)


def test_one_rank_releases_the_same_wherever_its_noise_is_added() -> None:
    values = np.random.default_rng(3).normal(size=501)
    found = []
    for noise in ("split", "sharded", "local"):
        release = Release(grid(noise=noise, world_size=1), streams.insecure(1, 0).noise)
        buffer = np.zeros(501, WIDTH[release.grid.wire])
        if noise == "sharded":
            release.encode(values.copy(), buffer)
            release.add_noise_(2, 0, buffer)
        else:
            drawn = release.noise(2, 0, 501, out=np.empty(501))
            release.encode(values.copy(), buffer, drawn)
        found.append(release.decode(buffer).tobytes())
    assert len(set(found)) == 1


def test_noise_is_in_the_sum_before_anyone_can_read_it() -> None:
    """The buffer is written once, and then has both."""
    made = grid()
    release = Release(made, streams.insecure(1, 0).noise)
    noise = release.noise(0, 0, 100, out=np.empty(100))
    written: list[np.ndarray] = []
    before = np.copyto
    out = np.zeros(100, WIDTH[made.wire])

    def copyto(target: np.ndarray, values: np.ndarray, **more: object) -> None:
        before(target, values, **more)  # type: ignore[arg-type]
        if np.shares_memory(target, out):
            written.append(out.copy())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "copyto", copyto)
        release.encode(np.full(100, 3.0), out.view(), noise)
    assert len(written) == 1
    assert np.array_equal(written[0], noise + 3.0 / made.spacing)


def test_nothing_is_allocated_for_each_parameter() -> None:
    length = 20 * CHUNK
    release = Release(grid(wire="int64"), streams.insecure(1, 0).noise)
    grad_sum, noise, out = np.ones(length), np.empty(length), np.zeros(length, np.int64)

    def step(event: int) -> None:
        release.noise(event, 0, length, out=noise)
        release.encode(grad_sum, out, noise)
        release.add_noise_(event, 0, out)
        release.decode(out, out=grad_sum)

    step(0)
    tracemalloc.start()
    step(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * length / 2


def test_floats_travel_without_a_grid_and_cannot_overflow() -> None:
    made = float_grid(noise="split", max_grad_norm=1.0, rho=0.0, noise_multiplier=2.0, world_size=4)
    release = Release(made, streams.insecure(1, 0).noise)
    out = np.zeros(5, np.float32)
    release.encode(np.array([0.1, -3.7, np.nan, np.inf, -1e300]), out)
    assert np.array_equal(out[:3], np.float32([0.1, -3.7, 0.0]))
    assert np.isfinite(out * np.float32(2**20)).all()
    assert np.array_equal(release.decode(out), out.astype(np.float64))
    noise = release.noise(0, 0, 1000, out=np.empty(1000))
    assert not np.array_equal(noise, np.rint(noise))


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
    release.encode(values.copy(), out)
    release.add_noise_(0, 0, out)  # none
    np.testing.assert_allclose(release.decode(out), values, atol=made.spacing)
