"""Ranges of activations: `mo.quant.Calibrator` against plain NumPy in float64."""

import math
import tracemalloc
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelopt_rs as mo
from modelopt_rs.quant.dyadic import DyadicHistogram
from modelopt_rs.quant.thresholds import entropy_threshold, mse_range, percentile_range

RNG = np.random.default_rng(11)
NORMAL = RNG.standard_normal(20_000).astype(np.float32)
DATA = {
    "normal": NORMAL,
    "relu": np.maximum(NORMAL, 0),
    "tails": (NORMAL**3).astype(np.float32),
    "outlier": np.r_[NORMAL, np.float32(500)],
    "far": (1000 + 0.25 * NORMAL).astype(np.float32),
    "below": (-np.abs(NORMAL) - 0.5).astype(np.float32),
    "gelu": (NORMAL * (1 + np.tanh(0.8 * (NORMAL + 0.045 * NORMAL**3))) / 2).astype(np.float32),
}
METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")
each_data = pytest.mark.parametrize("data", DATA.values(), ids=DATA)


def histogram_of(x: np.ndarray, bins: int = 4096) -> DyadicHistogram:
    histogram = DyadicHistogram(bins)
    histogram.update(x, float(x.min()), float(x.max()))
    return histogram


def calibrated(x: np.ndarray, *args: Any, **options: Any) -> mo.quant.Calibrator:
    calibrator = mo.quant.Calibrator(*args, **options)
    calibrator.update(x)
    return calibrator


def state(histogram: DyadicHistogram) -> tuple[Any, ...]:
    return histogram.counts.tobytes(), histogram.exponent, histogram.first, histogram.low, histogram.high


# ---- the histogram


@each_data
def test_the_histogram_counts_as_numpy_does_between_its_edges(data):
    histogram = histogram_of(data, 512)
    edges = histogram.edges()
    assert edges[0] <= data.min() < edges[1]
    assert data.max() < edges[-1]
    want = np.bincount(np.searchsorted(edges, data.astype(np.float64), side="right") - 1, minlength=512)
    np.testing.assert_array_equal(histogram.counts, want)


numbers = st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=12)


