"""What is released: the clipped sum on an integer grid, with integer noise, on an integer wire.

The local sum is divided by the grid spacing g, NaN replaced by 0, clamped to the limit L, rounded,
and integer noise is added to it; ranks add integers. Clamping cannot increase a difference and
rounding adds at most g to it in each coordinate, so the sensitivity of the sum on the grid is

    Delta = C (1 + rho) + g sqrt(num_params)

and noise of standard deviation sigma Delta makes the effective noise multiplier exactly sigma:
epsilon is a function of q, sigma, steps and delta alone. g, L and the wire depend on public numbers
only. L leaves room for the largest noise that can be drawn on all ranks, so no data can overflow.

Guarantees:
    two sums that are C (1 + rho) apart are at most Delta apart on the grid;
    the total noise has standard deviation sigma Delta;
    no data and no noise can overflow the wire;
    what is not a number becomes zero.

`split` noise: each rank adds N(0, sigma^2 Delta^2 / world_size), rounded to the grid, before the
collective. A sum of rounded normals of standard deviation s is within exp(-pi^2 s^2 / g^2) total
variation, for each rank and coordinate, of a rounded normal, so s >= 4 g is required: e^-150.
The bound is Poisson summation: what tells a rounded sum from a rounded normal are the aliases of
the characteristic function. (Kairouz, Liu and Steinke, "The distributed discrete Gaussian mechanism
for federated learning with secure aggregation", 2021, treat the same setting with other noise.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsgd.errors import ConfigError
from dpsgd.streams import MAX_GAUSSIAN, Stream

CAPACITY = {"int32": 2**31 - 1, "int64": 2**52}
"""Largest sum on each wire; 2^52 keeps every step exact in float64, too."""

FINEST_SPACING = 2.0**-30
MAX_EXTRA_NOISE = 1e-3
PLAIN_LIMIT = 2.0**20  # clamp of a plain (not private) sum, in units of the gradient


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Public numbers of the release: `limit` in units of `spacing`, `noise_std` of one rank."""

    spacing: float
    limit: int
    noise_std: float
    sensitivity: float
    wire: str


def private_grid(
    *,
    wire: str,
    max_grad_norm: float,
    rho: float,
    noise_multiplier: float,
    num_params: int,
    expected_batch_size: float,
    world_size: int,
) -> Grid:
    """The finest grid that the wire can carry; `auto` is int32 if that adds under 0.1% of noise.

    Raises ConfigError if the grid of the wire is too coarse for the noise.
    """
    bound = max_grad_norm * (1 + rho)
    # room for twice the expected batch of a rank, all gradients alike: clamping is never felt
    room = bound * (2 * expected_batch_size / world_size + 64)

    def grid(name: str) -> Grid | None:
        spacing = 2.0 ** math.floor(math.log2(max_grad_norm)) * FINEST_SPACING
        while spacing <= max_grad_norm:
            sensitivity = bound + spacing * math.sqrt(num_params)
            noise_std = noise_multiplier * sensitivity / math.sqrt(world_size)
            limit = math.ceil(room / spacing)
            largest = limit + math.ceil(MAX_GAUSSIAN * noise_std / spacing) + 1
            if world_size * largest <= CAPACITY[name]:
                return Grid(
                    spacing=spacing,
                    limit=limit,
                    noise_std=noise_std,
                    sensitivity=sensitivity,
                    wire=name,
                )
            spacing *= 2
        return None

    for name in CAPACITY if wire == "auto" else (wire,):
        found = grid(name)
        if found is None or found.noise_std < 4 * found.spacing:
            continue
        extra = found.sensitivity / bound - 1
        if wire != "auto" or name == "int64" or extra < MAX_EXTRA_NOISE:
            return found
    raise ConfigError(
        f"wire {wire} cannot carry noise_multiplier {noise_multiplier:g} for {num_params} "
        f"parameters on {world_size} ranks: its grid would be coarser than a quarter of one rank's "
        f"noise; use wire int64, a larger noise_multiplier or fewer ranks"
    )


def plain_grid(world_size: int) -> Grid:
    """A fine grid without noise, so that plain SGD takes the same path and gives the same bits."""
    limit = CAPACITY["int64"] // world_size
    spacing = 2.0 ** math.ceil(math.log2(PLAIN_LIMIT / limit))
    return Grid(spacing=spacing, limit=limit, noise_std=0.0, sensitivity=0.0, wire="int64")


class Release:
    """Puts a local sum with this rank's noise on the wire, and reads the global sum from it."""

    def __init__(self, grid: Grid, stream: Stream) -> None:
        self.grid = grid
        self._stream = stream

    def encode(
        self, grad_sum: NDArray[np.float64], event: int, out: NDArray[np.signedinteger]
    ) -> None:
        """Write the rounded sum plus noise to `out`, both [num_params]. Overwrites `grad_sum`."""
        grid = self.grid
        largest = grid.limit * grid.spacing
        grad_sum[np.isnan(grad_sum)] = 0
        np.clip(grad_sum, -largest, largest, out=grad_sum)
        np.rint(grad_sum / grid.spacing, out=grad_sum)  # a power of two: the division is exact
        if grid.noise_std:
            noise = self._stream.gaussians(event, len(grad_sum))
            noise *= grid.noise_std / grid.spacing
            grad_sum += np.rint(noise, out=noise)
        np.copyto(out, grad_sum, casting="unsafe")  # integers within the capacity: exact

    def decode(self, buffer: NDArray[np.signedinteger]) -> NDArray[np.float64]:
        """The global sum [num_params]."""
        return buffer * np.float64(self.grid.spacing)
