"""Random streams: a pure function of (secret key, purpose, event number, block).

AES-256 in counter mode. The 128-bit counter of a stream starts at (event number, block), 64 bits
each, so that nothing has to be stored to continue a stream and no part of it is used twice. Each
rank draws its keys, one for each purpose, from the operating system at every start. Keys are never
sent, never written and never shown.

Gaussians are made by Box and Muller's method in float64, each pair from one AES block of two words:

    v, w = the words                              64 random bits each, as signed integers
    u = |v + 1/2| 2^-63                           never zero; a small u keeps its bits
    x = (w + 1/2) 2^-63 in (-1, 1)
    radius = sqrt(-2 ln u),  angle = x pi/2, to the right; a negative v turns it to the left
    pair = radius (+-cos angle, sin angle)        v + 1/2 has a sign that |v + 1/2| does not tell

No cosine is called. a = sqrt(2) sin(angle / 2) is a polynomial of degree 13, because angle / 2 is
within pi/4, and cos angle = 1 - a^2, sin angle = a sqrt(2 - a^2). a errs by at most 5 roundings of
2^-53 and the polynomial by 2^-54, so a^2 errs by less than 12 roundings: the cosine is within 2^-49
of the true one, and the sine within 2^-49 of its own size. cos(2 pi u) of a rounded u is worse: up
to 25 roundings. The radius is as good as the logarithm of the machine. All arithmetic is done in
place in scratch that is allocated once, in pieces that stay in the cache.

That uniforms have 63 bits costs at most 2^-62 in total variation for each value, which `accounting`
subtracts from delta; the rounding of float64 logarithms, roots and products is not accounted for,
and every statement says so.

Guarantees:
    a stream is a pure function of key, event number and block, and no part of it is used twice;
    streams of different purposes, ranks and starts have different keys;
    Gaussians drawn piece by piece are the Gaussians drawn at once;
    no value is infinite or larger than MAX_GAUSSIAN.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

BLOCK_BYTES = 16
IMPRECISION_PER_GAUSSIAN = 2.0**-62
MAX_GAUSSIAN = 9.4193
"""No Gaussian is larger: the radius is at most sqrt(-2 ln 2^-64) = 9.41928, cosine and sine at most
1 + 2^-49, and the roundings of radius and product are below 2^-50."""

PAIRS_AT_ONCE = 8192  # 450 KiB of scratch: fewer cost more in calls, more leave the cache
SINE = (
    1.1107207345395915,
    -0.11419139843742838,
    0.003521949776821378,
    -5.172656398166321e-05,
    4.4316025652803233e-07,
    -2.484985466763365e-09,
    9.726056595901821e-12,
)
"""sqrt(2) sin(x pi/4) = x (SINE[0] + SINE[1] x^2 + ...) for |x| <= 1, within 2^-54 of its size: the
polynomial through the Chebyshev points of x^2, found with 60 digits."""


class Stream:
    """One keyed stream, for one thread at a time. `repr` does not show the key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"key must have 32 bytes, got {len(key)}")
        self.__encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._zeros = b""
        self._box_muller: _BoxMuller | None = None

    def bytes(self, event: int, num_bytes: int, block: int = 0) -> NDArray[np.uint8]:
        """`num_bytes` of event `event`, from 16-byte block `block` on."""
        self._seek(event, block)
        return np.frombuffer(self.__encryptor.update(self._zero_bytes(num_bytes)), np.uint8)

    def gaussians(
        self,
        event: int,
        count: int,
        *,
        first: int = 0,
        deviation: float = 1.0,
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """`count` independent normal values of event `event`, from number `first` on.

        Their mean is 0, their standard deviation `deviation`. `first` is even. They are written to
        `out`, a float64 vector, if there is one.
        """
        if first < 0 or first % 2:
            raise ValueError(f"first must be even and at least 0, got {first}")
        if not 0 < deviation**2 < math.inf:
            raise ValueError(f"deviation must have a square above 0 and finite, got {deviation}")
        if out is None:
            out = np.empty(count)
        elif out.shape != (count,) or out.dtype != np.float64:
            raise ValueError(f"out must be {count} float64, got {out.dtype} {out.shape}")
        if self._box_muller is None:
            self._box_muller = _BoxMuller(PAIRS_AT_ONCE)
        make = self._box_muller
        self._seek(event, first // 2)
        for start in range(0, count, 2 * PAIRS_AT_ONCE):
            piece = out[start : start + 2 * PAIRS_AT_ONCE]
            num_bytes = (len(piece) + 1) // 2 * BLOCK_BYTES
            self.__encryptor.update_into(self._zero_bytes(num_bytes), make.blocks)
            make.gaussians_(piece, deviation)
        return out

    def _seek(self, event: int, block: int) -> None:
        # five times faster than a new encryptor, which would schedule the key again
        self.__encryptor.reset_nonce(event.to_bytes(8, "big") + block.to_bytes(8, "big"))

    def _zero_bytes(self, num_bytes: int) -> memoryview:
        if len(self._zeros) < num_bytes:
            self._zeros = bytes(num_bytes)
        return memoryview(self._zeros)[:num_bytes]


class _BoxMuller:
    """Makes Gaussians of the AES blocks in `blocks`, up to `num_pairs` pairs at once."""

    def __init__(self, num_pairs: int) -> None:
        # update_into may ask for up to one block more than it writes
        self.blocks = bytearray((num_pairs + 1) * BLOCK_BYTES)
        words = np.frombuffer(self.blocks, "<i8").reshape(-1, 2)[:num_pairs]
        self._words = words[:, 0], words[:, 1]
        self._scratch = [np.empty(num_pairs) for _ in range(5)]

    def gaussians_(self, out: NDArray[np.float64], deviation: float = 1.0) -> None:
        """Fill `out`; the last value of a pair that does not fit is dropped."""
        num_pairs, num_whole = (len(out) + 1) // 2, len(out) // 2
        v, w = (array[:num_pairs] for array in self._words)
        signed, radius, x, square, cosine = (array[:num_pairs] for array in self._scratch)

        np.copyto(signed, v)
        np.add(signed, _HALF, signed)
        np.abs(signed, radius)
        np.multiply(radius, _ULP, radius)  # u
        np.log(radius, radius)
        np.multiply(radius, -2 * deviation**2, radius)
        np.sqrt(radius, radius)

        np.copyto(x, w)
        np.add(x, _HALF, x)  # _SINE has the factor 2^-63
        np.multiply(x, x, square)
        series = cosine
        np.multiply(square, _SINE[-1], series)
        for coefficient in _SINE[-2:0:-1]:
            np.add(series, coefficient, series)
            np.multiply(series, square, series)
        np.add(series, _SINE[0], series)
        half_sine = np.multiply(x, series, x)  # a of the module's docstring
        np.multiply(half_sine, half_sine, square)
        np.subtract(_ONE, square, cosine)
        np.copysign(cosine, signed, cosine)
        np.subtract(_TWO, square, square)
        np.sqrt(square, square)
        sine = np.multiply(half_sine, square, x)

        np.multiply(radius, cosine, out[0::2])
        np.multiply(radius[:num_whole], sine[:num_whole], out[1::2])


# arrays without dimension, because numpy converts a scalar anew in every call
_HALF, _ONE, _TWO = (np.array(value) for value in (0.5, 1.0, 2.0))
_ULP = np.array(2.0**-63)
_SINE = [np.array(value * 2.0 ** (-63 * (2 * n + 1))) for n, value in enumerate(SINE)]


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The streams of one rank."""

    sampling: Stream = field(repr=False)
    noise: Stream = field(repr=False)


def fresh() -> Streams:
    """Keys from the operating system."""
    return Streams(sampling=Stream(os.urandom(32)), noise=Stream(os.urandom(32)))


def insecure(seed: int, rank: int) -> Streams:
    """Repeatable keys for tests and benchmarks; whoever knows the seed knows the noise."""

    def key(purpose: str) -> bytes:
        return hashlib.sha256(f"insecure {purpose} {seed} {rank}".encode()).digest()

    return Streams(sampling=Stream(key("sampling")), noise=Stream(key("noise")))