@given(st.lists(numbers, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_neither_the_order_nor_the_cut_of_batches_changes_a_bit(batches, random):
    whole = histogram_of(np.array([v for batch in batches for v in batch], np.float32), 256)
    random.shuffle(batches)
    parts = [histogram_of(np.array(batch, np.float32), 256) for batch in batches]
    joined = DyadicHistogram(256)
    for part in parts:
        joined.merge(part)
    running = DyadicHistogram(256)
    for batch in batches:
        running.update(np.array(batch, np.float32), min(batch), max(batch))
    assert state(joined) == state(whole) == state(running)


@given(numbers)
def test_the_finest_bins_are_used_that_the_range_allows(values):
    histogram = histogram_of(np.array(values, np.float32), 256)
    assert histogram.total == len(values)
    used = np.flatnonzero(histogram.counts)
    low, high = Fraction(histogram.low), Fraction(histogram.high)
    half = Fraction(2) ** (histogram.exponent - 1)
    too_many = high // half - low // half >= 256
    assert too_many or histogram.exponent <= max(-160, math.frexp(max(abs(low), abs(high)))[1] - 40)
    assert used[0] == 0


def test_numbers_of_every_size_are_told_apart_from_zero_when_merged():
    histogram = DyadicHistogram(256)
    for value in (1e-45, 1e-30, 1.0, 3e38):
        histogram.update(np.array([value], np.float32), float(np.float32(value)), float(np.float32(value)))
    assert histogram.total == 4
    assert histogram.counts[0] == 3


def test_magnitudes_fold_what_is_below_zero():
    x = np.array([-1.75, -0.25, 0.25, 1.25], np.float32)
    counts, width = histogram_of(x, 8).magnitudes()
    assert (counts.tolist(), width) == ([2, 0, 1, 1], 0.5)
    counts, width = histogram_of(np.array([1000, 1000.5], np.float32), 256).magnitudes()
    assert (counts.sum(), len(counts), width) == (2, 251, 4.0)
    assert DyadicHistogram(8).magnitudes()[0].tolist() == []


def test_a_constant_has_a_range_of_itself():
    for value in (0.0, -0.0, 1e-45, -3e38, 7.0):
        x = np.full(10, value, np.float32)
        for method in METHODS:
            low, high = calibrated(x, method).range()
            assert low <= float(x[0]) <= high or method == "mse"
            assert all(math.isfinite(v) for v in (low, high))


# ---- each method against the plain thing


@each_data
def test_minmax_is_all_of_it(data):
    assert calibrated(data).range() == (float(data.min()), float(data.max()))
    bound = float(np.abs(data).max())
    assert calibrated(data, symmetric=True).range() == (-bound, bound)


def test_moving_average_is_the_mean_of_the_batches_ends():
    batches = [NORMAL[:100], 3 * NORMAL[100:300], NORMAL[300:]]
    calibrator = mo.quant.Calibrator("moving_average")
    for batch in batches:
        calibrator.update(batch)
    want = np.mean([[b.min(), b.max()] for b in batches], axis=0, dtype=np.float64)
    np.testing.assert_allclose(calibrator.range(), want, rtol=1e-15)
    backwards = mo.quant.Calibrator("moving_average")
    for batch in batches[::-1]:
        backwards.merge(calibrated(batch, "moving_average"))
    assert backwards.range() == calibrator.range()


def test_momentum_follows_the_recurrence():
    batches = [NORMAL[:100], 3 * NORMAL[100:300], NORMAL[300:]]
    calibrator = mo.quant.Calibrator("moving_average", momentum=0.25)
    low = high = None
    for batch in batches:
        calibrator.update(batch)
        a, b = float(batch.min()), float(batch.max())
        low, high = (a, b) if low is None else (low + 0.25 * (a - low), high + 0.25 * (b - high))
    assert calibrator.range() == (low, high)


@each_data
@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 99.99, 100])
def test_percentiles_are_exact_within_a_bin_outwards(data, percentile):
    histogram, x = histogram_of(data), np.sort(data.astype(np.float64))
    width = 2.0**histogram.exponent
    cut = Fraction(str(100 - percentile if percentile != 99.9 else "0.1")) if percentile != 99.99 else Fraction("0.01")
    clipped = math.floor(cut / 200 * len(x))
    low, high = percentile_range(histogram, percentile, symmetric=False)
    assert 0 <= x[clipped] - low <= width
    assert 0 <= high - x[len(x) - 1 - clipped] <= width
    clipped, magnitudes = math.floor(cut / 100 * len(x)), np.sort(np.abs(x))
    low, high = percentile_range(histogram, percentile, symmetric=True)
    assert low == -high
    assert 0 <= high - magnitudes[len(x) - 1 - clipped] <= histogram.magnitudes()[1]


def test_percentile_100_is_minmax():
    for data in DATA.values():
        assert calibrated(data, "percentile", percentile=100).range() == calibrated(data).range()


