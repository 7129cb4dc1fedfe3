"""Train or test, and which shard: decided for each record alone, by a keyed hash of its line.

    digest = SHA-256(salt in UTF-8 + NUL + bytes of the line, without its end and without a BOM)
    test   if digest[0:8] as a big-endian integer < test_fraction * 2**64
    shard  = digest[8:16] as a big-endian integer mod shards

Guarantees:
    removing a line moves no other record;
    the split does not depend on the engine;
    salt, fraction and number of shards are public, never derived from the data.

Equal lines are distinct records that share a place. SHA-256, because every engine has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

from preprocess.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HASH_NAME = "sha256"
DEFAULT_SALT = "census split 1"
DEFAULT_TEST_FRACTION = 0.2
DEFAULT_SHARDS = 8
MAX_SHARDS = 65536
SIDES = ("train", "test")  # 0 and 1 in `Cleaned.sides`


@dataclass(frozen=True, kw_only=True)
class Split:
    """How records are divided. All of it is public."""

    salt: str = DEFAULT_SALT
    test_fraction: float = DEFAULT_TEST_FRACTION
    shards: int = DEFAULT_SHARDS

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise UsageError(f"test_fraction must be in (0, 1), got {self.test_fraction}")
        if not 1 <= self.shards <= MAX_SHARDS:
            raise UsageError(f"shards must be in 1..{MAX_SHARDS}, got {self.shards}")
        try:
            self.salt.encode()
        except UnicodeEncodeError:
            raise UsageError(f"split_salt must be UTF-8 text, got {self.salt!r}") from None

    @cached_property
    def key(self) -> bytes:
        """What the hash reads before the line."""
        return self.salt.encode() + b"\0"

    @cached_property
    def threshold(self) -> int:
        """The smallest 64-bit integer that is not test. Exact: a float is a binary fraction."""
        return ceil(Fraction(self.test_fraction) * 2**64)


def place(line: bytes, split: Split) -> tuple[int, int]:
    """Side (0 train, 1 test) and shard of one record: the definition."""
    digest = hashlib.sha256(split.key + line).digest()
    side = int.from_bytes(digest[:8], "big") < split.threshold
    return int(side), int.from_bytes(digest[8:16], "big") % split.shards


def place_all(lines: Sequence[bytes], split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """The same for many lines at once: sides and shards."""
    import numpy as np

    key, sha256 = split.key, hashlib.sha256
    digests = b"".join([sha256(key + line).digest() for line in lines])
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 4)  # [lines, 4]
    sides = (words[:, 0] < np.uint64(split.threshold)).astype(np.uint8)
    return sides, (words[:, 1] % np.uint64(split.shards)).astype(np.uint16)
