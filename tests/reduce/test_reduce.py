"""Reductions: against the oracles over every axis, then the laws of NaN, of emptiness and of large sums."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import modelopt_rs as mo
import reference as ref
from modelopt_rs import reduce

# function, oracle of one cell, keyword arguments, what comes back: x's dtype, float64 or int64
ORACLES = {
    "absmax": (reduce.absmax, ref.absmax, {}, "x"),
    "sum": (reduce.sum, ref.total, {}, "f8"),
    "mean": (reduce.mean, ref.mean, {}, "f8"),
    "var": (reduce.var, ref.var, {}, "f8"),
    "var-ddof": (reduce.var, lambda v: ref.var(v, 1), {"ddof": 1}, "f8"),
    "norm1": (reduce.norm, lambda v: ref.norm(v, 1), {"ord": 1}, "f8"),
    "norm2": (reduce.norm, ref.norm, {}, "f8"),
    "norminf": (reduce.norm, lambda v: ref.norm(v, math.inf), {"ord": math.inf}, "f8"),
    "count_nonzero": (reduce.count_nonzero, ref.count_nonzero, {}, "i8"),
    "count_nonfinite": (reduce.count_nonfinite, ref.count_nonfinite, {}, "i8"),
    "min": (lambda x, **kw: reduce.minmax(x, **kw)[0], lambda v: ref.minmax(v)[0], {}, "x"),
    "max": (lambda x, **kw: reduce.minmax(x, **kw)[1], lambda v: ref.minmax(v)[1], {}, "x"),
    "nanmin": (lambda x, **kw: reduce.nanminmax(x, **kw)[0], lambda v: ref.nanminmax(v)[0], {}, "x"),
    "nanmax": (lambda x, **kw: reduce.nanminmax(x, **kw)[1], lambda v: ref.nanminmax(v)[1], {}, "x"),
}
SELECTS = ["absmax", "norminf", "count_nonzero", "count_nonfinite", "min", "max", "nanmin", "nanmax"]  # exact
AXES = [None, 0, 1, 2, -1, -3, (0, 1), (0, 2), (1, 2), (-1, 0), (0, 1, 2)]
# the empty array: what NumPy raises for, and what has a value
EMPTY_RAISES = ["absmax", "norminf", "min", "max", "nanmin", "nanmax", "mean", "var"]


def check(name, x, axis, keepdims=False):
    function, oracle, kwargs, kind = ORACLES[name]
    got = np.asarray(function(x, axis=axis, keepdims=keepdims, **kwargs))
    want = ref.over_axes(x, axis, keepdims, oracle)
    assert got.shape == want.shape
    assert got.dtype == (x.dtype if kind == "x" else np.dtype(kind))
    if name in SELECTS:
        np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))
    else:
        size = np.abs(x.astype(np.float64)).max(initial=0.0)
        scale = {"sum": x.size * size, "mean": size, "var": size * size}.get(name, 0.0)
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=scale * 1e-15)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("name", ORACLES)
def test_b1_a_reduction_equals_its_oracle_over_every_axis(name, dtype):
    x = ref.wild(3 * 7 * 41, dtype).reshape(3, 7, 41)
    for axis in AXES:
        for keepdims in (False, True):
            check(name, x, axis, keepdims)


@pytest.mark.parametrize("name", ORACLES)
def test_b1_a_reduction_equals_its_oracle_at_every_small_length(name, isa):
    x = ref.wild(300, np.float32)
    for n in range(2, 258):
        check(name, x[n % 7 : n % 7 + n], None)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("shape", [(ref.CHUNK + 1,), (3, ref.CHUNK - 1), (ref.CHUNK // 2 + 1, 3), (2, 1, 20_000)])
def test_b1_a_reduction_equals_its_oracle_across_chunks(name, shape):
    x = ref.wild(math.prod(shape), np.float32).reshape(shape)
    for axis in (None, 0, -1) if name in SELECTS or len(shape) < 3 else (None, -1):
        if ORACLES[name][2] == {"ddof": 1} and axis is not None and shape[axis] == 1:
            continue
        if math.prod(shape) // (x.size if axis is None else shape[axis]) <= 3:
            check(name, x, axis)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5), elements=st.floats(width=32, allow_nan=True)),
    st.sampled_from(["min", "max", "nanmin", "nanmax", "absmax", "count_nonzero", "count_nonfinite"]),
    st.integers(-4, 3),
)
def test_a3_selecting_reductions_equal_their_oracle_for_any_float(x, name, axis):
    check(name, x, axis % x.ndim)
    check(name, x, None)


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_a3_nan_propagates_from_every_position_and_nanminmax_ignores_it(dtype, isa):
    for n in range(1, 131):
        x = ref.wild(131, dtype)[:n]
        clean = x.astype(np.float64)
        for place in range(n % 4, n, 4 if n > 16 else 1):  # every place, of some lengths
            x[place], kept = np.nan, x[place]
            assert all(map(np.isnan, reduce.minmax(x)))
            assert np.isnan(reduce.absmax(x))
            rest = np.delete(clean, place)
            low, high = reduce.nanminmax(x)
            if rest.size:
                assert (float(low), float(high)) == (rest.min(), rest.max())
            else:
                assert np.isnan(low)
                assert np.isnan(high)
            assert reduce.count_nonfinite(x) == 1
            x[place] = kept


@pytest.mark.parametrize("name", ["sum", "mean", "var", "norm1", "norm2", "norminf"])
def test_a3_nan_propagates_through_sums(name):
    function, _, kwargs, _ = ORACLES[name]
    x = np.ones(1000, np.float32)
    x[777] = np.nan
    assert np.isnan(function(x, **kwargs))


def test_a3_infinities_are_values():
    x = np.array([1, np.inf, -np.inf, 2], np.float32)
    assert reduce.minmax(x) == (-np.inf, np.inf)
    assert reduce.absmax(x) == np.inf
    assert reduce.norm(x) == np.inf
    assert reduce.sum(x[:2]) == np.inf
    assert np.isnan(reduce.sum(x))
    assert reduce.count_nonfinite(x) == 2


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("name", ORACLES)
def test_a12_empty_raises_or_is_zero_and_never_divides(name, shape, dtype):
    function, _, kwargs, _ = ORACLES[name]
    x = np.empty(shape, dtype)
    if name in EMPTY_RAISES or name == "var-ddof":
        with pytest.raises(ValueError, match=r"x must not be empty|at least"):
            function(x, **kwargs)
    else:
        assert function(x, **kwargs) == 0


@pytest.mark.parametrize("name", ORACLES)
def test_a12_an_axis_that_leaves_nothing_gives_an_empty_array(name):
    function, _, kwargs, _ = ORACLES[name]
    got = np.asarray(function(np.empty((0, 3), np.float32), axis=1, **kwargs))
    assert got.shape == (0,)


@pytest.mark.parametrize("name", ORACLES)
def test_a12_an_empty_axis_raises_or_gives_zeros(name):
    function, _, kwargs, _ = ORACLES[name]
    x = np.empty((3, 0), np.float32)
    if name in EMPTY_RAISES or name == "var-ddof":
        with pytest.raises(ValueError, match="x"):
            function(x, axis=1, **kwargs)
    else:
        np.testing.assert_array_equal(function(x, axis=1, **kwargs), np.zeros(3))


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_a12_zero_dimensional_arrays_work(dtype):
    x = np.array(-2.5, dtype)
    assert [float(v) for v in reduce.minmax(x)] == [-2.5, -2.5]
    assert reduce.sum(x) == reduce.mean(x) == -2.5
    assert reduce.norm(x) == float(reduce.absmax(x)) == 2.5
    assert reduce.var(x) == 0
    assert np.shape(reduce.sum(x, keepdims=True)) == ()
    assert reduce.sum(x, axis=()) == -2.5


def test_an_empty_tuple_of_axes_reduces_nothing():
    x = ref.wild(12, np.float32).reshape(3, 4)
    np.testing.assert_array_equal(reduce.sum(x, axis=()), x.sum(axis=(), dtype=np.float64))


def test_counts_and_sums_are_numpy_scalars_of_one_dtype():
    x = np.arange(5, dtype=np.float32)
    assert isinstance(reduce.count_nonzero(x), np.int64)
    assert isinstance(reduce.sum(x), np.float64)
    assert isinstance(reduce.minmax(x)[0], np.float32)
    assert isinstance(reduce.minmax(x), tuple)


def test_count_nonzero_counts_nan_and_not_negative_zero():
    assert reduce.count_nonzero(np.array([0.0, -0.0, np.nan, 5e-324, np.inf])) == 3


# -- large sums


def within_ulps(got, want, ulps):
    assert abs(got - want) <= ulps * np.spacing(abs(want)), f"{(got - want) / np.spacing(abs(want))} ULP"


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
@pytest.mark.parametrize("n", [10_007, 1 << 20])
def test_b13_a_sum_of_positives_is_within_2_ulp(dtype, n):
    x = np.random.default_rng(5).random(n).astype(dtype)
    within_ulps(reduce.sum(x), math.fsum(x.astype(np.float64)), 2)
    within_ulps(reduce.mean(x), math.fsum(x.astype(np.float64)) / n, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ref.BF16], ids=str)
def test_b13_a_sum_of_condition_1000_is_within_2_ulp(dtype):
    """The condition of a sum is sum |x| / |sum x|."""
    rng = np.random.default_rng(6)
    x = (rng.standard_normal(1 << 19) + 1 / 512).astype(dtype)
    exact = math.fsum(x.astype(np.float64))
    assert 1 < math.fsum(np.abs(x).astype(np.float64)) / abs(exact) <= 1e3
    within_ulps(reduce.sum(x), exact, 2)


@pytest.mark.parametrize("pattern", [(1e8, 1, -1e8), (1e8, -1e8, 1), (1, 1e8, -1e8), (2.0**24, 1, -(2.0**24))])
@pytest.mark.parametrize("repeats", [1, 21, 85, 20_001])
def test_b13_a_float32_sum_keeps_what_float32_arithmetic_would_lose(pattern, repeats):
    x = np.tile(np.array(pattern, np.float32), repeats)
    assert reduce.sum(x) == repeats
    assert reduce.mean(x) == repeats / x.size


def test_b13_a_variance_about_a_large_mean_does_not_cancel():
    x = (1e6 + np.random.default_rng(7).random(100_003)).astype(np.float64)
    np.testing.assert_allclose(reduce.var(x), ref.var(x), rtol=1e-9)
    constant = np.full(100_003, 1e6 + 1 / 3)
    assert reduce.var(constant) <= 1e-18


def test_b13_a_float32_norm_does_not_overflow_or_underflow():
    for size in (3e38, 1e-45):
        x = np.full(1000, size, np.float32)
        np.testing.assert_allclose(reduce.norm(x), math.sqrt(1000) * float(x[0]), rtol=1e-13)


# -- what is refused

ERRORS = {
    "axis out of range": ({"axis": 2}, ValueError, r"axis"),
    "axis below range": ({"axis": -3}, ValueError, r"axis"),
    "axis twice": ({"axis": (0, -2)}, ValueError, r"axis"),
    "axis of a wrong type": ({"axis": "0"}, TypeError, r"axis"),
    "axis a float": ({"axis": 1.0}, TypeError, r"axis"),
    "axis enormous": ({"axis": 2**80}, ValueError, r"axis"),
    "threads 0": ({"threads": 0}, ValueError, r"threads must be .*, got 0"),
    "threads negative": ({"threads": -1}, ValueError, r"threads must be .*, got -1"),
    "threads enormous": ({"threads": 2**80}, ValueError, r"threads"),
    "threads too many": ({"threads": 1025}, ValueError, r"threads must be .*, got 1025"),
    "threads of a wrong type": ({"threads": "2"}, TypeError, r"threads"),
    "dtype of a wrong name": ({"dtype": "fp8"}, (TypeError, ValueError), r"dtype"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("name", ["minmax", "nanminmax", *SELECTS[:1], "sum", "mean", "var", "norm", "count_nonzero"])
def test_a_wrong_argument_of_a_reduction_is_named(name, case):
    kwargs, error, match = ERRORS[case]
    with pytest.raises(error, match=f"^{name}: {match}"):
        getattr(reduce, name)(np.ones((2, 3), np.float32), **kwargs)


@pytest.mark.parametrize("order", [0, 3, -1, math.nan, -math.inf])
def test_norm_refuses_other_orders(order):
    with pytest.raises(ValueError, match=r"^norm: ord must be 1, 2 or inf, got "):
        reduce.norm(np.ones(3, np.float32), ord=order)


def test_var_refuses_a_ddof_that_is_no_number():
    with pytest.raises(TypeError, match=r"^var: ddof"):
        reduce.var(np.ones(3, np.float32), ddof="1")
    with pytest.raises(ValueError, match=r"^var: ddof"):
        reduce.var(np.ones(3, np.float32), ddof=math.nan)


def test_the_module_is_complete():
    assert set(reduce.__all__) == {
        *("minmax", "nanminmax", "absmax", "sum", "mean", "var", "norm", "count_nonzero", "count_nonfinite"),
        *("histogram", "quantile", "kth_magnitude"),
        *("min", "max", "argmin", "argmax", "any", "all", "topk", "allclose"),
    }
    assert mo.reduce is reduce