def entropy_oracle(counts: np.ndarray, levels: int) -> np.ndarray:
    """The divergence for each number of kept bins from `levels` on, step by step as the slides have it."""
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    divergences = []
    for kept in range(levels, len(counts) + 1):
        p = counts[:kept].copy()
        p[-1] += counts[kept:].sum()
        q, some = np.zeros(kept), counts[:kept] > 0
        level = (np.arange(kept) * levels // kept)[some]
        sums, numbers = (np.bincount(level, weights, levels) for weights in (counts[:kept][some], None))
        q[some] = sums[level] / numbers[level]
        if p[-1] > 0 and q[-1] == 0:
            q[-1] = 1
        p, q = p / p.sum(), q / q.sum()
        some = p > 0
        divergences.append(float((p[some] * np.log(p[some] / q[some])).sum()))
    return np.array(divergences)


@each_data
@pytest.mark.parametrize("levels", [2, 8, 128, 256])
def test_entropy_loses_as_little_as_the_published_algorithm(data, levels):
    counts, _ = histogram_of(data, 700).magnitudes()
    got = entropy_threshold(counts, levels)
    if len(counts) <= levels:
        assert got == len(counts)
        return
    want = entropy_oracle(counts, levels)
    least = want.min()
    assert want[got - levels] <= least + 1.1e-9
    assert got >= levels + np.flatnonzero(want <= least + 1e-12)[-1]


def test_entropy_clips_a_far_outlier():
    low, high = calibrated(DATA["outlier"], "entropy", bins=16384).range()
    assert low == NORMAL.min()
    assert 2 < high < 20


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_entropy_of_positive_numbers_has_all_levels(bits):
    data = DATA["relu"]
    counts, width = histogram_of(data).magnitudes()
    want = min(width * entropy_threshold(counts, 2**bits), float(data.max()))
    assert calibrated(data, "entropy", bits=bits).range() == (0.0, want)
    half = min(width * entropy_threshold(counts, 2 ** (bits - 1)), float(data.max()))
    assert calibrated(data, "entropy", bits=bits, symmetric=True).range() == (-half, half)


def quantized_error(x: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> float:
    """Mean-squared error of a grid over [low, high], in float64."""
    x = x.astype(np.float64)
    levels = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    scale = max((high if symmetric else high - low) / levels, 1e-300)
    zero = levels if symmetric else np.rint(-low / scale)
    codes = np.clip(np.rint(x / scale), -zero, levels if symmetric else levels - zero)
    return float(np.square(x - codes * scale).mean())


@each_data
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_mse_symmetric_is_no_worse_than_brute_force_over_the_data(data, bits):
    low, high = mse_range(histogram_of(data), bits, symmetric=True)
    assert low == -high
    bound = float(np.abs(data).max())
    best = min(quantized_error(data, -t, t, bits, True) for t in bound * np.arange(1, 257) / 256)
    assert quantized_error(data, low, high, bits, True) <= best * 1.02


@each_data
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_mse_asymmetric_is_no_worse_than_brute_force_over_the_data(data, bits):
    low, high = mse_range(histogram_of(data), bits, symmetric=False)
    bottom, top = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
    assert bottom <= low <= 0 <= high <= top
    shares = np.arange(1, 13) / 12
    lows, highs = (bottom * shares if bottom else [0.0]), (top * shares if top else [0.0])
    best = min(quantized_error(data, a, b, bits, False) for a in lows for b in highs)
    assert quantized_error(data, low, high, bits, False) <= best * 1.05


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_the_optimum_of_the_histogram_itself(symmetric):
    """Each bin as many evenly spaced numbers: what the search minimizes, by brute force over every edge."""
    counts = np.maximum(200 * np.exp(-0.5 * (np.arange(64) / 12) ** 2), 1).astype(int)
    x = np.concatenate([k + (np.arange(25 * c) + 0.5) / (25 * c) for k, c in enumerate(counts)])
    weights = np.concatenate([np.full(25 * c, 1 / 25) for c in counts])
    histogram = DyadicHistogram(64)
    for k, c in enumerate(counts):
        histogram.update(np.full(c, k + 0.5), k + 0.5, k + 0.5)
    assert histogram.exponent == 0

    def error(t: float) -> float:
        levels = 3 if symmetric else 7
        scale = t / levels
        return float(weights @ np.square(x - np.clip(np.rint(x / scale), 0, levels) * scale))

    _, high = mse_range(histogram, 3, symmetric=symmetric)
    assert error(high) <= min(error(t) for t in np.arange(1, 257) / 4 if t <= 63.5) * 1.0005


# ---- parameters, state, errors


@each_data
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_params_of_minmax_are_those_of_quantize(data, bits, symmetric):
    scale, zero_point = calibrated(data, bits=bits, symmetric=symmetric).params()
    want = mo.quantize(data, bits=bits, scheme="symmetric" if symmetric else "asymmetric")
    assert scale == want.scale
    assert zero_point == want.zero_point


def test_a4_params_of_zeros_are_scale_1():
    for method in METHODS:
        assert calibrated(np.zeros(5, np.float32), method).params() == (1.0, 0)
        assert calibrated(np.zeros(5, np.float32), method, symmetric=True).params() == (1.0, None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_merged_calibrators_have_the_bits_of_one_in_any_order(method, symmetric):
    batches = [DATA["tails"][:5000], DATA["relu"], DATA["outlier"][-7:], DATA["below"]]
    one = mo.quant.Calibrator(method, symmetric=symmetric)
    for batch in batches:
        one.update(batch)
    merged = mo.quant.Calibrator(method, symmetric=symmetric)
    for batch in batches[::-1]:
        merged.merge(calibrated(batch, method, symmetric=symmetric))
    merged.merge(mo.quant.Calibrator(method, symmetric=symmetric))
    assert merged.range() == one.range()
    assert merged.params() == one.params()
    assert merged.batches == one.batches == 4


@pytest.mark.parametrize("method", METHODS)
def test_threads_shapes_and_dtypes_change_nothing(method):
    x = NORMAL[:4096].astype(ml_dtypes.bfloat16)
    want = calibrated(x.astype(np.float32), method).range()
    assert calibrated(x, method).range() == want
    for view in (x.astype(np.float32).reshape(64, 64).T, x.astype(np.float64)):
        assert calibrated(view, method).range() == want
    calibrator = mo.quant.Calibrator(method)
    calibrator.update(x.view(np.uint16), dtype="bf16", threads=1)
    assert calibrator.range() == want


def test_memory_does_not_grow_with_the_batches():
    calibrator = mo.quant.Calibrator("percentile")
    for part in NORMAL.reshape(20, -1):
        calibrator.update(part)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(200):
        calibrator.update(NORMAL[100 * (i % 100) : 100 * (i % 100) + 100] * np.float32(1 + i))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 40_000


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_batch_that_is_not_finite_is_refused_and_nothing_taken_in(method, bad):
    calibrator = calibrated(NORMAL, method)
    before = calibrator.range()
    x = 9 * NORMAL[:50]
    x[7] = x[9] = bad
    with pytest.raises(ValueError, match=r"^Calibrator: x must be finite, has 2 values that are not$"):
        calibrator.update(x)
    assert (calibrator.range(), calibrator.batches) == (before, 1)


def test_an_empty_batch_is_none():
    calibrator = mo.quant.Calibrator("mse")
    calibrator.update(np.zeros((0, 3), np.float32))
    assert calibrator.batches == 0
    with pytest.raises(
        TypeError, match=r"^Calibrator: x must have dtype float32, .*, got int64; ranges are of floats$"
    ):
        calibrator.update(np.zeros(0, np.int64))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, "Calibrator: x must be a NumPy array, got list"),
        (np.ones(2, np.int8), TypeError, "Calibrator: x must have dtype float32, .*, got int8; ranges are of floats"),
        (
            np.array([1.0, -1e300]),
            ValueError,
            r"Calibrator: x must be in the range of float32, goes from -1e\+300 to 1",
        ),
    ],
)
def test_what_can_not_be_taken_in_is_named(x, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        mo.quant.Calibrator().update(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "kl"}, ValueError, "method must be one of minmax, .*, mse, got 'kl'"),
        ({"bits": 3}, ValueError, "bits must be 8, 4 or 2, got 3"),
        ({"bits": 8.0}, TypeError, "bits must be an integer, got float"),
        ({"bins": True}, TypeError, "bins must be an integer, got bool"),
        ({"bins": 100}, ValueError, "bins must be from 256 to 16,384, got 100"),
        ({"percentile": 0}, ValueError, "percentile must be over 0 and at most 100, got 0"),
        ({"percentile": math.nan}, ValueError, "percentile must be over 0 and at most 100, got nan"),
        ({"method": "moving_average", "momentum": 0}, ValueError, "momentum must be over 0 and at most 1, got 0"),
        ({"momentum": 0.5}, ValueError, "momentum must come with method='moving_average', got method='minmax'"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=f"^Calibrator: {message}$"):
        mo.quant.Calibrator(**options)


def test_what_can_not_be_merged_is_named():
    calibrator = calibrated(NORMAL, "percentile")
    with pytest.raises(TypeError, match=r"^Calibrator: other must be a Calibrator, got dict$"):
        calibrator.merge({})
    message = "other must have the options method='percentile', .* percentile=99.99, bins=4096, got .* percentile=99.9,"
    with pytest.raises(ValueError, match=f"^Calibrator: {message}"):
        calibrator.merge(mo.quant.Calibrator("percentile", percentile=99.9))
    moving = calibrated(NORMAL, "moving_average", momentum=0.5)
    with pytest.raises(ValueError, match=r"^Calibrator: momentum must be None to merge; the order of batches"):
        moving.merge(moving)
    with pytest.raises(ValueError, match=r"^Calibrator: range must come after an update, got none$"):
        mo.quant.Calibrator().range()
