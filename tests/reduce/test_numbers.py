"""Every dtype of NumPy: integers and bools are reduced as NumPy reduces them; ends, places and truths of all dtypes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference as ref
from modelopt_rs import _core, reduce

INTEGERS = [np.dtype(code) for code in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")]
DTYPES = [*INTEGERS, *map(np.dtype, ref.DTYPES)]
NAMES = ["min", "max", "argmin", "argmax", "any", "all"]
SHAPES = [(3, 7, 41), (2, 1, 5), (1,), (70_001,), (300, 257), (5, 20_000)]
RNG = np.random.default_rng(14)


def sample(shape, dtype):
    """Numbers of the whole range, with ties, zeros, and the ends."""
    if dtype.kind == "b":
        return RNG.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        x = RNG.integers(info.min, info.max, shape, dtype, endpoint=True)
        few = RNG.integers(max(info.min, -2), 3, shape).astype(dtype)
        return np.where(RNG.random(shape) < 0.5, few, x)
    return RNG.standard_normal(shape).round(1).astype(dtype)


def same(got, want):
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))
    if got.dtype.kind in "iub":
        assert got.tobytes() == np.ascontiguousarray(want).tobytes()


def axes_of(x, name):
    single = [None, *range(-x.ndim, x.ndim)]
    return single if name.startswith("arg") or x.ndim < 3 else [*single, (0, 1), (0, 2), (2, 1), ()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_ends_places_and_truths_are_numpys_over_every_axis(name, dtype, isas):
    function, oracle = getattr(reduce, name), getattr(np, name)
    for shape in SHAPES:
        x = sample(shape, dtype)
        wide = x.astype(np.float32) if dtype == ref.BF16 else x
        for axis in axes_of(x, name):
            for keepdims in (False, True):
                want = np.asarray(oracle(wide, axis=axis, keepdims=keepdims))
                want = want.astype(dtype) if name in ("min", "max") else want
                for each in isas:
                    _core.set_isa(each)
                    same(function(x, axis=axis, keepdims=keepdims), want)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nan_zeros_and_infinities_are_numpys(name, dtype, isas):
    """NaN of both signs propagates and is the first place; both zeros are equal, and not true."""
    function, oracle = getattr(reduce, name), getattr(np, name)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0])
    for trial in range(100):
        x = special[RNG.integers(0, 4 + trial % 5, (6, 40))]
        for axis in (None, 0, 1):
            want = oracle(x, axis=axis)
            for each in isas:
                _core.set_isa(each)
                got = function(x.astype(dtype), axis=axis)
                np.testing.assert_array_equal(np.asarray(got).astype(np.float64), want)


def test_all_16_bit_words_in_any_order():
    words = np.arange(1 << 16, dtype=np.uint16)
    RNG.shuffle(words)
    for dtype in (np.uint16, np.int16, np.float16):
        x = words.view(dtype).reshape(64, 1024)
        for name in NAMES:
            for axis in (None, 0, 1):
                with np.errstate(invalid="ignore"):
                    same(getattr(reduce, name)(x, axis=axis), getattr(np, name)(x, axis=axis))
    bf16 = words.view(ref.BF16)
    numbers = bf16[np.isfinite(bf16.astype(np.float32))]
    for name in NAMES:
        got, want = getattr(reduce, name)(numbers), getattr(np, name)(numbers.astype(np.float32))
        assert float(got) == float(want)
        bits = getattr(reduce, name)(numbers.view(np.uint16), dtype="bf16")
        assert bits == (got.view(np.uint16) if name in ("min", "max") else got)


@given(
    st.sampled_from([*INTEGERS, np.dtype(np.float32), np.dtype(np.float64)]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=6))
    ),
    st.sampled_from(NAMES),
)
def test_any_numbers_are_reduced_as_numpy_does(x, name):
    for axis in (None, 0, -1):
        np.testing.assert_array_equal(getattr(reduce, name)(x, axis=axis), getattr(np, name)(x, axis=axis))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_empty_raises_or_has_numpys_value(name):
    function = getattr(reduce, name)
    for shape, axis in (((0,), None), ((3, 0), 1), ((0, 3), 0), ((2, 0, 4), None), ((0, 3), 1), ((0, 3, 2), 2)):
        x = np.empty(shape, np.int16)
        try:
            want = getattr(np, name)(x, axis=axis)
        except ValueError:
            with pytest.raises(ValueError, match=rf"^{name}: x must not be empty"):
                function(x, axis=axis)
        else:
            same(function(x, axis=axis), want)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_numpy_scalars_and_arrays_keep_their_strides(name):
    x = sample((6, 8), np.dtype(np.int32))
    got, want = getattr(reduce, name)(x), getattr(np, name)(x)
    assert type(got) is type(want)
    for view in (x[::-1], x.T, x[:, ::2], np.broadcast_to(x[:1], (5, 8))):
        same(getattr(reduce, name)(view, axis=0), getattr(np, name)(view, axis=0))


def test_a_place_has_one_axis():
    for name in ("argmin", "argmax"):
        with pytest.raises(TypeError, match=rf"^{name}: axis must be None or an integer, got \(0, 1\)"):
            getattr(reduce, name)(np.ones((2, 3)), axis=(0, 1))


@pytest.mark.parametrize("name", [*NAMES, "sum", "mean", "topk", "allclose"])
@pytest.mark.parametrize("dtype", ["c8", "S3", "O", "M8[s]", ">i4", ">f4"])
def test_what_is_no_number_is_named(name, dtype):
    x = np.zeros(4, dtype)
    more = {"topk": (2,), "allclose": (x,)}.get(name, ())
    with pytest.raises(TypeError, match=rf"^{name}: [xa] (must have dtype .*or bool, got|has big-endian dtype)"):
        getattr(reduce, name)(x, *more)


# -- reductions of integers


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_sums_of_integers_are_numpys_modulo_2_to_the_64(dtype, isa):
    for shape in SHAPES:
        x = sample(shape, dtype)
        for axis in axes_of(x, "sum"):
            for keepdims in (False, True):
                same(reduce.sum(x, axis=axis, keepdims=keepdims), np.sum(x, axis=axis, keepdims=keepdims))
                want = np.count_nonzero(x, axis=axis, keepdims=keepdims)
                same(reduce.count_nonzero(x, axis=axis, keepdims=keepdims), np.asarray(want, np.int64))
    full = np.full(100_003, np.iinfo(dtype).max if dtype.kind != "b" else True, dtype)
    same(reduce.sum(full), np.sum(full))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_means_and_moments_of_integers_are_those_of_their_exact_values(dtype, isa):
    for shape in ((3, 7, 41), (70_001,), (5, 20_000)):
        x = sample(shape, dtype)
        wide = x.astype(np.longdouble)
        for axis in (None, 0, -1):
            size = float(np.abs(wide).max())
            close = {"rtol": 1e-13, "atol": size * 1e-15}
            np.testing.assert_allclose(reduce.mean(x, axis=axis), wide.mean(axis=axis).astype(float), rtol=4e-16)
            if x.shape[axis or 0] > 1:
                want = wide.var(axis=axis).astype(float)
                np.testing.assert_allclose(reduce.var(x, axis=axis), want, rtol=1e-13, atol=size * size * 1e-15)
            for ord in (1, 2, math.inf):
                want = (
                    np.abs(wide).max(axis=axis)
                    if ord == math.inf
                    else (np.abs(wide) ** ord).sum(axis=axis) ** (1 / ord)
                )
                np.testing.assert_allclose(reduce.norm(x, axis=axis, ord=ord), want.astype(float), **close)
            low, high = reduce.minmax(x, axis=axis)
            same(low, x.min(axis=axis))
            same(high, x.max(axis=axis))
        assert reduce.count_nonfinite(x) == 0
        for f in (reduce.mean, reduce.var, reduce.norm):
            assert isinstance(f(x), np.float64)


def test_a_mean_of_64_bit_integers_is_rounded_once():
    x = np.array([2**62 + 1, 2**62 + 3, -5], np.int64)
    assert reduce.mean(x) == float(sum(map(int, x))) / 3
    y = np.full(3, 2**64 - 1, np.uint64)
    assert reduce.mean(y) == 3.0 * (2**64 - 1) / 3


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_quantiles_and_histograms_of_integers_are_those_of_float64(dtype):
    for n in (1, 2, 300, ref.CHUNK + 1):
        x = sample((n,), dtype)
        q = np.array([0.0, 0.25, 1 / 3, 0.5, 0.999, 1.0])
        np.testing.assert_array_equal(reduce.quantile(x, q), np.quantile(x.astype(np.float64), q))
        if n > 2:  # NumPy refuses bins of a range that has fewer numbers
            counts, edges = reduce.histogram(x, bins=17)
            want, want_edges = np.histogram(x.astype(np.float64), bins=17)
            np.testing.assert_array_equal(counts, want)
            np.testing.assert_array_equal(edges, want_edges)
        counts, _ = reduce.histogram(x, bins=5, range=(-1.5, 2.5))
        np.testing.assert_array_equal(counts, np.histogram(x.astype(np.float64), bins=5, range=(-1.5, 2.5))[0])


@pytest.mark.parametrize("name", ["sum", "mean", "var", "norm", "quantile", "topk", *NAMES])
def test_no_number_of_threads_changes_a_bit(name):
    for dtype in (np.uint8, np.int64, np.float32):
        x = sample((100, 2003), np.dtype(dtype))
        more = {"quantile": (0.3,), "topk": (9,)}.get(name, ())
        want = ref.bits_of(getattr(reduce, name)(x, *more, threads=1))
        for threads in (2, 3, 8):
            assert ref.bits_of(getattr(reduce, name)(x, *more, threads=threads)) == want


# -- topk


def stable(x, k, axis, largest):
    """The k first of a stable sort by value, NaN as the largest."""
    wide = x.astype(np.longdouble)
    if largest:
        order = np.argsort(np.where(np.isnan(wide), -np.inf, -wide), axis=axis, kind="stable")
        # NaN before infinity
        key = np.stack([np.where(np.isnan(wide), 0, 1), np.where(np.isnan(wide), 0, -wide)])
        order = np.lexsort((key[1], key[0]), axis=axis)
    else:
        order = np.argsort(wide, axis=axis, kind="stable")
    return np.take(order, np.arange(k), axis=axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("largest", [True, False])
def test_the_best_are_the_first_of_a_stable_sort(dtype, largest, isas):
    for shape, axis, ks in (
        ((300,), -1, (0, 1, 5, 299, 300)),
        ((7, 40), 0, (1, 7)),
        ((7, 40), 1, (3, 40)),
        ((2, 3, 50), -2, (2,)),
        ((70_001,), 0, (1, 10, 5000)),
    ):
        x = sample(shape, dtype)
        if dtype.kind not in "iub":
            x.reshape(-1)[::17] = np.nan
            x.reshape(-1)[::23] = -0.0
        for k in ks:
            want = stable(x, k, axis, largest)
            numbers = np.take_along_axis(x, want, axis).tobytes()
            for each in isas:
                _core.set_isa(each)
                values, places = reduce.topk(x, k, axis, largest=largest)
                assert places.dtype == np.int64
                np.testing.assert_array_equal(places, want)
                assert values.dtype == dtype
                assert values.tobytes() == numbers


@pytest.mark.slow
def test_the_best_values_are_torchs():
    torch = pytest.importorskip("torch", reason="the extra `interop` is not installed")
    x = RNG.standard_normal((5, 1000)).astype(np.float32)
    x[:, ::50] = np.nan
    for largest in (True, False):
        values, _ = reduce.topk(x, 40, largest=largest)
        np.testing.assert_array_equal(values, torch.topk(torch.from_numpy(x), 40, largest=largest).values.numpy())


def test_the_best_of_all_elements():
    x = sample((4, 5, 6), np.dtype(np.int32))
    values, places = reduce.topk(x, 7, None)
    np.testing.assert_array_equal(places, stable(x.reshape(-1), 7, 0, True))
    np.testing.assert_array_equal(values, x.reshape(-1)[places])
    assert reduce.topk(x, 7, None, keepdims=True)[0].shape == (1, 1, 7)
    assert reduce.topk(np.empty((3, 0)), 0)[1].shape == (3, 0)
    assert reduce.topk(np.empty((0, 3)), 2)[1].shape == (0, 2)


def test_topk_names_what_is_wrong():
    x = np.ones((2, 3))
    for args, error, text in (
        ((x, 4), ValueError, "k must be from 0 to the length of the axis, 3, got 4"),
        ((x, -1), ValueError, "k must be from 0 to the length of the axis, 3, got -1"),
        ((x, 1.5), TypeError, "k must be an integer, got 1.5"),
        ((x, 1, 2), ValueError, "axis must be within the 2 axes of x, got 2"),
        ((x, 1, (0, 1)), TypeError, r"axis must be None or an integer, got \(0, 1\)"),
        ((x, 1, "0"), TypeError, "axis must be None or an integer, got '0'"),
    ):
        with pytest.raises(error, match=f"^topk: {text}"):
            reduce.topk(*args)


# -- allclose


@given(
    hnp.arrays(np.float64, (3, 4), elements=st.floats(-2, 2, width=16) | st.sampled_from([np.nan, np.inf, -np.inf])),
    hnp.arrays(np.float64, (3, 4), elements=st.floats(-2, 2, width=16) | st.sampled_from([np.nan, np.inf, -np.inf])),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 2.0]),
)
def test_close_is_what_numpy_calls_close(a, b, equal_nan, tolerance):
    for x, y in ((a, b), (a, a), (a, a[:1]), (a, a[0, 0]), (a[:, :1], a)):
        with np.errstate(invalid="ignore"):
            want = np.allclose(x, y, rtol=tolerance / 4, atol=tolerance, equal_nan=equal_nan)
        got = reduce.allclose(x, np.asarray(y), rtol=tolerance / 4, atol=tolerance, equal_nan=equal_nan)
        assert got is want


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_of_any_two_dtypes_are_compared(dtype):
    x = sample((70_001,), dtype)
    for other in DTYPES:
        with np.errstate(invalid="ignore", over="ignore"):
            y = x.astype(other)
            want = np.allclose(x.astype(np.float64), y.astype(np.float64), rtol=1e-3)
        assert reduce.allclose(x, y, rtol=1e-3) is want
        assert reduce.allclose(x, y, rtol=1e-3, threads=1) is want


def test_one_pair_apart_is_seen_at_every_place():
    x = np.ones(2 * ref.CHUNK + 3, np.float32)
    for place in (0, 1, 1023, 1024, ref.CHUNK, x.size - 1):
        y = x.copy()
        y[place] = 1.001
        assert not reduce.allclose(x, y)
        assert reduce.allclose(x, y, atol=0.1)
    assert reduce.allclose(np.empty(0), np.empty(0))
    assert reduce.allclose(np.empty((0, 3)), np.ones(3)) is True


def test_shapes_that_do_not_broadcast_are_named():
    with pytest.raises(ValueError, match=r"^allclose: b must broadcast with shape \(3,\), got shape \(2,\)"):
        reduce.allclose(np.ones(3), np.ones(2))
