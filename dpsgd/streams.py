"""Random streams: a pure function of (secret key, purpose, event number, block).

AES-256 in counter mode. The 128-bit counter of a stream starts at (event number, block), 64 bits
each, so that nothing has to be stored to continue a stream and no part of it is used twice. Each
rank draws its keys, one for each purpose, from the operating system at every start. Keys are never
sent, never written and never shown.

Gaussians are made by Box and Muller's method in float64, each pair from one AES block: one half
gives the radius, the other the angle. u = ((w & (2^63 - 1)) + 1/2) 2^-63 is never zero and keeps
the bits of small values. That uniforms have 63 bits costs at most 2^-62 in total variation for each
value, which `accounting` subtracts from delta; the rounding of float64 logarithms, roots and
cosines is not accounted for, and every statement says so.

Guarantees:
    a stream is a pure function of key, event number and block, and no part of it is used twice;
    streams of different purposes, ranks and starts have different keys;
    no value is infinite or larger than MAX_GAUSSIAN.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

BLOCK_BYTES = 16
IMPRECISION_PER_GAUSSIAN = 2.0**-62
MAX_GAUSSIAN = 9.42  # sqrt(-2 ln 2^-64): no Gaussian drawn here is larger
PAIRS_AT_ONCE = 4096  # working set of Box-Muller stays in the cache


class Stream:
    """One keyed stream. `repr` does not show the key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"key must have 32 bytes, got {len(key)}")
        self.__cipher = algorithms.AES256(key)
        self._zeros = b""

    def bytes(self, event: int, num_bytes: int, block: int = 0) -> NDArray[np.uint8]:
        """`num_bytes` of event `event`, from 16-byte block `block` on."""
        if len(self._zeros) < num_bytes:
            self._zeros = bytes(num_bytes)
        counter = event.to_bytes(8, "big") + block.to_bytes(8, "big")
        encryptor = Cipher(self.__cipher, modes.CTR(counter)).encryptor()
        return np.frombuffer(encryptor.update(memoryview(self._zeros)[:num_bytes]), np.uint8)

    def gaussians(self, event: int, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal values of event `event`."""
        num_pairs = (count + 1) // 2
        values = np.empty((num_pairs, 2))
        for first in range(0, num_pairs, PAIRS_AT_ONCE):
            size = min(PAIRS_AT_ONCE, num_pairs - first)
            words = self.bytes(event, size * BLOCK_BYTES, block=first).view("<u8").reshape(-1, 2)
            uniform = ((words & np.uint64(2**63 - 1)).astype(np.float64) + 0.5) * 2.0**-63
            radius = np.sqrt(-2 * np.log(uniform[:, 0]))
            angle = 2 * np.pi * uniform[:, 1]
            np.multiply(radius, np.cos(angle), out=values[first : first + size, 0])
            np.multiply(radius, np.sin(angle), out=values[first : first + size, 1])
        return values.reshape(-1)[:count]


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
