"""Affine quantization: the laws that its users rely on, then the oracle bit for bit, then what is refused."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core

GRAINS = {
    "all": {},
    "axis0": {"axis": 0},
    "axis-1": {"axis": -1},
    "group1": {"group_size": 1},
    "group3": {"group_size": 3},
    "group32": {"group_size": 32},
    "group-huge": {"group_size": 2**40},
}
KINDS = [(bits, scheme) for bits in ref.BITS for scheme in ref.SCHEMES]
BIG = float(np.finfo(np.float32).max)

each_kind = pytest.mark.parametrize(("bits", "scheme"), KINDS)
each_scheme = pytest.mark.parametrize("scheme", ref.SCHEMES)
each_dtype = pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
each_grain = pytest.mark.parametrize("grain", GRAINS.values(), ids=GRAINS)
any_kind = st.sampled_from(KINDS)
any_grain = st.sampled_from(list(GRAINS.values()))


def float32s(top=BIG, **kwargs):
    top = float(np.float32(top))
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=17)
    return hnp.arrays(np.float32, shapes, elements=st.floats(-top, top, width=32, **kwargs))


def plain_codes(q):
    """The codes, one element each, from the packed form."""
    signed = q.scheme == "symmetric"
    if q.bits == 8:
        return q.codes
    n = q.shape[-1] if q.shape else 1
    return ref.unpack(q.codes, q.bits, n, signed).reshape(q.shape)


def assert_equals_oracle(q, a):
    np.testing.assert_array_equal(q.scale, a.scale, strict=True)
    for got, want in ((q.zero_point, a.zero_point), (q.offset, a.offset)):
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(got, want, strict=True)
    np.testing.assert_array_equal(plain_codes(q), a.codes)


def assert_error_law(x, q, grain, back=None):
    """|x - deq| <= scale / 2, and the roundings of the arithmetic: of the quotient and of the result."""
    back = np.asarray(q.dequantize(q.scale.dtype) if back is None else back).astype(np.float64)
    eps, wide = float(np.finfo(q.scale.dtype).eps), x.astype(np.float64)
    scale = ref.spread(q.scale, x.shape, grain.get("axis"), grain.get("group_size")).astype(np.float64)
    bound = scale * (0.5 + 2**q.bits * 2 * eps) + np.maximum(np.abs(wide), np.abs(back)) * eps
    error = np.abs(wide / 2 - back / 2) * 2  # halves: float64 must not overflow
    assert (error <= bound).all(), f"{(error / scale).max()} scales"


# ------------------------------------------------------------------------------------------------------- laws


@given(float32s(), any_kind, any_grain)
def test_a1_error_is_at_most_half_a_scale(x, kind, grain):
    """A6: for ranges beyond the largest float32 too, unless the call refuses them."""
    bits, scheme = kind
    try:
        q = mo.quantize(x, bits=bits, scheme=scheme, **grain)
    except ValueError:
        assert float(x.max()) - float(x.min()) > BIG
        return
    first, last = ref.code_limits(bits, scheme)
    codes = plain_codes(q)
    assert first <= codes.min(initial=0)
    assert codes.max(initial=0) <= last
    assert_error_law(x, q, grain)


@given(float32s(1e30), any_kind, any_grain)
def test_a1_quantize_equals_the_oracle(x, kind, grain):
    bits, scheme = kind
    q = mo.quantize(x, bits=bits, scheme=scheme, **grain)
    a = ref.quantize(x, bits, scheme, **grain)
    assert_equals_oracle(q, a)
    np.testing.assert_array_equal(q.dequantize(), ref.dequantize(a, np.float32, **grain), strict=True)


@each_dtype
@each_kind
def test_a1_every_dtype_equals_the_oracle(bits, scheme, dtype):
    for grain, shape in itertools.product(GRAINS.values(), ((1,), (7,), (3, 67), (5, 1), (2, 3, 33))):
        x = ref.wild(math.prod(shape), dtype).reshape(shape)
        q = mo.quantize(x, bits=bits, scheme=scheme, **grain)
        a = ref.quantize(x, bits, scheme, **grain)
        assert_equals_oracle(q, a)
        assert_error_law(x, q, grain)
        for target in ref.DTYPES if shape == (3, 67) else (dtype,):
            with np.errstate(over="ignore"):
                want = ref.dequantize(a, target, **grain)
            assert ref.bits_of(q.dequantize(target)) == ref.bits_of(want)


@each_kind
def test_a1_equals_the_oracle_at_every_small_length(bits, scheme, isas):
    x = ref.wild(300, np.float32)
    for n in range(1, 258):
        v = x[n % 5 : n % 5 + n]
        want = ref.quantize(v, bits, scheme)
        for isa in isas:
            _core.set_isa(isa)
            assert_equals_oracle(mo.quantize(v, bits=bits, scheme=scheme), want)


@pytest.mark.parametrize("shape", [(ref.CHUNK - 1,), (2 * ref.CHUNK + 3,), (3, 30_001), (40_000, 2)], ids=str)
@each_kind
def test_a1_equals_the_oracle_across_chunks(bits, scheme, shape):
    x = ref.wild(math.prod(shape), np.float32).reshape(shape)
    for grain in ({}, {"axis": -1 if shape[-1] < 9 else 0}) if len(shape) > 1 else ({},):
        q = mo.quantize(x, bits=bits, scheme=scheme, threads=3, **grain)
        assert_equals_oracle(q, ref.quantize(x, bits, scheme, **grain))


def test_a1_the_naive_int8_cast_wraps_where_minmax_does_not():
    """The textbook formula cast to int8 wraps 45 % of a normal sample: the seed of this library."""
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    low, high = x.min(), x.max()
    textbook = np.rint((x - low) / (high - low) * 255)
    wrapped = textbook.astype(np.uint8).view(np.int8) != textbook
    assert wrapped.mean() > 0.4
    q = mo.quantize(x, scheme="minmax")
    assert np.abs(q.codes.astype(int) - textbook).max() <= 1
    assert_error_law(x, q, {})


@each_kind
@each_dtype
def test_a4_a_constant_reconstructs_within_half_a_scale(bits, scheme, dtype):
    for grain, c in itertools.product(GRAINS.values(), (0.0, -0.0, 1.0, -1.0, 3e-5, -60_000.0, 2.0**-14)):
        x = np.full((3, 37), c, dtype)
        q = mo.quantize(x, bits=bits, scheme=scheme, **grain)
        assert_error_law(x, q, grain)
        assert np.isfinite(q.scale).all()
        assert (q.scale > 0).all()
        if c == 0:
            assert (q.scale == 1).all()
            assert (plain_codes(q) == 0).all()
            assert q.zero_point is None or (q.zero_point == 0).all()
        if scheme == "minmax":
            assert (q.scale == 1).all()
            assert (q.offset == x.flat[0].astype(q.offset.dtype)).all()
            assert (plain_codes(q) == 0).all()


@each_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_a5_every_power_of_two_as_a_range(bits, scheme, dtype):
    """A6 as well: from the smallest subnormal to the largest power, the scale is normal, the law holds."""
    info = np.finfo(dtype)
    for exponent in range(int(info.minexp) - int(info.nmant), int(info.maxexp), 1 if dtype == np.float32 else 31):
        top = np.ldexp(dtype(1), exponent)
        x = np.array([0, top, top / 2, -top / 4], dtype)
        q = mo.quantize(x, bits=bits, scheme=scheme)
        assert_equals_oracle(q, ref.quantize(x, bits, scheme))
        assert q.scale >= info.tiny
        assert_error_law(x, q, {})


def assert_finite_or_refused(x, bits, scheme):
    """Only a range beyond the largest number may be refused, so never a symmetric one."""
    beyond = float(x.max()) / 2 - float(x.min()) / 2 > np.finfo(x.dtype).max / 2
    try:
        q = mo.quantize(x, bits=bits, scheme=scheme)
    except ValueError:
        if beyond and scheme != "symmetric":
            return
        raise
    assert np.isfinite(q.scale)
    assert np.isfinite(q.dequantize(x.dtype)).all()
    assert_error_law(x, q, {})


@each_kind
def test_a6_the_largest_float32_range_is_finite_or_refused(bits, scheme):
    for pair in ((-3e38, 3e38), (-BIG, BIG), (0, BIG), (-BIG, 0), (-BIG, 1)):
        x = np.clip([*pair, 1e38, -1e38, 0, 1], *pair).astype(np.float32)
        assert_finite_or_refused(x, bits, scheme)


@each_scheme
def test_a6_the_largest_float64_range_is_finite_or_refused(scheme):
    big = np.finfo(np.float64).max
    x = np.array([-big, big, big / 3, -big / 3, 0.0])
    assert_finite_or_refused(x, 8, scheme)


def ties(bits, scheme, shift=0):
    """Every k + 0.5 and its neighbours where the scale is exactly 1."""
    first, last = ref.code_limits(bits, scheme)
    first, last = first - shift, last - shift
    middle = np.arange(first, last) + np.float32(0.5)
    around = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([[first, last], middle, *around]).astype(np.float32)


@each_kind
def test_a7_halves_round_to_even_at_every_code(bits, scheme, isa):
    for shift in range(2**bits) if scheme == "asymmetric" else (0,):
        x = ties(bits, scheme, shift)
        q = mo.quantize(x, bits=bits, scheme=scheme)
        assert q.scale == 1
        zero = 0 if q.zero_point is None else int(q.zero_point)
        assert zero == shift
        np.testing.assert_array_equal(plain_codes(q).astype(int) - zero, np.rint(x).astype(int))


def test_a7_halves_round_to_even_in_float64():
    x = ties(8, "asymmetric", 100).astype(np.float64)
    np.testing.assert_array_equal(mo.quantize(x, scheme="asymmetric").codes.astype(int) - 100, np.rint(x))


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
@each_kind
def test_a7_all_65536_inputs_of_16_bits(dtype, bits, scheme, isa):
    """Every pattern, those not finite saturating; both whole and in groups of like magnitude."""
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    if dtype == ref.BF16 and scheme != "symmetric":
        exponent = (x.view(np.uint16) >> 7) & 0xFF
        x = x[(exponent < 0xFE) | (exponent == 0xFF)]  # a range that float32 can hold: A6 tests the others
    with np.errstate(invalid="ignore"):
        for grain in ({}, {"group_size": 512}):
            q = mo.quantize(x, bits=bits, scheme=scheme, nonfinite="saturate", **grain)
            assert_equals_oracle(q, ref.quantize(x, bits, scheme, **grain))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "minmax"])
def test_an_infinite_scale_shows_in_the_numbers(scheme):
    """Only what rounding took beyond the largest number is brought back to it."""
    q = mo.quantize(np.float32([-1.0, 0.5, 1.0]), scheme=scheme)
    q.scale[...] = np.inf
    assert not np.isfinite(q.dequantize()).all()


# ------------------------------------------------------------------------------------------------- not finite


@each_dtype
@each_scheme
def test_a2_values_that_are_not_finite_raise_by_default_with_their_number_and_place(scheme, dtype):
    x = ref.wild(60, dtype).reshape(3, 20)
    x[0, 17], x[2, 1], x[1, 19] = np.nan, -np.inf, np.inf
    message = r"x has 3 non-finite values, first at index \(0, 17\)"
    with pytest.raises(ValueError, match=f"^quantize: {message}"):
        mo.quantize(x, scheme=scheme)
    with pytest.raises(ValueError, match=f"^fake_quantize: {message}"):
        mo.fake_quantize(x, scheme=scheme, axis=0)
    with pytest.raises(ValueError, match=r"^quantize: x has 1 non-finite value, first at index \(19,\)"):
        mo.quantize(x[1], scheme=scheme, group_size=4)
    with pytest.raises(ValueError, match=r"^quantize: x has 1 non-finite value, first at index \(\)"):
        mo.quantize(np.array(np.nan, dtype), scheme=scheme)


def test_a2_the_place_is_right_across_chunks_threads_and_strides():
    x = np.zeros((5, 40_001), np.float32)
    x[4, 40_000] = x[3, 7] = np.nan
    for view, index in (
        (x, r"\(3, 7\)"),
        (x.T, r"\(7, 3\)"),
        (x[::-1], r"\(0, 40000\)"),
        (x[:, ::-1], r"\(3, 39993\)"),
    ):
        for threads in (1, 4):
            with pytest.raises(ValueError, match=rf"^quantize: x has 2 non-finite values, first at index {index}"):
                mo.quantize(view, threads=threads)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a2_one_value_at_every_position_is_found(value, isa):
    for n in range(1, 131):
        x = ref.wild(n, np.float32)
        for place in {0, n // 2, n - 1, n - 2 if n > 1 else 0}:
            x[place], kept = value, x[place]
            with pytest.raises(ValueError, match=rf"first at index \({place},\)"):
                mo.quantize(x)
            x[place] = kept


@each_kind
def test_a2_a_call_that_raises_writes_nothing(bits, scheme):
    x = ref.wild(3 * ref.CHUNK, np.float32)
    q = mo.quantize(x, bits=bits, scheme=scheme)
    out = np.full_like(x, 7)
    before = ref.bits_of((q, out))
    x[-1] = np.nan
    with pytest.raises(ValueError, match="non-finite"):
        mo.quantize(x * 2, bits=bits, scheme=scheme, out=q)
    with pytest.raises(ValueError, match="non-finite"):
        mo.fake_quantize(x * 2, bits=bits, scheme=scheme, out=out)
    assert ref.bits_of((q, out)) == before


@each_dtype
@each_kind
def test_a2_saturate_equals_the_oracle(bits, scheme, dtype):
    """NaN takes the code of zero, infinities the limits; the range is that of the finite values."""
    for grain, shape in itertools.product(GRAINS.values(), ((1,), (45,), (3, 67))):
        x = ref.poisoned(ref.wild(math.prod(shape), dtype)).reshape(shape)
        q = mo.quantize(x, bits=bits, scheme=scheme, nonfinite="saturate", **grain)
        assert_equals_oracle(q, ref.quantize(x, bits, scheme, **grain))


@each_kind
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a2_saturate_with_nothing_finite_is_the_unit_scale(bits, scheme, value, isa):
    for n in (1, 5, 64, 129):
        q = mo.quantize(np.full(n, value, np.float32), bits=bits, scheme=scheme, nonfinite="saturate")
        first, last = ref.code_limits(bits, scheme)
        assert q.scale == 1
        assert (plain_codes(q) == {np.inf: last, -np.inf: first}.get(value, 0)).all()
        assert np.isfinite(q.dequantize()).all()


# ------------------------------------------------------------------------------------------ shapes and dtypes


@each_dtype
@each_kind
def test_the_layout_is_as_documented(bits, scheme, dtype):
    for grain, shape in itertools.product(GRAINS.values(), ((4,), (3, 5), (2, 3, 70), (1, 1), (0, 3), (3, 0))):
        x = ref.wild(math.prod(shape), dtype).reshape(shape)
        q = mo.quantize(x, bits=bits, scheme=scheme, **grain)
        axis, group = grain.get("axis"), grain.get("group_size")
        params = ref.params_shape(shape, axis, group)
        real = ref.compute_dtype(dtype)
        assert (q.bits, q.scheme, q.shape, q.group_size) == (bits, scheme, shape, group)
        assert q.axis == (None if axis is None else axis % len(shape)) or q.axis == axis
        assert q.codes.dtype == (np.int8 if (bits, scheme) == (8, "symmetric") else np.uint8)
        assert q.codes.shape == (*shape[:-1], -(-shape[-1] * bits // 8))
        assert (q.scale.shape, q.scale.dtype) == (params, real)
        arrays = [q.codes, q.scale]
        for array, there, kind in ((q.zero_point, "asymmetric", np.uint8), (q.offset, "minmax", real)):
            assert (array is None) == (scheme != there)
            if array is not None:
                assert (array.shape, array.dtype) == (params, kind)
                arrays.append(array)
        assert q.nbytes == sum(a.nbytes for a in arrays)


@each_dtype
@each_kind
def test_a12_zero_dimensions_and_zero_sizes(bits, scheme, dtype):
    x = np.array(-2.5, dtype)
    q = mo.quantize(x, bits=bits, scheme=scheme)
    assert q.shape == ()
    assert q.codes.shape == (() if bits == 8 else (1,))
    assert_equals_oracle(q, ref.quantize(x, bits, scheme))
    assert q.dequantize().shape == np.asarray(q).shape == ()
    assert mo.fake_quantize(x, bits=bits, scheme=scheme).shape == ()
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 5)):
        for grain in GRAINS.values():
            q = mo.quantize(np.empty(shape, dtype), bits=bits, scheme=scheme, **grain)
            assert (q.scale == 1).all()
            assert q.dequantize().shape == shape
            assert mo.fake_quantize(np.empty(shape, dtype), bits=bits, scheme=scheme, **grain).shape == shape


def test_a10_a_short_last_group_is_a_group():
    x = np.arange(7, dtype=np.float32).reshape(1, 7)
    q = mo.quantize(x, group_size=3)
    np.testing.assert_array_equal(q.scale, (np.array([[2, 5, 6]]) / 127).astype(np.float32))


@each_kind
@each_dtype
def test_fake_quantize_is_quantize_then_dequantize(bits, scheme, dtype):
    for grain, shape in itertools.product(GRAINS.values(), ((1,), (65,), (3, 67), (2, 3, 33))):
        x = ref.wild(math.prod(shape), dtype).reshape(shape)
        kw = {"bits": bits, "scheme": scheme, **grain}
        want = mo.quantize(x, **kw).dequantize(dtype)
        assert ref.bits_of(mo.fake_quantize(x, **kw)) == ref.bits_of(want)
        out = np.empty_like(x)
        assert mo.fake_quantize(x, **kw, out=out) is out
        assert ref.bits_of(out) == ref.bits_of(want)
        poisoned = ref.poisoned(x)
        want = mo.quantize(poisoned, nonfinite="saturate", **kw).dequantize(dtype)
        assert ref.bits_of(mo.fake_quantize(poisoned, nonfinite="saturate", **kw)) == ref.bits_of(want)


@each_kind
def test_out_is_rewritten_and_returned(bits, scheme):
    for grain in GRAINS.values():
        kw = {"bits": bits, "scheme": scheme, **grain}
        x, y = (ref.wild(3 * 67, np.float32, seed).reshape(3, 67) for seed in (1, 2))
        q = mo.quantize(x, **kw)
        codes = q.codes
        assert mo.quantize(y, out=q, **kw) is q
        assert q.codes is codes
        assert ref.bits_of(q) == ref.bits_of(mo.quantize(y, **kw))
        out = np.empty((3, 67), np.float64)
        assert q.dequantize(np.float64, out=out) is out
        np.testing.assert_array_equal(out, q.dequantize(np.float64))
        np.testing.assert_array_equal(mo.dequantize(q, dtype=np.float64), out)
        mo.dequantize(q, out=out)  # the dtype of out decides
        np.testing.assert_array_equal(out, q.dequantize(np.float64))


@each_kind
def test_a_quantized_array_is_an_array_to_numpy(bits, scheme):
    for grain in GRAINS.values():
        q = mo.quantize(ref.wild(5 * 67, np.float32).reshape(5, 67), bits=bits, scheme=scheme, **grain)
        whole = q.dequantize()
        np.testing.assert_array_equal(np.asarray(q), whole, strict=True)
        np.testing.assert_array_equal(np.asarray(q, dtype=np.float64), q.dequantize(np.float64), strict=True)
        for rows in (0, -1, np.int64(2), slice(1, 4), slice(None, None, -2), slice(0, 0)):
            np.testing.assert_array_equal(np.asarray(q[rows]), whole[rows], strict=True)
        for wrong in (5, -6):
            with pytest.raises(IndexError):
                q[wrong]
        for wrong in ("a", 1.0, None):
            with pytest.raises(TypeError):
                q[wrong]


def test_quantize_of_a_quantized_result_is_stable():
    """Quantizing what was reconstructed gives the same codes again."""
    for bits, scheme in KINDS:
        x = ref.wild(1000, np.float64)
        q = mo.quantize(x, bits=bits, scheme=scheme)
        again = mo.quantize(q.dequantize(np.float64), bits=bits, scheme=scheme)
        if scheme != "asymmetric":  # there the zero point moves the ends
            np.testing.assert_array_equal(again.codes, q.codes)


# -------------------------------------------------------------------------------------------- rounding stores


def exactly(x):
    """A quantized array that reconstructs exactly `x`: one constant group for each element."""
    return mo.quantize(x, scheme="minmax", group_size=1)


def near_ties(drop):
    """float32 patterns: each high part with its tie, the tie's neighbours and the ends."""
    high = np.arange(1 << (32 - drop), dtype=np.uint64) << drop
    if drop == 13:  # float16: each 8th of the 2^19 patterns
        high = high[::8] + np.uint64(1 << 13) * (np.arange(high[::8].size, dtype=np.uint64) % 8)
    half = 1 << (drop - 1)
    x = np.concatenate([high + low for low in (0, 1, half - 1, half, half + 1, 2 * half - 1)])
    x = x.astype(np.uint32).view(np.float32)
    return x[np.isfinite(x) & (x != 0)]


