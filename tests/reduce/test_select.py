"""quantile, kth_magnitude and histogram: exact, so equal to NumPy and to the oracles bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference as ref
from modelopt_rs import reduce

LENGTHS = [1, 2, 3, 63, 64, 65, 257, ref.CHUNK - 1, ref.CHUNK + 1, 2 * ref.CHUNK + 1]
finite = hnp.arrays(
    np.float64,
    hnp.array_shapes(max_dims=3, max_side=9),
    elements=st.floats(-1e300, 1e300, allow_subnormal=True),
)


def with_ties(n, dtype):
    x = ref.wild(n, dtype)
    x[: n // 2] = x[n // 2 : n // 2 + n // 2]  # each of these values twice
    return x


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
def test_kth_magnitude_equals_partition(n, dtype):
    x = with_ties(n, dtype)
    order = np.sort(np.abs(x).astype(np.float64))
    for k in sorted({0, 1 % n, n // 3, n // 2, n - 1}):
        got = reduce.kth_magnitude(x, k)
        assert np.asarray(got).dtype == dtype
        assert float(got) == order[k]
        assert not np.signbit(got)


def test_kth_magnitude_equals_the_oracle_for_each_k():
    x = with_ties(200, np.float32)
    for k in range(x.size):
        assert reduce.kth_magnitude(x, k) == ref.kth_magnitude(x, k)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=st.floats(width=32)),
    st.integers(0),
)
def test_kth_magnitude_puts_nan_last(x, k):
    k %= x.size
    np.testing.assert_array_equal(reduce.kth_magnitude(x, k), np.partition(np.abs(x).ravel(), k)[k])


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
def test_a7_kth_magnitude_of_all_16_bit_floats(dtype):
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    magnitudes = np.concatenate([ref.finite_values(np.dtype(dtype)).astype(np.float64), [-np.inf, np.inf]])
    order = np.sort(np.abs(np.concatenate([magnitudes, [0.0]])))  # both zeros
    for k in [*range(0, order.size, 997), order.size - 1]:
        assert float(reduce.kth_magnitude(x, k)) == order[k]
    for k in (order.size, x.size - 1):
        with np.errstate(invalid="ignore"):  # signalling NaNs
            assert np.isnan(reduce.kth_magnitude(x, k))


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
def test_quantile_equals_numpy(n, dtype):
    x = with_ties(n, dtype)
    q = np.array([[0.0, 1.0, 0.5], [0.25, 1 / 3, 0.999]])
    got = reduce.quantile(x, q)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, np.quantile(x.astype(np.float64), q))


@given(finite, st.floats(0, 1))
def test_quantile_equals_numpy_for_any_float(x, q):
    with np.errstate(over="ignore", invalid="ignore"):
        want = np.quantile(x, q)
    got = reduce.quantile(x, q)
    assert isinstance(got, np.float64)
    np.testing.assert_array_equal(got, want)


@given(finite, st.floats(0, 1))
def test_quantile_lies_within_the_data(x, q):
    assert x.min() <= reduce.quantile(x, q) <= x.max()


def test_quantile_agrees_with_the_oracle():
    x = ref.wild(1001, np.float32)
    for q in np.linspace(0, 1, 37):
        np.testing.assert_allclose(reduce.quantile(x, q), ref.quantile(x, q), rtol=1e-13)


def test_quantile_takes_scalars_and_lists_of_q():
    x = np.arange(5, dtype=np.float32)
    assert reduce.quantile(x, 0.5) == 2.0
    assert reduce.quantile(x, 1) == 4.0
    assert reduce.quantile(x, [0.25, 0.75]).tolist() == [1.0, 3.0]
    assert reduce.quantile(x, np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_a3_quantile_of_nan_is_nan_at_every_position(dtype, isa):
    x = ref.wild(131, dtype)
    for place in range(x.size):
        y = x.copy()
        y[place] = np.nan
        assert np.isnan(reduce.quantile(y, [0.0, 0.5, 1.0])).all()


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, *LENGTHS])
def test_histogram_equals_numpy(n, dtype):
    x = ref.wild(n, dtype)
    wide = x.astype(np.float64)
    for bins, bounds in (
        (1, None),
        (37, None),
        (2048, None),
        (10, (-1, 1)),
        (7, (0.25, 0.25)),
        (5, (1e3, 1e9)),
    ):
        counts, edges = reduce.histogram(x, bins, bounds)
        want_counts, want_edges = np.histogram(wide, bins, bounds)
        assert (counts.dtype, edges.dtype) == (np.int64, np.float64)
        np.testing.assert_array_equal(edges, want_edges)
        np.testing.assert_array_equal(counts, want_counts)


@given(
    hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=30), elements=st.floats(-1e9, 1e9)),
    st.integers(1, 50),
)
def test_histogram_equals_numpy_and_the_oracle_for_any_float(x, bins):
    try:
        counts, edges = np.histogram(x, bins)
    except ValueError:  # "Too many bins for data range"
        return
    got, got_edges = reduce.histogram(x, bins)
    np.testing.assert_array_equal(got_edges, edges)
    np.testing.assert_array_equal(got, counts)
    np.testing.assert_array_equal(got, ref.histogram(x, bins, None)[0])


@given(
    st.integers(1, 300),
    st.floats(-100, 100),
    st.floats(0.001, 100),
    st.sampled_from([np.float32, np.float64]),
)
def test_histogram_puts_values_on_an_edge_into_the_bin_above(bins, low, width, dtype):
    edges = np.linspace(low, low + width, bins + 1)
    x = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)]).astype(dtype)
    got, _ = reduce.histogram(x, bins, (low, low + width))
    np.testing.assert_array_equal(got, np.histogram(x.astype(np.float64), bins, (low, low + width))[0])


def test_histogram_has_2048_bins_by_default():
    assert reduce.histogram(np.arange(9, dtype=np.float32))[0].shape == (2048,)


def test_a2_histogram_with_a_range_does_not_count_nan_or_what_is_outside():
    x = np.array([np.nan, -np.inf, np.inf, -2, 0, 0.5, 1, 2], np.float32)
    assert reduce.histogram(x, 2, (0, 1))[0].tolist() == [1, 2]


X = np.arange(6, dtype=np.float32)
ERRORS = {
    "kth: k = n": (lambda: reduce.kth_magnitude(X, 6), ValueError, r"^kth_magnitude: k must be .*, got 6"),
    "kth: k enormous": (lambda: reduce.kth_magnitude(X, 2**80), ValueError, r"^kth_magnitude: k must be "),
    "kth: k = -7": (lambda: reduce.kth_magnitude(X, -7), ValueError, r"^kth_magnitude: k must be .*, got -7"),
    "kth: k a float": (lambda: reduce.kth_magnitude(X, 1.0), TypeError, r"^kth_magnitude: k must be an int"),
    "kth: empty": (lambda: reduce.kth_magnitude(X[:0], 0), ValueError, r"^kth_magnitude: "),
    "quantile: q > 1": (lambda: reduce.quantile(X, 1.5), ValueError, r"^quantile: q must be .*, got 1.5"),
    "quantile: q < 0": (
        lambda: reduce.quantile(X, [0.5, -0.1]),
        ValueError,
        r"^quantile: q.* must be .*, got -0.1",
    ),
    "quantile: q NaN": (
        lambda: reduce.quantile(X, np.nan),
        ValueError,
        r"^quantile: q must be .*, got NaN|nan",
    ),
    "quantile: q text": (lambda: reduce.quantile(X, "half"), (TypeError, ValueError), r"q"),
    "quantile: empty": (lambda: reduce.quantile(X[:0], 0.5), ValueError, r"^quantile: x must not be empty"),
    "histogram: bins 0": (lambda: reduce.histogram(X, 0), ValueError, r"^histogram: bins must be .*, got 0"),
    "histogram: bins < 0": (
        lambda: reduce.histogram(X, -1),
        ValueError,
        r"^histogram: bins must be .*, got -1",
    ),
    "histogram: bins enormous": (lambda: reduce.histogram(X, 2**80), ValueError, r"^histogram: bins"),
    "histogram: bins a float": (lambda: reduce.histogram(X, 2.0), TypeError, r"^histogram: bins"),
    "histogram: range turned": (
        lambda: reduce.histogram(X, 2, (1, 0)),
        ValueError,
        r"^histogram: range must (be|have) ",
    ),
    "histogram: range NaN": (
        lambda: reduce.histogram(X, 2, (np.nan, 1)),
        ValueError,
        r"^histogram: range must (be|have) ",
    ),
    "histogram: range inf": (
        lambda: reduce.histogram(X, 2, (0, np.inf)),
        ValueError,
        r"^histogram: range must (be|have) ",
    ),
    "histogram: range of 3": (lambda: reduce.histogram(X, 2, (0, 1, 2)), (TypeError, ValueError), r"range"),
    "histogram: NaN": (
        lambda: reduce.histogram(ref.poisoned(X), 2),
        ValueError,
        r"^histogram: .* must be finite",
    ),
    "histogram: inf": (
        lambda: reduce.histogram(np.array([1, np.inf]), 2),
        ValueError,
        r"^histogram: .* must be finite",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_argument_of_a_selection_is_named(case):
    call, error, match = ERRORS[case]
    with pytest.raises(error, match=match):
        call()
