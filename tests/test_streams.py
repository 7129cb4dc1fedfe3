"""Random streams."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from dpsgd import streams
from dpsgd.streams import BLOCK_BYTES, MAX_GAUSSIAN, PAIRS_AT_ONCE, Stream, _BoxMuller

KEY = bytes(range(32))


def test_a_stream_is_aes_256_in_counter_mode_from_event_and_block() -> None:
    counter = (5).to_bytes(8, "big") + (7).to_bytes(8, "big")
    expected = Cipher(algorithms.AES(KEY), modes.CTR(counter)).encryptor().update(bytes(100))
    assert Stream(KEY).bytes(5, 100, block=7).tobytes() == expected


def test_a_stream_is_a_pure_function_and_its_blocks_continue_each_other() -> None:
    stream = Stream(KEY)
    stream.bytes(1, 7), stream.gaussians(2, 7)  # leave nothing behind
    assert stream.bytes(3, 64).tobytes() == Stream(KEY).bytes(3, 64).tobytes()
    assert stream.bytes(3, 64).tobytes()[32:] == stream.bytes(3, 32, block=2).tobytes()


def gaussians_of(words: list[tuple[int, int]]) -> np.ndarray:
    """The pairs that Box and Muller's method makes of these blocks of two words. [pair, 2]"""
    make = _BoxMuller(len(words))
    blocks = b"".join(word.to_bytes(8, "little") for pair in words for word in pair)
    make.blocks[: len(blocks)] = blocks
    values = np.empty(2 * len(words))
    make.gaussians_(values)
    return values.reshape(-1, 2)


def test_gaussians_are_a_pure_function_and_a_prefix_of_longer_draws() -> None:
    stream = Stream(KEY)
    long = stream.gaussians(9, 40_001)
    assert np.array_equal(long, Stream(KEY).gaussians(9, 40_001))
    assert np.array_equal(long[:9_001], stream.gaussians(9, 9_001))
    assert not np.array_equal(long, stream.gaussians(10, 40_001))


@pytest.mark.parametrize("size", [2, 34, 5_312, 2 * PAIRS_AT_ONCE, 39_998])
def test_gaussians_drawn_piece_by_piece_are_the_gaussians_drawn_at_once(size: int) -> None:
    stream = Stream(KEY)
    whole = stream.gaussians(3, 40_001)
    in_place = np.zeros(40_001)
    for first in reversed(range(0, 40_001 if size > 2 else 200, size)):
        piece = in_place[first : first + size]
        drawn = stream.gaussians(3, len(piece), first=first, out=piece)
        assert drawn is piece and np.array_equal(piece, whole[first : first + size])
    assert np.array_equal(stream.gaussians(3, 3, first=size), whole[size : size + 3])


def test_gaussians_of_a_deviation_are_standard_ones_times_it() -> None:
    standard = Stream(KEY).gaussians(3, 1001)
    for deviation in (0.001, 3.0, 2.0**30):
        found = Stream(KEY).gaussians(3, 1001, deviation=deviation)
        np.testing.assert_allclose(found, deviation * standard, rtol=2.0**-51)


def test_gaussians_may_be_written_where_they_do_not_lie_side_by_side() -> None:
    columns = np.zeros((1001, 3))
    Stream(KEY).gaussians(3, 1001, out=columns[:, 1])
    assert np.array_equal(columns[:, 1], Stream(KEY).gaussians(3, 1001))
    assert not columns[:, ::2].any()


def test_an_odd_first_a_deviation_of_nothing_and_an_out_that_does_not_fit_are_refused() -> None:
    stream = Stream(KEY)
    for first in (-2, 1):
        with pytest.raises(ValueError, match="first must be even"):
            stream.gaussians(0, 4, first=first)
    for deviation in (0.0, 1e-170, math.inf, math.nan):
        with pytest.raises(ValueError, match="deviation must have"):
            stream.gaussians(0, 4, deviation=deviation)
    for out in (np.empty(3), np.empty((2, 2)), np.empty(4, np.float32)):
        with pytest.raises(ValueError, match="out must be 4 float64"):
            stream.gaussians(0, 4, out=out)


def test_each_pair_is_box_muller_of_one_aes_block() -> None:
    v, w = (int(word) for word in Stream(KEY).bytes(1, 2 * BLOCK_BYTES).view("<u8")[2:])
    radius = math.sqrt(-2 * math.log(abs(middle(v)) / 2**63))
    angle = math.pi / 2 * (middle(w) / 2**63)
    expected = [radius * math.cos(angle) * (-1) ** (v >> 63), radius * math.sin(angle)]
    np.testing.assert_allclose(Stream(KEY).gaussians(1, 4)[2:], expected, rtol=1e-13)


def middle(word: int) -> Fraction:
    """A word as a signed number of 64 bits, and a half."""
    return (word + 2**63) % 2**64 - 2**63 + Fraction(1, 2)