@pytest.mark.parametrize(("dtype", "drop"), [(np.float16, 13), (ref.BF16, 16)], ids=["float16", "bfloat16"])
def test_a13_float32_is_rounded_half_to_even_to_16_bits(dtype, drop, isa):
    """Subnormals, overflow to infinity and all ties; never a finite value to NaN."""
    x = near_ties(drop)
    want = ref.round_to_16_bits(x.astype(np.float64), np.dtype(dtype))
    got = exactly(x).dequantize(dtype)
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16, np.float32], ids=str)
def test_a13_float64_is_rounded_once(dtype, isa):
    """A float32 on the way would round some of these twice."""
    if dtype == np.float32:
        values = np.ldexp(1 + np.arange(4096) * 2.0**-23, np.arange(4096) % 250 - 125)
        middle = values + np.spacing(values.astype(np.float32)).astype(np.float64) / 2
    else:
        values = ref.finite_values(np.dtype(dtype)).astype(np.float64)
        middle = values[:-1] / 2 + values[1:] / 2
    x = np.concatenate([middle, middle * (1 + 2.0**-45), middle * (1 - 2.0**-45)])
    x = x[x != 0]
    got = exactly(x).dequantize(dtype)
    assert ref.bits_of(got) == ref.bits_of(ref.cast(x, np.dtype(dtype)))


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
def test_a13_all_65536_values_of_16_bits_come_back(dtype, isa):
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        x = x[np.isfinite(x)]
    got = mo.fake_quantize(x, scheme="minmax", group_size=1)
    np.testing.assert_array_equal(got, x)
    nonzero = x.astype(np.float32) != 0
    np.testing.assert_array_equal(got.view(np.uint16)[nonzero], x.view(np.uint16)[nonzero])


