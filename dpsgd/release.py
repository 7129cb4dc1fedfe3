"""What is released: the clipped sum on an integer grid, with integer noise, on an integer wire.

The local sum is divided by the grid spacing g, NaN replaced by 0, clamped to the limit L, rounded,
and integer noise is added to it; ranks add integers. Clamping cannot increase a difference and
rounding adds at most g to it in each coordinate, so the sensitivity of the sum on the grid is

    Delta = C (1 + rho) + g sqrt(num_params)

and noise of standard deviation sigma Delta makes the effective noise multiplier exactly sigma:
epsilon is a function of q, sigma, steps and delta alone. g, L and the wire depend on public numbers
only. L leaves room for the largest noise that can be drawn on all ranks, so no data can overflow.

    noise     who adds what, when                                    the model has  ranks and links
    --------  -----------------------------------------------------  -------------  ---------------
    split     each rank N(0, sigma^2 Delta^2 / N), before the sum    sigma          one share
    sharded   the owner N(0, sigma^2 Delta^2), between the halves    sigma          nothing
    local     each rank N(0, tau^2 Delta^2), before the sum          tau sqrt(N)    tau, each

N is world_size; sigma is always the multiplier that the model has, so that `local` is `split` with
sigma = tau sqrt(N): only what is promised, and calibrated, differs.

Guarantees:
    two sums that are C (1 + rho) apart are at most Delta apart on the grid;
    the total noise has standard deviation sigma Delta (rounding adds up to g^2 / 12 a rank to the
        variance);
    split: each share is at least four grid steps;
    sharded: every element gets the noise of one rank alone, its owner's;
    local: what leaves a rank has the whole noise of its own multiplier tau;
    noise that is given to `encode` is in the sum before any other rank can read it;
    no data and no noise can overflow the wire;
    what is not a number becomes zero.

One rounded normal on sums that lie on the grid is post-processing of the Gaussian mechanism: it is
the sum with a normal added, rounded. That is all of `sharded`, and one message of `local`.

A sum of rounded normals of standard deviation s, as in `split` and in the model of `local`, is
within exp(-pi^2 s^2 / g^2) total variation, for each rank and coordinate, of a rounded normal, so
s >= 4 g is required: e^-150. The bound is Poisson summation: what tells a rounded sum from a
rounded normal are the aliases of the characteristic function. (Kairouz, Liu and Steinke, "The
distributed discrete Gaussian mechanism for federated learning with secure aggregation", 2021, treat
the same setting with other noise.)

The wire `float32` is for comparison: no grid, floating-point noise of the same size. None of the
above but the last two lines holds: the low bits of a floating-point sum depend on what was added,
and in which order, and can reveal it (Mironov, "On significance of the least significant bits for
differential privacy", 2012).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsgd.errors import ConfigError
from dpsgd.streams import MAX_GAUSSIAN, Stream

CAPACITY = {"int32": 2**31 - 1, "int64": 2**52}
"""Largest sum on each wire; 2^52 keeps every step exact in float64, too."""

FINEST_SPACING = 2.0**-30
MAX_EXTRA_NOISE = 1e-3
PLAIN_LIMIT = 2.0**20  # clamp of a plain (not private) sum, in units of the gradient
FLOAT_LIMIT = 2**100  # the same of one on the wire float32, which holds 2^27 of them
FLOATS = "float32"
CHUNK = 2**15
"""Elements worked on at once, so that they stay in the cache; even, for noise is drawn in pairs."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Public numbers of the release: `limit` in units of `spacing`, `noise_std` of one rank.

    `adders` is the number of ranks that add noise to one element. A spacing of 0 is no grid: sums
    and noise are not rounded.
    """

    spacing: float
    limit: int
    noise_std: float
    adders: int
    sensitivity: float
    wire: str

    @property
    def unit(self) -> float:
        """What a 1 on the wire stands for."""
        return self.spacing or 1.0

    @property
    def total_noise_std(self) -> float:
        """Standard deviation of the noise in the sum over all ranks, before it is rounded."""
        return self.noise_std * math.sqrt(self.adders)


def adders(noise: str, world_size: int) -> int:
    """How many ranks add noise to one element."""
    return 1 if noise == "sharded" else world_size


def private_grid(
    *,
    wire: str,
    noise: str,
    max_grad_norm: float,
    rho: float,
    noise_multiplier: float,
    num_params: int,
    expected_batch_size: float,
    world_size: int,
) -> Grid:
    """The finest grid that the wire can carry; `auto` is int32 if that adds under 0.1% of noise.

    `noise_multiplier` is the one that the model has. Raises ConfigError if the grid of the wire is
    too coarse for the noise.
    """
    bound = max_grad_norm * (1 + rho)
    # room for twice the expected batch of a rank, all gradients alike: clamping is never felt
    room = bound * (2 * expected_batch_size / world_size + 64)
    adding = adders(noise, world_size)
    steps_of_a_share = 0 if noise == "sharded" else 4  # one normal alone may be rounded as it is

    def grid(name: str) -> Grid | None:
        spacing = 2.0 ** math.floor(math.log2(max_grad_norm)) * FINEST_SPACING
        while spacing <= max_grad_norm:
            sensitivity = bound + spacing * math.sqrt(num_params)
            noise_std = noise_multiplier * sensitivity / math.sqrt(adding)
            limit = math.ceil(room / spacing)
            largest_noise = math.ceil(MAX_GAUSSIAN * noise_std / spacing) + 1
            if world_size * limit + adding * largest_noise <= CAPACITY[name]:
                return Grid(
                    spacing=spacing,
                    limit=limit,
                    noise_std=noise_std,
                    adders=adding,
                    sensitivity=sensitivity,
                    wire=name,
                )
            spacing *= 2
        return None

    for name in CAPACITY if wire == "auto" else (wire,):
        found = grid(name)
        if found is None or found.noise_std < steps_of_a_share * found.spacing:
            continue
        extra = found.sensitivity / bound - 1
        if wire != "auto" or name == "int64" or extra < MAX_EXTRA_NOISE:
            return found
    limit = "a quarter of one rank's noise" if steps_of_a_share else "max_grad_norm"
    raise ConfigError(
        f"wire {wire} cannot carry noise_multiplier {noise_multiplier:g} for {num_params} "
        f"parameters on {world_size} ranks: its grid would be coarser than {limit}; use wire "
        f"int64, a larger noise_multiplier or fewer ranks"
    )


def float_grid(
    *, noise: str, max_grad_norm: float, rho: float, noise_multiplier: float, world_size: int
) -> Grid:
    """No grid at all, for comparison: floating-point sums with noise of the usual size."""
    adding = adders(noise, world_size)
    sensitivity = max_grad_norm * (1 + rho)
    return Grid(
        spacing=0.0,
        limit=FLOAT_LIMIT,
        noise_std=noise_multiplier * sensitivity / math.sqrt(adding),
        adders=adding,
        sensitivity=sensitivity,
        wire=FLOATS,
    )


def plain_grid(world_size: int) -> Grid:
    """A fine grid without noise, so that plain SGD takes the same path and gives the same bits."""
    limit = CAPACITY["int64"] // world_size
    return Grid(
        spacing=2.0 ** math.ceil(math.log2(PLAIN_LIMIT / limit)),
        limit=limit,
        noise_std=0.0,
        adders=world_size,
        sensitivity=0.0,
        wire="int64",
    )


class Release:
    """Puts a local sum on the wire, with this rank's noise or without, and reads the global sum.

    With noise `split` and `local`:

        release.noise(event, 0, num_params, out=noise)
        release.encode(grad_sum, plan.buffer, noise)
        plan.run()
        release.decode(plan.buffer, expected_batch_size, out=grad_mean)

    With noise `sharded`:

        release.encode(grad_sum, plan.buffer)
        plan.reduce_scatter()
        release.add_noise_(event, plan.owned.start, plan.buffer[plan.owned])
        plan.all_gather()
        release.decode(plan.buffer, expected_batch_size, out=grad_mean)

    Here nothing is allocated by a call but what has the size of a few numbers.
    """

    def __init__(self, grid: Grid, stream: Stream) -> None:
        self.grid = grid
        self._stream = stream
        self._is_nan = np.empty(CHUNK, np.bool_)
        self._values = np.empty(CHUNK)

    def encode(
        self,
        grad_sum: NDArray[np.float64],
        out: NDArray[Any],
        noise: NDArray[np.float64] | None = None,
    ) -> None:
        """Write the rounded sum, plus `noise`, to `out`, all [num_params]. Overwrites `grad_sum`.

        In shared memory other ranks can read `out` at any time. So noise that is to hide the sum
        from them is given here: added to `out` afterwards, it would come too late.
        """
        grid = self.grid
        largest = grid.limit * grid.unit
        for begin in range(0, len(grad_sum), CHUNK):
            piece = slice(begin, begin + CHUNK)
            values = grad_sum[piece]
            if not np.vdot(values, values) <= (largest / 2) ** 2:  # else all are within the limit
                is_nan = np.isnan(values, out=self._is_nan[: len(values)])
                np.copyto(values, 0.0, where=is_nan)
                np.clip(values, -largest, largest, out=values)
            if grid.spacing:
                values *= 1 / grid.spacing  # powers of two: exact
                np.rint(values, out=values)
            if noise is not None:
                values += noise[piece]
            np.copyto(out[piece], values, casting="unsafe")  # integers within the capacity: exact

    def noise(
        self, event: int, first: int, count: int, out: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Write this rank's noise for elements [first, first + count) to `out`, which it returns.

        It is a pure function of key, event and element: a part has the noise that it has in the
        whole. On a grid it consists of integers.
        """
        values = out[:count]
        for begin in range(0, count, CHUNK):
            self._draw(event, first + begin, values[begin : begin + CHUNK])
        return values

    def add_noise_(self, event: int, first: int, part: NDArray[Any]) -> None:
        """Add this rank's noise to `part`, elements [first, first + len(part)) on the wire."""
        if not self.grid.noise_std:
            return
        for begin in range(0, len(part), CHUNK):
            values = part[begin : begin + CHUNK]
            drawn = self._values[: len(values)]
            self._draw(event, first + begin, drawn)
            np.add(values, drawn, out=values, casting="unsafe")  # exact, as in encode

    def decode(
        self, buffer: NDArray[Any], divisor: float = 1.0, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The global sum, divided by a public constant [num_params].

        In `out`, of any type of float, if it is given; else in float64.
        """
        if out is None:
            out = np.empty(len(buffer))
        factor = self.grid.unit / divisor
        for begin in range(0, len(buffer), CHUNK):
            part = buffer[begin : begin + CHUNK]
            values = self._values[: len(part)]
            np.copyto(values, part)
            values *= factor
            np.copyto(out[begin : begin + CHUNK], values, casting="same_kind")
        return out

    def _draw(self, event: int, first: int, values: NDArray[np.float64]) -> None:
        grid = self.grid
        if not grid.noise_std:
            values[:] = 0
            return
        deviation = grid.noise_std / grid.unit
        odd = first % 2  # the second of a pair, of which the first is another element's
        if odd:
            values[0] = self._stream.gaussians(event, 2, first=first - 1, deviation=deviation)[1]
        rest = values[odd:]
        self._stream.gaussians(event, len(rest), first=first + odd, deviation=deviation, out=rest)
        if grid.spacing:
            np.rint(values, out=values)
