"""The oracles against NumPy and ml_dtypes: two descriptions must agree before either judges the kernels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference as ref

finite = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6, width=32))
AXES = [None, 0, -1, (0, -1)]


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions_agree_with_numpy(axis, keepdims):
    x = ref.wild(60, np.float64).reshape(3, 4, 5)
    kw = {"axis": axis, "keepdims": keepdims}

    def over(f):
        return ref.over_axes(x, axis, keepdims, f)

    np.testing.assert_array_equal(over(lambda v: ref.minmax(v)[0]), np.min(x, **kw))
    np.testing.assert_array_equal(over(lambda v: ref.nanminmax(v)[1]), np.nanmax(x, **kw))
    np.testing.assert_array_equal(over(ref.absmax), np.abs(x).max(**kw))
    np.testing.assert_array_equal(over(ref.count_nonzero), np.count_nonzero(x, **kw))
    np.testing.assert_array_equal(over(ref.count_nonfinite), (~np.isfinite(x)).sum(**kw))
    np.testing.assert_allclose(over(ref.total), x.sum(**kw), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(over(ref.mean), x.mean(**kw), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(over(lambda v: ref.var(v, 1)), x.var(ddof=1, **kw), rtol=1e-12)
    np.testing.assert_allclose(over(ref.norm), np.sqrt((x * x).sum(**kw)), rtol=1e-12)


@given(finite)
def test_norms_agree_with_linalg(x):
    for order in (1, 2, np.inf):
        np.testing.assert_allclose(ref.norm(x.ravel(), order), np.linalg.norm(x.ravel(), order), rtol=1e-12)


@given(finite, st.integers(1, 40))
def test_histogram_agrees_with_numpy(x, bins):
    for got, want in zip(ref.histogram(x, bins, None), np.histogram(x, bins), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(ref.histogram(x, bins, (-3.5, 7)), np.histogram(x, bins, (-3.5, 7)), strict=True):
        np.testing.assert_array_equal(got, want)


@given(finite, st.floats(0, 1))
def test_quantile_agrees_with_numpy(x, q):
    np.testing.assert_allclose(ref.quantile(x, q), np.quantile(x, q), rtol=1e-12, atol=1e-9)


@given(finite, st.integers(0, 10**6))
def test_kth_magnitude_agrees_with_partition(x, k):
    k %= x.size
    assert ref.kth_magnitude(x, k) == np.partition(np.abs(x).ravel(), k)[k]


def test_a13_rounding_to_float16_agrees_with_numpy():
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    x = np.concatenate([high + low for low in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0xF000)]).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(np.float16)
        got = ref.round_to_16_bits(x.astype(np.float64), np.dtype(np.float16))
    nan = np.isnan(x)
    np.testing.assert_array_equal(got[~nan].view(np.uint16), want[~nan].view(np.uint16))
    assert np.isnan(got[nan]).all()


def test_a13_rounding_to_bfloat16_agrees_with_ml_dtypes():
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    x = np.concatenate([high + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(np.float32)
    x = x[~np.isnan(x)]
    got = ref.round_to_16_bits(x.astype(np.float64), ref.BF16)
    np.testing.assert_array_equal(got.view(np.uint16), x.astype(ref.BF16).view(np.uint16))


def test_a13_rounding_from_float64_is_not_double():
    """1 + 2^-8 + 2^-40 is above a tie of bfloat16 that a float32 on the way would make the tie itself."""
    x = np.array([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 3 * 2.0**-8, 1 + 3 * 2.0**-8 - 2.0**-40])
    got = ref.round_to_16_bits(x, ref.BF16).astype(np.float64)
    np.testing.assert_array_equal(got, [1.0, 1 + 2.0**-7, 1 + 2.0**-6, 1 + 2.0**-7])


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("signed", [False, True])
def test_a8_pack_and_unpack_are_inverse(bits, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    for n in range(0, 40):
        codes = np.random.default_rng(n).integers(low, low + 2**bits, (3, n))
        packed = ref.pack(codes, bits)
        assert packed.shape == (3, -(-n * bits // 8))
        np.testing.assert_array_equal(ref.unpack(packed, bits, n, signed), codes)


def test_a8_pack_puts_element_0_into_the_low_bits():
    assert ref.pack(np.array([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert ref.pack(np.array([1, 2, 3, 0, 1]), 2).tolist() == [0b00111001, 0b01]
    assert ref.pack(np.array([-1, 7]), 4).tolist() == [0x7F]
    assert ref.unpack(np.array([0x21, 0x03], np.uint8), 4, 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("scheme", ref.SCHEMES)
@pytest.mark.parametrize("bits", ref.BITS)
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_a1_the_affine_oracle_obeys_the_error_law(scheme, bits, dtype):
    x = ref.wild(120, dtype).reshape(4, 30)
    for grain in ({}, {"axis": 0}, {"axis": -1}, {"group_size": 7}):
        a = ref.quantize(x, bits, scheme, **grain)
        first, last = ref.code_limits(bits, scheme)
        assert a.codes.min() >= first
        assert a.codes.max() <= last
        back = ref.dequantize(a, np.float64, **grain)
        for p, e in ref.regions(x.shape, grain.get("axis"), grain.get("group_size")):
            error = np.abs(x[e].astype(np.float64) - back[e]).max()
            assert error <= a.scale[p] * (0.5 + 2.0**-13) + np.abs(back[e]).max() * 2.0**-23


def test_the_affine_oracle_is_numpys_formula():
    """DynamicQuantizeLinear of ONNX, its second published example: the range of (-1, 2.5) in 8 bits."""
    x = np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32)
    a = ref.quantize(x, 8, "asymmetric")
    assert a.scale == np.float32(5.0 / 255)
    assert a.zero_point == 153
    assert a.codes.tolist() == [153, 255, 0, 26, 221, 179]


def test_the_oracle_of_a_sum_is_exact():
    assert ref.total(np.array([1e16, 1.0, -1e16])) == 1.0
    assert math.isnan(ref.total(np.array([math.inf, -math.inf])))