@pytest.mark.parametrize("target", ref.DTYPES, ids=str)
def test_a13_nan_stays_nan_in_every_dtype(target, isa):
    """Through an offset that the caller spoilt: any NaN pattern, never an infinity."""
    patterns = np.concatenate([np.arange(1, 1 << 16) << shift for shift in (0, 7)]) % (1 << 23)
    patterns = patterns[patterns != 0].astype(np.uint32) | np.uint32(0x7F800000)
    q = exactly(np.ones(2 * patterns.size, np.float32))
    q.offset[...] = np.concatenate([patterns, patterns | np.uint32(0x80000000)]).view(np.float32)
    with np.errstate(invalid="ignore"):
        assert np.isnan(q.dequantize(target).astype(np.float64)).all()


def test_a14_bfloat16_by_ml_dtypes_and_as_uint16_are_the_same():
    x = ref.wild(1000, ref.BF16).reshape(10, 100)
    raw = x.view(np.uint16)
    for bits, scheme in KINDS:
        kw = {"bits": bits, "scheme": scheme, "group_size": 32}
        assert ref.bits_of(mo.quantize(raw, dtype="bf16", **kw)) == ref.bits_of(mo.quantize(x, **kw))
        want = mo.fake_quantize(x, **kw)
        got = mo.fake_quantize(raw, dtype="bf16", **kw)
        np.testing.assert_array_equal(got, want.view(np.uint16), strict=True)
        q = mo.quantize(x, **kw)
        as_raw = q.dequantize("bf16")
        np.testing.assert_array_equal(as_raw, q.dequantize(ref.BF16).view(np.uint16), strict=True)
        out = np.empty(x.shape, np.uint16)
        assert mo.dequantize(q, dtype="bf16", out=out) is out
        np.testing.assert_array_equal(out, as_raw)


