"""Train or test, which shard, and where in it: decided for each unit alone, by a keyed hash.

    digest = SHA-256(salt in UTF-8 + NUL + bytes of the line, without its end and without a BOM)
    test   if digest[0:8] as a big-endian integer < test_fraction * 2**64
    shard  = digest[8:16] as a big-endian integer mod shards
    order  = digest[16:24] as a big-endian integer

Where a unit is a person or a household, the digest is that of its key, so that all its records lie
side by side; and the digest of the line gives the order within the unit.

Guarantees:
    removing a unit moves no other record;
    the split does not depend on the engine;
    salt, fraction and number of shards are public, never derived from the data.

Equal lines are distinct records that share a place. SHA-256, because every engine has it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from struct import Struct
from typing import TYPE_CHECKING, Any

from preprocess.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HASH_NAME = "sha256"
DEFAULT_SALT = "census split 1"
DEFAULT_TEST_FRACTION = 0.2
DEFAULT_SHARDS = 8
MAX_SHARDS = 65536
_WORDS = Struct(">QQQ")
SIDES = ("train", "test")  # 0 and 1 in rows


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


def digest_of(text: bytes, split: Split) -> bytes:
    """The keyed hash of a line, or of the key of a unit: 32 bytes."""
    return hashlib.sha256(split.key + text).digest()


def place(text: bytes, split: Split) -> tuple[int, int, int]:
    """Side (0 train, 1 test), shard and order of one record or unit: the definition."""
    first, second, order = _WORDS.unpack_from(digest_of(text, split))
    return int(first < split.threshold), second % split.shards, order


def places_of(words: NDArray[np.uint64], split: Split) -> tuple[NDArray[Any], ...]:
    """The same for many digests [n, 3 or more words of 64 bits] at once."""
    import numpy as np

    sides = (words[:, 0] < np.uint64(split.threshold)).astype(np.uint8)
    shards = (words[:, 1] % np.uint64(split.shards)).astype(np.uint16)
    return sides, shards, words[:, 2]
