"""Train, test and shards."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from preprocess.errors import UsageError
from preprocess.split import DEFAULT_SALT, Split, digest_of, place, places_of

GOOD = b"13,1101,1,51,11,2200,0,0,0,1,0,1,0,0,0,0,1,13121"


def place_all(lines: list[bytes], split: Split) -> list[NDArray[np.generic]]:
    """Side, shard and order of every line, from their digests at once."""
    digests = b"".join(digest_of(line, split) for line in lines)
    words = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 4)
    return list(places_of(words, split))


def test_the_split_is_the_documented_hash():
    digest = hashlib.sha256(DEFAULT_SALT.encode() + b"\0" + GOOD).digest()
    first, second, third = (int.from_bytes(digest[at : at + 8], "big") for at in (0, 8, 16))
    assert place(GOOD, Split()) == (int(first < 0.2 * 2**64), second % 8, third)


def test_the_split_of_a_known_line_never_changes():
    assert DEFAULT_SALT == "census split 1"
    assert (
        hashlib.sha256(b"census split 1\0" + GOOD).hexdigest()[:48]
        == "35650200ee82212b9f442314a9bdf7a8166e467811c03968"
    )
    order = 0x166E467811C03968
    assert place(GOOD, Split()) == (0, 0, order)
    assert place(GOOD, Split(test_fraction=0.22)) == (1, 0, order)


def test_blanks_around_a_line_are_part_of_what_is_hashed():
    for line in (b" " + GOOD, GOOD + b"\t", GOOD + b"\r", b"\xff"):
        digest = hashlib.sha256(b"census split 1\0" + line).digest()
        assert place(line, Split())[1] == int.from_bytes(digest[8:16], "big") % 8


def test_removing_a_line_moves_no_other_row():
    lines = [GOOD + b"%d" % number for number in range(300)]
    fewer = lines[:100] + lines[101:]
    for all_of_them, others in zip(
        place_all(lines, Split()), place_all(fewer, Split()), strict=True
    ):
        assert others.tolist() == [*all_of_them[:100].tolist(), *all_of_them[101:].tolist()]


def test_many_lines_at_once_go_where_each_goes_alone():
    lines = [b"%d" % number for number in range(500)] + [b"", b" 1", b"1 ", b"\t1\r", b"\xff"]
    for split in (Split(), Split(salt="ä", test_fraction=2**-60), Split(shards=65536)):
        columns = [column.tolist() for column in place_all(lines, split)]
        assert list(zip(*columns, strict=True)) == [place(line, split) for line in lines]


def test_fractions_and_shards_come_out_as_asked():
    """20,000 lines; six standard deviations: a false alarm in 10^8 runs of other salts."""
    lines = [b"%d" % number for number in range(20_000)]
    for fraction in (0.01, 0.2, 0.9):
        sides, shards, _ = place_all(lines, Split(test_fraction=fraction, shards=4))
        deviation = (fraction * (1 - fraction) * 20_000) ** 0.5
        assert abs(sides.sum() - fraction * 20_000) < 6 * deviation
        for shard in range(4):
            assert abs((shards == shard).sum() - 5000) < 6 * (20_000 * 3 / 16) ** 0.5


def test_another_salt_gives_another_split():
    lines = [b"%d" % number for number in range(1000)]
    one, other = (place_all(lines, Split(salt=salt))[0] for salt in ("a", "b"))
    assert 200 < (one != other).sum() < 440


def test_the_threshold_is_exact():
    assert Split(test_fraction=0.5).threshold == 2**63
    assert Split(test_fraction=2**-64).threshold == 1
    assert Split(test_fraction=1 - 2**-53).threshold == 2**64 - 2**11
    assert Split(test_fraction=0.2).threshold == int(0.2 * 2**64)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float):
    with pytest.raises(UsageError, match=r"test_fraction must be in \(0, 1\), got"):
        Split(test_fraction=fraction)


def test_a_salt_that_is_not_text_and_no_shards_are_refused():
    with pytest.raises(UsageError, match="split_salt"):
        Split(salt="\udc80")
    with pytest.raises(UsageError, match="shards must be in"):
        Split(shards=0)


def test_the_key_of_a_unit_is_hashed_as_a_line_is():
    digest = hashlib.sha256(b"salt\x00household 7").digest()
    assert digest_of(b"household 7", Split(salt="salt")) == digest
    assert place(b"household 7", Split(salt="salt"))[2] == int.from_bytes(digest[16:24], "big")