A14 = [
    "absmax",
    "kth_magnitude",
    "quantize-minmax4-all",
    "fake_quantize-minmax4-all",
]


@pytest.mark.parametrize("name", A14)
def test_a14_uint16_without_a_word_is_refused_and_the_error_says_how(name):
    call = ref.calls(mo)[name]
    x = ref.wild(100, ref.BF16)
    function = call.function.split(".")[-1]
    with pytest.raises(TypeError, match=rf"^{function}: x .*uint16.*dtype=.bf16."):
        call.run(x.view(np.uint16))
    with pytest.raises(TypeError, match=rf"^{function}: .*float32"):
        call.run(x.astype(np.float32), dtype="bf16")
    want, got = call.run(x), call.run(x.view(np.uint16), dtype="bf16")
    assert [a[-1] for a in as_list(ref.bits_of(got))] == [a[-1] for a in as_list(ref.bits_of(want))]


def as_list(bits):
    return [b for b in bits if b is not None] if isinstance(bits[0], tuple) else [bits]


# -------------------------------------------------------------------------------------------- what is refused

X = ref.wild(12, np.float32).reshape(3, 4)


def q_of(**kwargs):
    return mo.quantize(X, **kwargs)


BOTH = {  # of quantize and fake_quantize alike
    "bits 3": ({"bits": 3}, ValueError, "bits must be 8, 4 or 2, got 3"),
    "bits -8": ({"bits": -8}, ValueError, "bits must be 8, 4 or 2, got -8"),
    "bits enormous": ({"bits": 2**80}, ValueError, "bits must be 8, 4 or 2"),
    "bits a float": ({"bits": 8.0}, TypeError, "bits must be"),
    "bits text": ({"bits": "8"}, TypeError, "bits must be"),
    "scheme unknown": (
        {"scheme": "affine"},
        ValueError,
        "scheme must be .*symmetric.*asymmetric.*minmax.*affine",
    ),
    "scheme not text": ({"scheme": 8}, TypeError, "scheme must be"),
    "axis out of range": ({"axis": 2}, ValueError, "axis must be .*got 2"),
    "axis below range": ({"axis": -3}, ValueError, "axis must be .*got -3"),
    "axis a float": ({"axis": 0.0}, TypeError, "axis must be"),
    "axis a tuple": ({"axis": (0, 1)}, TypeError, "axis must be"),
    "axis enormous": ({"axis": 2**80}, ValueError, "axis must be"),
    "group 0": ({"group_size": 0}, ValueError, "group_size must be .*got 0"),
    "group -1": ({"group_size": -1}, ValueError, "group_size must be .*got -1"),
    "group a float": ({"group_size": 2.0}, TypeError, "group_size must be"),
    "axis and group": ({"axis": 0, "group_size": 2}, ValueError, "axis.*group_size|group_size.*axis"),
    "nonfinite unknown": (
        {"nonfinite": "ignore"},
        ValueError,
        "nonfinite must be .*raise.*saturate.*got .ignore",
    ),
    "nonfinite not text": ({"nonfinite": None}, TypeError, "nonfinite must be"),
    "threads 0": ({"threads": 0}, ValueError, "threads must be .*got 0"),
    "threads text": ({"threads": "many"}, TypeError, "threads must be"),
    "dtype unknown": ({"dtype": "fp8"}, (TypeError, ValueError), "dtype must be .*bf16.*fp8"),
}


