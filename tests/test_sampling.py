"""Poisson sampling."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import stats

from dpsgd import sampling
from dpsgd.sampling import Bytes, Gaps, PoissonSampler, _digits, _power
from dpsgd.streams import BLOCK_BYTES, Stream

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
ADULT = 256 / 1.22e6  # a rate at which few rows are drawn


class Chosen(Stream):
    """The first 63 bits of each U are given; all further bytes of all of them are `further`."""

    def __init__(self, words: list[int], further: int = 0) -> None:
        super().__init__(KEY)
        self._words = np.array(words, np.int64)
        self._further = further

    def bytes(self, event: int, num_bytes: int, block: int = 0) -> np.ndarray:
        if block >= sampling.FIRST_BLOCK_OF_FURTHER_BITS:
            return np.full(num_bytes, self._further, np.uint8)
        first = 2 * (block - sampling.FIRST_BLOCK)
        return self._words[first : first + num_bytes // 8].view(np.uint8)


class Watched(Stream):
    """Remembers which blocks of which events were drawn."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.drawn: list[tuple[int, int, int]] = []

    def bytes(self, event: int, num_bytes: int, block: int = 0) -> np.ndarray:
        if num_bytes:
            self.drawn.append((event, block, block + -(-num_bytes // BLOCK_BYTES)))
        return super().bytes(event, num_bytes, block)


def gaps_of(words: list[int], rate: float, num_rows: int = 10**6, further: int = 0) -> list[int]:
    words = words + [2**62] * (len(words) % 2)
    made = Gaps(Chosen(words, further), rate, num_rows)
    return made._gaps(0, 0, len(words)).tolist()


# the gaps


@pytest.mark.parametrize("rate", [1 / 17, 3 / 128, 1 / 200])
def test_each_row_is_drawn_with_probability_exactly_q(rate: float) -> None:
    """Of 4,096 U spread evenly, exactly those below (1 - q)^k give a gap of at least k."""
    gaps = np.array(gaps_of([n * 2**51 + 2**50 for n in range(4096)], rate))
    kept, whole = (1 - Fraction(rate)).as_integer_ratio()
    top, bottom, expected = 1, 1, [4096]
    while expected[-1]:
        top, bottom = top * kept, bottom * whole
        expected.append(-((bottom - 8192 * top) // (2 * bottom)))  # n + 1/2 < 4096 (1 - q)^k
    assert [int((gaps >= k).sum()) for k in range(len(expected))] == expected


def test_a_u_next_to_a_power_of_1_minus_q_is_decided_by_its_further_bits() -> None:
    """For words around (1 - q)^k the quotient of logarithms is k to the last bit of float64."""
    rate = 3 / 4096
    for k in (1, 2, 100, 1000):
        power = (1 - Fraction(rate)) ** k
        nearest = math.floor(power * 2**63)
        words = list(range(nearest - 3, nearest + 4))
        for further, bits in ((0, 0), (255, 1 - Fraction(1, 2**1000)), (0x55, Fraction(1, 3))):
            gaps = gaps_of(words, rate, further=further)[:7]
            assert gaps == [
                k if (Fraction(word) + bits) / 2**63 < power else k - 1 for word in words
            ]
    assert gaps_of([nearest], rate, further=0)[0] != gaps_of([nearest], rate, further=255)[0]


@pytest.mark.parametrize("rate", [ADULT, 1e-9, 0.05])
def test_the_gap_is_the_floor_of_the_quotient_of_logarithms(rate: float) -> None:
    """Small U, large U and random ones, against 60 digits."""
    words = [1, 2, 3, 2**20, 2**40 - 1, 2**40, 2**62, 2**63 - 1, 2**63 - 2**9, 2**63 - 2**12]
    words += (Stream(KEY).bytes(0, 8 * 500).view("<u8") >> 1).astype(int).tolist()
    num_rows = 10**9
    end = Gaps(Chosen(words), rate, num_rows)._length
    with mpmath.workdps(60):
        log = mpmath.log1p(-mpmath.mpf(rate))
        expected = [min(int(mpmath.log(mpmath.mpf(w) / 2**63) / log), end) for w in words]
    assert gaps_of(words, rate, num_rows) == expected


@pytest.mark.parametrize(("rate", "num_rows"), [(ADULT, 1_200_000), (0.03, 500), (1e-6, 10**8)])
def test_the_exact_way_draws_the_same_rows_as_the_fast_way(
    rate: float, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "DRAWS_IN_A_WINDOW", 200)
    fast = Gaps(Stream(KEY), rate, num_rows)
    rows = [fast.rows(event).tolist() for event in range(5)]
    monkeypatch.setattr(sampling, "DOUBT", math.inf)
    exact = Gaps(Watched(KEY), rate, num_rows)
    assert rows == [exact.rows(event).tolist() for event in range(5)]
    assert sum(map(len, rows)) > 20


def test_the_quotient_is_never_wrong_by_more_than_doubt() -> None:
    """The logarithms of this machine, at edges and at random, in units of the mean gap."""
    bits = Stream(KEY).bytes(0, 8 * 2000).view("<u8") >> np.uint64(1)
    edges = np.array([2**40, 2**40 + 1, 2**53 + 1, 2**63 - 1, 2**63 - 2**10])
    bits = np.append(bits.astype(np.int64), edges)
    logs = np.log((bits.astype(np.float64) + 0.5) * 2.0**-63)
    for rate in (ADULT, 0.06, 1e-12):
        quotients = (logs * (1 / math.log1p(-rate))).tolist()
        with mpmath.workdps(60):
            inverse = 1 / mpmath.log1p(-mpmath.mpf(rate))
            for quotient, word in zip(quotients, bits.tolist(), strict=True):
                for end in (word, word + 1):
                    true = mpmath.log(mpmath.mpf(end) / 2**63) * inverse
                    assert abs(quotient - true) <= sampling.DOUBT * abs(inverse)


@pytest.mark.parametrize("rate", [0.05, ADULT, 2.0**-60, 5e-324])
def test_a_power_lies_between_its_two_bounds(rate: float) -> None:
    for exponent, bits in itertools.product((1, 2, 3, 77, 300), (127, 383)):
        low, high = _power(rate, exponent, bits)
        if rate > 1e-300:
            assert low <= (1 - Fraction(rate)) ** exponent * 2**bits <= high
        assert 0 <= high - low <= 2 * exponent + 2
        assert high <= 2**bits


# the batches


@pytest.mark.parametrize("rate", [ADULT, 0.04, 0.3])
def test_a_batch_is_a_pure_function_of_key_and_event_number(rate: float) -> None:
    """Whatever was asked for before, and whatever was done to earlier batches."""
    num_rows, events = 2000, 3000
    in_order = PoissonSampler(Stream(KEY), rate, num_rows)
    rows = [in_order.rows(event).tolist() for event in range(events)]
    other = PoissonSampler(Stream(KEY), rate, num_rows)
    for event in np.random.default_rng(0).permutation(events)[:100].tolist():
        drawn = other.rows(event)
        assert drawn.dtype == np.int64 and drawn.tolist() == rows[event]
        drawn[:] = -1
        assert other.rows(event).tolist() == rows[event]
    of_another_key = PoissonSampler(Stream(OTHER_KEY), rate, num_rows)
    assert rows != [of_another_key.rows(event).tolist() for event in range(events)]
    assert all(np.all(np.diff(batch) > 0) for batch in rows)
    assert all(batch[0] >= 0 and batch[-1] < num_rows for batch in rows if batch)


@pytest.mark.parametrize("at_once", [2, 16, 2**14])
def test_a_batch_does_not_depend_on_how_many_gaps_are_drawn_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [Gaps(Stream(KEY), 0.01, 1000).rows(event).tolist() for event in (0, 5, 999)]
    monkeypatch.setattr(sampling, "MAX_GAPS_AT_ONCE", at_once)
    assert [Gaps(Stream(KEY), 0.01, 1000).rows(e).tolist() for e in (0, 5, 999)] == expected


@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0, 1e-9])
def test_a_batch_may_be_empty(rate: float) -> None:
    assert PoissonSampler(Stream(KEY), rate, 0).rows(0).tolist() == []
    sizes = {len(PoissonSampler(Stream(KEY), rate, 1).rows(event)) for event in range(50)}
    assert sizes <= {0, 1} and (rate == 1 or 0 in sizes)


def test_no_part_of_the_stream_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the gaps, with every one of them in doubt, nor by the bytes."""
    monkeypatch.setattr(sampling, "DRAWS_IN_A_WINDOW", 100)
    monkeypatch.setattr(sampling, "MAX_GAPS_AT_ONCE", 32)
    monkeypatch.setattr(sampling, "DOUBT", math.inf)
    stream = Watched(KEY)

    class NeverDecided(Gaps):
        def _exact_gap(self, event: int, number: int, bits: int) -> int:
            for bits_drawn in range(63, 63 + 128 * 3, 128):  # three blocks of further bits
                block = sampling.FIRST_BLOCK_OF_FURTHER_BITS + (number << 16) + bits_drawn // 128
                self._stream.bytes(event, BLOCK_BYTES, block)
            return super()._exact_gap(event, number, bits)

    made, bytes_ = NeverDecided(stream, 0.02, 300), Bytes(stream, 0.1, 300)
    for event in range(100):
        made.rows(event), bytes_.rows(event)
    drawn = sorted(stream.drawn)
    assert len(drawn) > 1000
    for (event, _, end), (next_event, block, _) in itertools.pairwise(drawn):
        assert event < next_event or end <= block


def test_a_rate_of_one_draws_every_row() -> None:
    assert PoissonSampler(Stream(KEY), 1.0, 5).rows(0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rate", [1e-12, 2.0**-60, 1e-40, 1e-308, 5e-324])
@pytest.mark.parametrize("num_rows", [1, 1000, 10**9])
def test_a_tiny_rate_draws_nothing_without_warning_or_endless_loop(
    rate: float, num_rows: int
) -> None:
    sampler = PoissonSampler(Stream(KEY), rate, num_rows)
    assert sum(len(sampler.rows(event)) for event in (0, 1, 1023, 1024, 2**40)) == 0


@pytest.mark.parametrize("rate", [2.0**-100, 5e-324])
@pytest.mark.parametrize("further", [0, 255])
def test_a_tiny_rate_is_exact_for_a_u_next_to_one(rate: float, further: int) -> None:
    """1 - q is 1 in float64, and ln U is 0; only if U is 1 to the last bit is a row drawn soon."""
    end = Gaps(Stream(KEY), rate, 10**6)._length
    assert gaps_of([2**63 - 1], rate, further=further)[0] == (0 if further else end)
    assert gaps_of([0], rate, further=further)[0] == end


@pytest.mark.parametrize("further", [0, 255])
def test_a_u_of_zero_or_almost_zero_ends_the_window_or_does_not(further: int) -> None:
    gaps = gaps_of([0, 1], 0.05, num_rows=3, further=further)
    end = Gaps(Stream(KEY), 0.05, 3)._length
    expected = end if not further else math.floor(-63 * math.log(2) / math.log1p(-0.05))
    assert gaps[0] == expected
    assert gaps[1] == math.floor(-(62 if further else 63) * math.log(2) / math.log1p(-0.05))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        PoissonSampler(Stream(KEY), rate, 5)


# the bytes


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

    drawn = Bytes(AllPairs(KEY), float(rate), 65536).rows(0)
    assert drawn.tolist() == list(range(3 * 256 + 200 + 1))


# the distribution


def check_distribution(rate: float, num_rows: int, events: int) -> None:
    """Chi-square tests of what two keys draw; all together sound a false alarm below 2e-8."""

    def drawn(key: bytes) -> np.ndarray:
        sampler = PoissonSampler(Stream(key), rate, num_rows)
        chosen = np.zeros((events, num_rows), bool)
        for event in range(events):
            chosen[event, sampler.rows(event)] = True
        return chosen

    def check(statistic: float, degrees: int) -> None:
        assert stats.chi2.ppf(5e-10, degrees) < statistic < stats.chi2.isf(5e-10, degrees)

    def check_counts(counts: np.ndarray, trials: int, probability: float) -> None:
        mean = trials * probability
        assert mean >= 20
        check(((counts - mean) ** 2).sum() / (mean * (1 - probability)), len(counts))

    one, other = drawn(KEY), drawn(OTHER_KEY)
    check_counts(one.sum(axis=0), events, rate)  # each row
    check_counts((one & other).sum(axis=0), events, rate**2)  # two ranks
    check_counts((one[::2] & one[1::2]).sum(axis=0), events // 2, rate**2)  # two steps
    check_counts((one[:, ::2] & one[:, 1::2]).sum(axis=0), events, rate**2)  # two neighbours
    sizes = np.bincount(one.sum(axis=1), minlength=num_rows + 1)  # each step
    expected = events * stats.binom.pmf(np.arange(num_rows + 1), num_rows, rate)
    large = expected >= 20
    sizes = np.append(sizes[large], sizes[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    check(((sizes - expected) ** 2 / expected).sum(), len(sizes) - 1)


@pytest.mark.parametrize(("rate", "num_rows"), [(0.05, 60), (0.2, 60)])
def test_each_row_is_drawn_independently_of_all_others(rate: float, num_rows: int) -> None:
    check_distribution(rate, num_rows, 16_000)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("rate", "num_rows", "events"),
    [(0.1, 500, 40_000), (0.05, 500, 40_000), (0.02, 500, 100_000), (0.7, 500, 40_000)],
)
def test_each_row_is_drawn_independently_of_all_others_in_many_draws(
    rate: float, num_rows: int, events: int
) -> None:
    check_distribution(rate, num_rows, events)


@pytest.mark.statistical
def test_a_million_rows_are_drawn_alike() -> None:
    """Chi-square over 1,000 slices of the rows, and batch sizes: false alarm below 2e-9."""
    num_rows, events = 1_200_000, 40_000
    sampler = PoissonSampler(Stream(KEY), ADULT, num_rows)
    batches = [sampler.rows(event) for event in range(events)]
    slices = np.bincount(np.concatenate(batches) // 1200, minlength=1000)
    mean = events * 1200 * ADULT
    statistic = ((slices - mean) ** 2).sum() / (mean * (1 - ADULT))
    assert stats.chi2.ppf(5e-10, 1000) < statistic < stats.chi2.isf(5e-10, 1000)
    sizes = np.array([len(batch) for batch in batches])
    variance = num_rows * ADULT * (1 - ADULT)
    statistic = ((sizes - num_rows * ADULT) ** 2).sum() / variance
    assert stats.chi2.ppf(5e-10, events) < statistic < stats.chi2.isf(5e-10, events)
