"""Random streams and Poisson sampling."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dpsgd import streams
from dpsgd.sampling import PoissonSampler, _digits
from dpsgd.streams import MAX_GAUSSIAN, Stream

KEY = bytes(range(32))


def test_a_stream_is_aes_256_in_counter_mode_from_event_and_block() -> None:
    counter = (5).to_bytes(8, "big") + (7).to_bytes(8, "big")
    expected = Cipher(algorithms.AES(KEY), modes.CTR(counter)).encryptor().update(bytes(100))
    assert Stream(KEY).bytes(5, 100, block=7).tobytes() == expected


def test_blocks_continue_each_other() -> None:
    stream = Stream(KEY)
    assert stream.bytes(3, 64).tobytes()[32:] == stream.bytes(3, 32, block=2).tobytes()


def test_gaussians_are_a_pure_function_and_a_prefix_of_longer_draws() -> None:
    stream = Stream(KEY)
    long = stream.gaussians(9, 20_001)
    assert np.array_equal(long, Stream(KEY).gaussians(9, 20_001))
    assert np.array_equal(long[:9_001], stream.gaussians(9, 9_001))
    assert not np.array_equal(long, stream.gaussians(10, 20_001))


def test_each_pair_is_box_muller_of_one_aes_block() -> None:
    words = [int(w) for w in Stream(KEY).bytes(1, 32).view("<u8")]
    u = [(Fraction(w % 2**63) + Fraction(1, 2)) / 2**63 for w in words]
    radius = math.sqrt(-2 * math.log(u[2]))
    expected = [radius * math.cos(2 * math.pi * u[3]), radius * math.sin(2 * math.pi * u[3])]
    np.testing.assert_allclose(Stream(KEY).gaussians(1, 4)[2:], expected, rtol=1e-12)


def test_no_word_gives_an_infinite_or_larger_value_than_promised() -> None:
    class Extreme(Stream):
        def bytes(self, event: int, num_bytes: int, block: int = 0) -> np.ndarray:
            return np.full(num_bytes, event, np.uint8)

    for byte in (0, 255):
        values = Extreme(KEY).gaussians(byte, 2)
        assert (np.abs(values) <= MAX_GAUSSIAN).all()


def test_gaussians_have_the_moments_of_a_standard_normal() -> None:
    """Each bound is seven standard errors: false alarm below 1e-10."""
    values = Stream(KEY).gaussians(0, 1_000_000)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs((values**power).mean() - moment)
        assert error < 7 * math.sqrt(spread / len(values))


def test_fresh_keys_are_never_equal_and_never_shown() -> None:
    one, other = streams.fresh(), streams.fresh()
    drawn = [s.bytes(0, 32).tobytes() for s in (one.noise, one.sampling, other.noise)]
    assert len(set(drawn)) == 3
    assert "Stream(" not in repr(one) and "key" not in repr(one)


def test_insecure_streams_repeat_and_differ_between_ranks_and_purposes() -> None:
    def draw(seed: int, rank: int, purpose: str) -> bytes:
        return getattr(streams.insecure(seed, rank), purpose).bytes(0, 16).tobytes()

    assert draw(1, 0, "noise") == draw(1, 0, "noise")
    others = {draw(1, 0, "sampling"), draw(1, 1, "noise"), draw(2, 0, "noise")}
    assert len(others | {draw(1, 0, "noise")}) == 4


@pytest.mark.parametrize("rate", [0.1, 0.5, 1 / 3, 1e-5, 0.999, 2.0**-30])
def test_the_digits_are_exactly_the_rate(rate: float) -> None:
    value = sum(Fraction(digit, 256 ** (n + 1)) for n, digit in enumerate(_digits(rate)))
    assert value == Fraction(rate)


def test_a_row_is_drawn_exactly_if_its_bytes_are_below_the_rate() -> None:
    """Every value of the first two bytes, with a rate of three digits."""
    rate = Fraction(3 * 65536 + 200 * 256 + 77, 2**24)

    class AllPairs(Stream):
        """Row r draws byte r // 256; the tied rows then draw 0, 1, 2, ...; then always 76."""

        def bytes(self, event: int, num_bytes: int, block: int = 0) -> np.ndarray:
            numbers = np.arange(num_bytes)
            if block == 0:
                return (numbers // 256).astype(np.uint8)
            return (numbers if num_bytes == 256 else numbers * 0 + 76).astype(np.uint8)

    drawn = PoissonSampler(AllPairs(KEY), float(rate), 65536).rows(0)
    assert drawn.tolist() == list(range(3 * 256 + 200 + 1))


def test_a_rate_of_one_draws_every_row_and_no_rows_draw_none() -> None:
    assert PoissonSampler(Stream(KEY), 1.0, 5).rows(0).tolist() == [0, 1, 2, 3, 4]
    assert PoissonSampler(Stream(KEY), 0.5, 0).rows(0).tolist() == []


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        PoissonSampler(Stream(KEY), rate, 5)


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [0.1, 0.004, 0.7])
def test_batch_sizes_are_binomial_and_rows_are_independent(rate: float) -> None:
    """4,000 draws of 1,000 rows; every bound is at least six standard errors (below 1e-8)."""
    draws, rows = 4000, 1000
    sampler = PoissonSampler(Stream(KEY), rate, rows)
    chosen = np.zeros((draws, rows), bool)
    for event in range(draws):
        chosen[event, sampler.rows(event)] = True
    variance = rows * rate * (1 - rate)
    sizes = chosen.sum(axis=1)
    assert abs(sizes.mean() - rows * rate) < 6 * math.sqrt(variance / draws)
    assert abs(sizes.var() / variance - 1) < 6.5 * math.sqrt((2 + 1 / variance) / draws)
    per_row = chosen.mean(axis=0)
    assert np.abs(per_row - rate).max() < 7 * math.sqrt(rate * (1 - rate) / draws)
    pairs = (chosen[:, 1:] & chosen[:, :-1]).mean()
    assert abs(pairs - rate**2) < 8 * rate / math.sqrt(draws * rows)