@pytest.mark.parametrize("case", BOTH)
@pytest.mark.parametrize("function", [mo.quantize, mo.fake_quantize])
def test_a_wrong_argument_of_quantize_is_named(function, case):
    kwargs, error, match = BOTH[case]
    with pytest.raises(error, match=f"^{function.__name__}: {match}"):
        function(X, **kwargs)


ERRORS = {
    "out of another shape": (
        lambda: mo.quantize(X[:2], out=q_of()),
        ValueError,
        r"^quantize: out.* must have shape \(2, 4\).*got \(3, 4\)",
    ),
    "out of other bits": (lambda: mo.quantize(X, bits=4, out=q_of()), ValueError, r"^quantize: out"),
    "out of another scheme": (
        lambda: mo.quantize(X, out=q_of(scheme="minmax")),
        ValueError,
        r"^quantize: out",
    ),
    "out of another axis": (lambda: mo.quantize(X, axis=0, out=q_of(axis=1)), ValueError, r"^quantize: out"),
    "out of another group": (
        lambda: mo.quantize(X, group_size=2, out=q_of(group_size=3)),
        ValueError,
        r"^quantize: out",
    ),
    "out of another dtype": (
        lambda: mo.quantize(X.astype(np.float64), out=q_of()),
        (TypeError, ValueError),
        r"^quantize: out",
    ),
    "out an array": (
        lambda: mo.quantize(X, out=np.empty(X.shape, np.int8)),
        TypeError,
        r"^quantize: out must be",
    ),
    "fake out an array of another shape": (
        lambda: mo.fake_quantize(X, out=np.empty((4, 3), np.float32)),
        ValueError,
        r"^fake_quantize: out must have shape \(3, 4\).*got \(4, 3\)",
    ),
    "fake out of another dtype": (
        lambda: mo.fake_quantize(X, out=np.empty((3, 4), np.float64)),
        TypeError,
        r"^fake_quantize: out must .*float32.*got .*float64",
    ),
    "dequantize of an array": (
        lambda: mo.dequantize(X),
        TypeError,
        r"^dequantize: q must be a QuantizedArray, got ",
    ),
    "dequantize to an integer": (
        lambda: q_of().dequantize(np.int32),
        TypeError,
        r"^dequantize: dtype must .*int32",
    ),
    "dequantize to text": (lambda: q_of().dequantize("S4"), TypeError, r"^dequantize: dtype must"),
    "dequantize to uint16": (
        lambda: q_of().dequantize(np.uint16),
        TypeError,
        r"^dequantize: dtype must .*uint16",
    ),
    "dequantize out of another shape": (
        lambda: q_of().dequantize(out=np.empty(12, np.float32)),
        ValueError,
        r"^dequantize: out must have shape \(3, 4\).*got \(12,\)",
    ),
    "dequantize threads": (
        lambda: q_of().dequantize(threads=0),
        ValueError,
        r"^dequantize: threads must be .*got 0",
    ),
    "0-d with an axis": (
        lambda: mo.quantize(np.array(1, np.float32), axis=0),
        ValueError,
        r"^quantize: axis",
    ),
    "0-d with groups": (
        lambda: mo.quantize(np.array(1, np.float32), group_size=2),
        ValueError,
        r"^quantize: group_size",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_argument_of_out_or_dtype_is_named(case):
    call, error, match = ERRORS[case]
    with pytest.raises(error, match=match):
        call()


def test_the_layout_that_the_caller_spoilt_is_refused_or_right():
    """C11, A10: the arrays of a QuantizedArray can be reached and resized by anyone."""
    q = q_of(bits=4, group_size=2, scheme="asymmetric")
    want = q.dequantize()
    for name in ("codes", "scale", "zero_point"):
        array = getattr(q, name)
        for wrong in (
            array[:2],
            array[:, :1],
            array.T.copy(),
            array.ravel(),
            array.astype(np.float16),
            None,
            [1],
        ):
            if isinstance(wrong, np.ndarray) and wrong.shape == array.shape and wrong.dtype == array.dtype:
                continue
            parts = {n: getattr(q, n) for n in ("codes", "scale", "zero_point", "offset")} | {name: wrong}
            with pytest.raises((TypeError, ValueError)):
                mo._core.dequantize(
                    (*parts.values(), None), ((4, "asymmetric"), None, 2), np.empty_like(want), None, None
                )


@given(float32s(1e30, allow_subnormal=False), st.sampled_from(ref.BITS))
def test_symmetric_quantization_is_odd(x, bits):
    assume(x.size)
    plus, minus = mo.quantize(x, bits=bits), mo.quantize(-x, bits=bits)
    assert plus.scale == minus.scale
    np.testing.assert_array_equal(plain_codes(plus), -plain_codes(minus))


@given(float32s(1e30), any_kind)
def test_codes_grow_with_the_values(x, kind):
    bits, scheme = kind
    q = mo.quantize(x.ravel(), bits=bits, scheme=scheme)
    order = np.argsort(x.ravel(), kind="stable")
    assert (np.diff(plain_codes(q).astype(int)[order]) >= 0).all()