def test_cosine_and_sine_are_as_good_as_promised() -> None:
    """At every power of two, around zero, a quarter and a half turn, and at random angles."""
    edges = [2**k + d for k in range(2, 63) for d in (-1, 0, 1)] + [0, 1, 2**63 - 1]
    angles = [sign + w for w in edges for sign in (0, 2**63)]
    angles += Stream(KEY).bytes(0, 8_000).view("<u8").tolist()
    for v in (2**40 + 12345, 2**64 - 2**40 - 12346):
        values = gaussians_of([(v, w) for w in angles])
        with mpmath.workdps(50):
            radius = mpmath.sqrt(-2 * mpmath.log(abs(exactly(v)) / 2**63))
            for w, (x, y) in zip(angles, values.tolist(), strict=True):
                angle = mpmath.pi / 2 * exactly(w) / 2**63
                cosine = mpmath.cos(angle) * (-1) ** (v >> 63)
                assert abs(x / radius - cosine) < 2.0**-49
                assert abs(y / radius / mpmath.sin(angle) - 1) < 2.0**-49


def exactly(word: int) -> mpmath.mpf:
    """The same as `middle`, for mpmath."""
    return mpmath.mpf(middle(word).numerator) / 2


def test_small_uniforms_keep_their_bits_and_none_is_zero() -> None:
    smallest = [0, 1, 2, 3, *(2**k + d for k in range(2, 52) for d in (-1, 0, 1))]
    below = [2**64 - 1 - v for v in smallest]  # -v - 1: as far from -1/2 as v, and to the left
    for words, sign in ((smallest, 1), (below, -1)):
        values = gaussians_of([(v, 0) for v in words])[:, 0] * sign
        with mpmath.workdps(50):
            for v, radius in zip(smallest, values.tolist(), strict=True):
                u = (v + mpmath.mpf(0.5)) / 2**63
                assert abs(radius / mpmath.sqrt(-2 * mpmath.log(u)) - 1) < 2.0**-50


def test_no_value_is_infinite_or_larger_than_max_gaussian() -> None:
    extremes = [0, 1, 2**62 - 1, 2**62, 2**63 - 1]
    extremes += [2**63 + word for word in extremes]
    values = gaussians_of([(v, w) for v in extremes for w in extremes])
    assert np.isfinite(values).all() and np.abs(values).max() <= MAX_GAUSSIAN
    assert np.abs(values).max() > 0.9999 * MAX_GAUSSIAN
    assert (values[[v in (2**63 - 1, 2**63) for v in extremes for _ in extremes]] == 0).all()
    assert math.sqrt(2 * 64 * math.log(2)) * (1 + 2.0**-48) < MAX_GAUSSIAN


def test_gaussians_have_the_moments_of_a_standard_normal() -> None:
    """Each bound is seven standard errors: false alarm below 1e-10."""
    values = Stream(KEY).gaussians(0, 1_000_000)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs((values**power).mean() - moment)
        assert error < 7 * math.sqrt(spread / len(values))


@pytest.mark.statistical
def test_gaussians_are_normal_and_pairs_are_independent() -> None:
    """Chi-square over 64 x 64 equally likely cells and in 2,000 slices: false alarm below 1e-9."""
    pairs = Stream(KEY).gaussians(7, 20_000_000).reshape(-1, 2)
    edges = stats.norm.ppf(np.arange(1, 64) / 64)
    cells = np.bincount(np.dot(np.searchsorted(edges, pairs), [64, 1]), minlength=64 * 64)
    expected = len(pairs) / 64**2
    assert ((cells - expected) ** 2).sum() / expected < stats.chi2.isf(5e-10, 64**2 - 1)
    fine = np.bincount((stats.norm.cdf(pairs.ravel()) * 2000).astype(int), minlength=2000)
    expected = pairs.size / 2000
    assert ((fine - expected) ** 2).sum() / expected < stats.chi2.isf(5e-10, 1999)


def test_streams_of_different_purposes_and_starts_have_different_keys_never_shown() -> None:
    one, other = streams.fresh(), streams.fresh()
    drawn = [s.bytes(0, 32).tobytes() for s in (one.noise, one.sampling, other.noise)]
    assert len(set(drawn)) == 3
    assert "Stream(" not in repr(one) and "key" not in repr(one)


def test_streams_of_a_seed_repeat_and_have_different_keys_for_ranks_and_purposes() -> None:
    def draw(seed: int, rank: int, purpose: str) -> bytes:
        return getattr(streams.insecure(seed, rank), purpose).bytes(0, 16).tobytes()

    assert draw(1, 0, "noise") == draw(1, 0, "noise")
    others = {draw(1, 0, "sampling"), draw(1, 1, "noise"), draw(2, 0, "noise")}
    assert len(others | {draw(1, 0, "noise")}) == 4
