"""Named formats: every number against ml_dtypes, arrays against the oracle bit for bit, then against peers."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import modelopt_rs as mo
import reference as ref
import reference_formats as formats
from modelopt_rs import _core

NAMES = list(formats.NUMBERS)
FP8 = ["fp8_e4m3", "fp8_e5m2"]
IN_BLOCKS = [name for name in NAMES if name not in FP8]
BIG = float(np.finfo(np.float32).max)
GRAINS = {
    "all": {},
    "axis0": {"axis": 0},
    "axis-1": {"axis": -1},
    "group1": {"group_size": 1},
    "group5": {"group_size": 5},
    "group64": {"group_size": 64},
    "tile": {"group_size": (3, 32)},
}
CASES = [(name, {}) for name in IN_BLOCKS]
CASES += [(name, {"group_size": size}) for name in ("nf4", "fp4") for size in (32, 256, 4096)]
CASES += [(name, grain) for name in FP8 for grain in GRAINS.values()]
IDS = ["-".join([name, *map(str, grain.values())]) for name, grain in CASES]
each_case = pytest.mark.parametrize(("name", "grain"), CASES, ids=IDS)
each_name = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)


def plain_codes(q):
    """The codes, one element each, from the packed form; their padding is zero."""
    if q.bits == 8:
        return q.codes.astype(np.int64)
    n = q.shape[-1] if q.shape else 1
    codes = ref.unpack(q.codes, 4, n).reshape(q.shape).astype(np.int64)
    np.testing.assert_array_equal(ref.pack(codes if q.shape else codes.reshape(1), 4), q.codes)
    return codes


def assert_equals_oracle(x, name, grain, q=None, nonfinite="raise", targets=ref.DTYPES):
    q = mo.quantize(x, format=name, nonfinite=nonfinite, **grain) if q is None else q
    want = formats.quantize(x, name, **grain)
    np.testing.assert_array_equal(q.scale, want.scale, strict=True)
    np.testing.assert_array_equal(plain_codes(q), want.codes)
    if want.global_scale is None:
        assert q.global_scale is None
    else:
        np.testing.assert_array_equal(q.global_scale, want.global_scale, strict=True)
    for target in targets:
        expected = formats.dequantize(want, name, target, **grain)
        assert ref.bits_of(q.dequantize(target)) == ref.bits_of(expected), target
    return q


# -------------------------------------------------------------------------------------------- every number of 16 bits


def all_finite(dtype):
    return ref.finite_values(np.dtype(dtype))


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
@pytest.mark.parametrize(("name", "twin"), [("fp8_e4m3", ml_dtypes.float8_e4m3fn), ("fp8_e5m2", ml_dtypes.float8_e5m2)])
def test_every_16_bit_number_becomes_the_float8_of_ml_dtypes(name, twin, dtype, isa):
    """With a scale of 1, which a row has whose largest is the largest number of the format."""
    top = float(ml_dtypes.finfo(twin).max)
    x = all_finite(dtype)
    x = x[np.abs(x.astype(np.float64)) <= top]
    assert len(x) > 10_000
    x = np.concatenate([x, -x[x == 0], np.array([top], dtype)])
    q = mo.quantize(x, format=name)
    assert q.scale == 1
    np.testing.assert_array_equal(q.codes, x.astype(np.float32).astype(twin).view(np.uint8))
    np.testing.assert_array_equal(q.dequantize(), q.codes.view(twin).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
@pytest.mark.parametrize(("name", "top"), [("mxfp4", 4.0), ("mxfp8", 256.0)])
def test_every_16_bit_number_becomes_the_element_of_ml_dtypes(name, top, dtype, isa):
    """A block beside whose numbers stands the power of two that gives a scale of 1."""
    twin = ml_dtypes.float4_e2m1fn if name == "mxfp4" else ml_dtypes.float8_e4m3fn
    limit = float(ml_dtypes.finfo(twin).max)
    x = all_finite(dtype)
    x = x[np.abs(x.astype(np.float64)) < 2 * top]
    x = np.concatenate([x, -x[x == 0]])
    x = np.concatenate([x, np.zeros(-len(x) % 31, dtype)]).reshape(-1, 31)
    x = np.concatenate([x, np.full((len(x), 1), top, dtype)], axis=1)
    q = mo.quantize(x, format=name)
    assert (q.scale == 127).all()
    want = np.clip(x.astype(np.float32), -limit, limit).astype(twin)
    np.testing.assert_array_equal(plain_codes(q), want.view(np.uint8))
    np.testing.assert_array_equal(q.dequantize(), want.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_the_scale_of_every_16_bit_number_is_the_e8m0_of_ml_dtypes(name, dtype, isa):
    x = np.abs(all_finite(dtype))[:, None]
    q = mo.quantize(x, format=name)
    emax = {"mxfp4": 2, "mxfp8": 8}[name]
    wide = x[:, 0].astype(np.float64)
    exponent = np.frexp(wide)[1] - 1 - emax
    np.testing.assert_array_equal(q.scale[:, 0], np.where(wide > 0, np.maximum(exponent, -127), -127) + 127)
    values = q.scale.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    codes = formats.NUMBERS[name].decode(plain_codes(q))
    np.testing.assert_array_equal(q.dequantize(np.float64), (codes * values).astype(np.float32).astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float16, ref.BF16], ids=str)
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_every_16_bit_number_up_to_1_becomes_the_nearest(name, dtype, isa):
    x = all_finite(dtype)
    x = x[np.abs(x.astype(np.float64)) <= 1]
    x = np.concatenate([x, np.zeros(-len(x) % 63, dtype)]).reshape(-1, 63)
    x = np.concatenate([x, np.ones((len(x), 1), dtype)], axis=1)
    q = mo.quantize(x, format=name)
    assert (q.scale == 1).all()
    np.testing.assert_array_equal(plain_codes(q), formats.NUMBERS[name].encode(x.astype(np.float32)))


def test_every_code_is_decoded_as_by_ml_dtypes(isa):
    """NaN and infinities too, which quantize never makes."""
    codes = np.arange(256, dtype=np.uint8)
    for name, twin in (("fp8_e4m3", ml_dtypes.float8_e4m3fn), ("fp8_e5m2", ml_dtypes.float8_e5m2)):
        q = mo.QuantizedArray(codes, np.array(1, np.float32), None, None, 8, None, (256,), None, None, name)
        np.testing.assert_array_equal(q.dequantize(), codes.view(twin).astype(np.float32))
    scale = np.arange(256, dtype=np.uint8)[:, None]
    one = np.full((256, 1), 2, np.uint8)
    q = mo.QuantizedArray(one, scale, None, None, 4, None, (256, 1), None, 32, "mxfp4")
    np.testing.assert_array_equal(q.dequantize(), scale.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))


# --------------------------------------------------------------------------------------------- arrays, bit for bit


@each_case
@each_dtype
def test_equals_the_oracle(name, grain, dtype):
    for shape in ((1,), (7,), (64,), (3, 67), (5, 1), (2, 3, 97), (9, 160)):
        if isinstance(grain.get("group_size"), tuple) and len(shape) < 2:
            continue
        x = ref.wild(math.prod(shape), dtype).reshape(shape)
        assert_equals_oracle(x, name, grain, targets=ref.DTYPES if shape == (3, 67) else [dtype])


@each_case
def test_equals_the_oracle_at_every_small_length(name, grain, isas):
    x = ref.wild(300, np.float32)
    for n in [*range(1, 36), *range(60, 70), 95, 96, 97, 127, 128, 129]:
        v = x[n % 5 : n % 5 + n].reshape((1, -1) if isinstance(grain.get("group_size"), tuple) else -1)
        _core.set_isa(isas[0])
        first = assert_equals_oracle(v, name, grain, targets=[np.float32])
        want = ref.bits_of((first, first.dequantize()))
        for isa in isas[1:]:
            _core.set_isa(isa)
            q = mo.quantize(v, format=name, **grain)
            assert ref.bits_of((q, q.dequantize())) == want, (n, isa)


@each_case
def test_numbers_that_are_not_finite_saturate(name, grain):
    for dtype in (np.float64, ref.BF16):
        x = ref.poisoned(ref.wild(6 * 90, dtype).reshape(6, 90))
        q = assert_equals_oracle(x, name, grain, nonfinite="saturate")
        assert np.isfinite(q.dequantize()).all()
        assert ref.bits_of(mo.fake_quantize(x, format=name, nonfinite="saturate", **grain)) == ref.bits_of(
            q.dequantize(x.dtype)
        )


@each_case
def test_blocks_without_a_finite_number(name, grain):
    x = np.zeros((4, 70), np.float32)
    assert_equals_oracle(x, name, grain)
    x[0], x[1], x[2, :35] = np.nan, np.inf, -np.inf
    back = assert_equals_oracle(x, name, grain, nonfinite="saturate").dequantize()
    assert np.isfinite(back).all()
    assert (back[0] == 0).all()


@each_name
@pytest.mark.parametrize("size", [1e-45, 1e-42, 1e-38, 1e-30, 1e30, BIG])
def test_subnormal_and_huge_scales(name, size):
    x = np.float32(size) * np.random.default_rng(1).uniform(-1, 1, (3, 96)).astype(np.float32)
    x[0, 5], x[2, 7] = np.float32(size), -np.float32(size)
    q = assert_equals_oracle(x, name, {})
    assert np.isfinite(q.dequantize()).all()
    if size > 1e-36 or name not in ("mxfp4", "mxfp8", "nvfp4", *FP8):
        assert np.abs(q.dequantize()).max() >= 0.5 * size


def float32s(top=BIG):
    top = float(np.float32(top))
    shapes = hnp.array_shapes(min_dims=1, max_dims=2, max_side=70)
    return hnp.arrays(np.float32, shapes, elements=st.floats(-top, top, width=32))


STEPS = {"nf4": 0.16, "fp4": 1 / 6, "mxfp4": 1 / 3, "nvfp4": 1 / 3 * 1.08}


@given(float32s(1e30), st.sampled_from(NAMES))
def test_the_error_is_at_most_half_a_step(x, name):
    """Of the widest step between two numbers, in units of absmax; what of mxfp4 saturates is off by a quarter of it.

    float8: half a last place, 2^-4 or 2^-3 of the number, or of the smallest normal number.
    """
    q = mo.quantize(x, format=name)
    assert_equals_oracle(x, name, {}, q)
    error = np.abs(q.dequantize(np.float64) - x)
    for _, e in formats.regions(x.shape, None, q.group_size):
        absmax = np.abs(x[e]).max(initial=0).astype(np.float64)
        if name in STEPS:
            bound = absmax * STEPS[name] + 1e-37
            if name == "nvfp4":  # scales have a last place, 2^-9 / global_scale: half of it, 6 times
                bound += np.abs(x).max().astype(np.float64) * 6 * 2.0**-10 / 2688 * 1.01
        else:
            eps, smallest = {"fp8_e5m2": (2**-3, 2.0**-30), "fp8_e4m3": (2**-4, 2.0**-15)}.get(name, (1 / 8, 2.0**-14))
            bound = np.abs(x[e]) * eps * 1.001 + absmax * smallest + 1e-37
        assert (error[e] <= bound).all()


def test_short_rows_begin_on_a_byte_and_have_their_own_blocks():
    x = ref.wild(5 * 33, np.float32).reshape(5, 33)
    for name in IN_BLOCKS:
        q = mo.quantize(x, format=name)
        assert q.codes.shape == (5, 17 if q.bits == 4 else 33)
        assert q.scale.shape == (5, -(-33 // q.group_size))
        for i in range(5):
            if name != "nvfp4":
                row = mo.quantize(x[i], format=name)
                np.testing.assert_array_equal(q.codes[i], row.codes)
                np.testing.assert_array_equal(q.scale[i], row.scale)


@each_case
def test_fake_quantize_is_quantize_and_dequantize(name, grain, isa):
    for dtype, shape in itertools.product(ref.DTYPES, ((3, 67), (2, 4, 160))):
        x = ref.wild(math.prod(shape), dtype).reshape(shape)
        want = mo.quantize(x, format=name, **grain).dequantize(dtype)
        assert ref.bits_of(mo.fake_quantize(x, format=name, **grain)) == ref.bits_of(want)
        out = np.full_like(x, 3)
        assert mo.fake_quantize(x, format=name, out=out, **grain) is out
        assert ref.bits_of(out) == ref.bits_of(want)


@each_case
def test_out_is_rewritten(name, grain):
    x = ref.wild(7 * 90, np.float32).reshape(7, 90)
    q = mo.quantize(x, format=name, **grain)
    other = mo.quantize(x[::-1] * 2, format=name, **grain)
    assert mo.quantize(x, format=name, out=other, **grain) is other
    assert ref.bits_of(tuple(other.parts.values())) == ref.bits_of(tuple(q.parts.values()))
    target = np.zeros_like(x)
    assert q.dequantize(out=target) is target
    np.testing.assert_array_equal(target, q.dequantize())


@each_case
def test_a_call_that_raises_has_changed_nothing(name, grain):
    x = ref.wild(7 * 90, np.float32).reshape(7, 90)
    q = mo.quantize(x, format=name, **grain)
    before = ref.bits_of(tuple(q.parts.values()))
    for bad in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y[6, 89] = bad
        with pytest.raises(
            ValueError, match=r"^quantize: x has 1 non-finite value, first at index \(6, 89\); pass non"
        ):
            mo.quantize(y, format=name, out=q, **grain)
        with pytest.raises(ValueError, match=r"^fake_quantize: x has 1 non-finite value"):
            mo.fake_quantize(y, format=name, out=np.zeros_like(y), **grain)
        with pytest.raises(ValueError, match=r"^quantize: x has 1 non-finite value"):
            mo.quantize(y, format=name, **grain)
    wide = x.astype(np.float64)
    wide[6, 89] = 1e300
    with pytest.raises(ValueError, match=r"^quantize: x must be within the range of float32, got 1e300 at flat index"):
        mo.quantize(wide, format=name, out=q, **grain)
    assert ref.bits_of(tuple(q.parts.values())) == before
    assert np.isfinite(mo.quantize(wide, format=name, nonfinite="saturate", **grain).dequantize()).all()


@each_case
def test_rows_are_views(name, grain):
    tile = isinstance(grain.get("group_size"), tuple)
    x = ref.wild(12 * 70, np.float32).reshape(12, 70)
    q = mo.quantize(x, format=name, **grain)
    whole = q.dequantize()
    for rows in (0, 5, -1, np.int64(3), slice(3, 9), slice(None), slice(6, 6), slice(9, None)):
        part = q[rows]
        assert part.format == name
        assert part.shape == whole[rows].shape
        np.testing.assert_array_equal(part.dequantize(), whole[rows])
        assert part.codes.base is not None
    if tile:
        for rows in (slice(1, 5), slice(0, 6, 2), slice(None, None, -1)):
            with pytest.raises(ValueError, match=r"^QuantizedArray: index must step by 1 and start at a multiple of 3"):
                q[rows]
    else:
        np.testing.assert_array_equal(q[::2].dequantize(), whole[::2])
    cube = mo.quantize(x.reshape(2, 6, 70), format=name, **grain)
    np.testing.assert_array_equal(cube[1].dequantize(), cube.dequantize()[1])
    np.testing.assert_array_equal(cube[1:].dequantize(), cube.dequantize()[1:])


@each_case
def test_empty_arrays(name, grain):
    for shape in ((0, 5), (3, 0), (0, 0)):
        x = np.zeros(shape, np.float32)
        q = mo.quantize(x, format=name, **grain)
        assert q.shape == shape
        assert q.dequantize().shape == shape
        assert mo.fake_quantize(x, format=name, **grain).shape == shape
        if not grain:
            assert name not in FP8 or q.scale == 1


@each_name
def test_0d_arrays(name):
    q = mo.quantize(np.array(-3.0, np.float32), format=name)
    assert q.shape == ()
    assert q.scale.shape == ()
    assert q.codes.shape == (() if q.bits == 8 else (1,))
    assert q.dequantize() == -3


@each_case
def test_long_arrays_are_cut_as_short_ones(name, grain):
    """Pieces, batches and rows that are longer than both."""
    for shape in ((3, 70_001), (20_001, 3), (700, 300)):
        x = ref.wild(math.prod(shape), np.float32).reshape(shape)
        q = mo.quantize(x, format=name, threads=2, **grain)
        bound = 2.0 if name == "fp8_e5m2" else 1.0
        back = q.dequantize(threads=2)
        assert np.abs(back - x).max() <= bound * np.abs(x).max() / 4
        if "axis" in grain or isinstance(grain.get("group_size"), tuple) or name == "nvfp4":
            some = slice(0, 3)
        else:
            some = slice(1, 2)
        if shape[0] > 3 and grain == {} and name != "nvfp4" and name not in FP8:
            np.testing.assert_array_equal(q[some].codes, mo.quantize(x[some], format=name, **grain).codes)
        assert ref.bits_of(mo.fake_quantize(x, format=name, **grain)) == ref.bits_of(back)


# ------------------------------------------------------------------------------------------------------------ face


def test_the_list_of_formats():
    listed = [entry for entry in mo.quant.formats() if entry.scheme is None]
    assert [f.name for f in listed] == NAMES
    x = ref.wild(64 * 4096, np.float32).reshape(64, 4096)
    for entry in listed:
        q = mo.quantize(x, format=entry.name)
        assert {name: part.dtype.name for name, part in q.parts.items()} == dict(entry.parts)
        assert q.group_size == entry.block
        assert (q.format, q.bits, q.scheme, q.axis, q.zero_point, q.offset) == (
            entry.name, entry.bits, None, None, None, None
        )  # fmt: skip
        assert q.nbytes == sum(part.nbytes for part in q.parts.values())
        assert q.nbytes * 8 / x.size == pytest.approx(entry.bits_per_weight, abs=1e-3)
        assert repr(q).startswith(f"QuantizedArray(shape=(64, 4096), format='{entry.name}', ")
        with pytest.raises(AttributeError):
            entry.bits = 3
        with pytest.raises(TypeError):
            entry.parts["codes"] = "float32"
    assert mo.quantize(x).parts.keys() == {"codes", "scale"}
    assert mo.quantize(x, scheme="asymmetric").parts.keys() == {"codes", "scale", "zero_point"}


def test_the_uniform_codes_are_in_the_list_and_have_names():
    listed = [entry for entry in mo.quant.formats() if entry.scheme is not None]
    assert [(f.bits, f.scheme) for f in listed] == [(b, s) for b in (8, 4, 2) for s in ref.SCHEMES]
    x = ref.wild(64 * 96, np.float32).reshape(64, 96)
    for entry in listed:
        for grain in ({}, {"axis": 0}, {"group_size": 32}):
            want = mo.quantize(x, bits=entry.bits, scheme=entry.scheme, **grain)
            q = mo.quantize(x, format=entry.name, **grain)
            assert repr(q) == repr(want)
            assert {name: part.dtype.name for name, part in q.parts.items()} == dict(entry.parts)
            for name, part in want.parts.items():
                np.testing.assert_array_equal(q.parts[name], part, strict=True)
            assert mo.quantize(x, format=entry.name, out=want, **grain) is want
            back = mo.fake_quantize(x, format=entry.name, **grain)
            assert ref.bits_of(back) == ref.bits_of(q.dequantize())
        assert entry.bits_per_weight == entry.bits
        for size in (0, (2, 32)):
            with pytest.raises(ValueError, match=r"^quantize: group_size must be at least 1, of an array with axes, g"):
                mo.quantize(x, format=entry.name, group_size=size)


X = np.ones((4, 8), np.float32)
REFUSED = [
    ({"format": "nf5"}, ValueError, r"format must be one of int8, .*, nf4, .*, got 'nf5'$"),
    ({"format": 4}, ValueError, r"format must be one of int8, .*, got 4$"),
    ({"format": ["nf4"]}, ValueError, r"format must be one of int8, .*, got \['nf4'\]$"),
    ({"format": "nf4", "bits": 4}, ValueError, r"bits and scheme must not be given with format='nf4', got bits=4"),
    ({"format": "nf4", "scheme": "minmax"}, ValueError, r"bits and scheme must not be given with .*scheme='minmax'$"),
    ({"format": "nf4", "axis": 0}, ValueError, r'axis must be None for format "nf4", got 0; its blocks lie in rows$'),
    ({"format": "nf4", "group_size": 48}, ValueError, r"group_size must be a power of two from 32 to 4096 .*, got 48$"),
    ({"format": "fp4", "group_size": 8192}, ValueError, r"group_size must be a power of two .*, got 8192$"),
    ({"format": "nf4", "group_size": (64, 64)}, ValueError, r"group_size must be a power of .*, got \(64, 64\)$"),
    ({"format": "mxfp4", "group_size": 64}, ValueError, r'group_size must be 32 for format "mxfp4", got 64$'),
    ({"format": "nvfp4", "group_size": 32}, ValueError, r'group_size must be 16 for format "nvfp4", got 32$'),
    ({"format": "fp8_e4m3", "group_size": 0}, ValueError, r"group_size must be at least 1, or two .*, got 0$"),
    ({"format": "fp8_e4m3", "group_size": (2, 0)}, ValueError, r"group_size must be at least 1, .*, got \(2, 0\)$"),
    ({"format": "fp8_e4m3", "group_size": (1, 2, 3)}, ValueError, r"group_size must be .*, got \(1, 2, 3\)$"),
    ({"format": "fp8_e4m3", "group_size": [2, 2]}, TypeError, r"group_size must be an integer, got \[2, 2\]$"),
    ({"format": "fp8_e4m3", "group_size": 2.5}, TypeError, r"group_size must be an integer, got 2.5$"),
    ({"format": "fp8_e4m3", "group_size": 4, "axis": 0}, ValueError, r"axis and group_size must not both be given"),
    ({"format": "fp8_e4m3", "axis": 2}, ValueError, r"axis must be within the 2 axes of x, got 2$"),
    ({"format": "nf4", "nonfinite": "ignore"}, ValueError, r"nonfinite must be 'raise' or 'saturate', got \"ignore\"$"),
    ({"format": "nf4", "threads": 0}, ValueError, r"threads must be"),
]


@pytest.mark.parametrize(("options", "error", "text"), REFUSED, ids=lambda v: str(v))
@pytest.mark.parametrize("function", ["quantize", "fake_quantize"])
def test_what_is_refused(function, options, error, text):
    with pytest.raises(error, match=rf"^{function}: {text}"):
        getattr(mo, function)(X, **options)


def test_tiles_need_two_axes():
    with pytest.raises(ValueError, match=r"^quantize: group_size must be at least 1, or two .*, got \(2, 2\)$"):
        mo.quantize(X[0], format="fp8_e4m3", group_size=(2, 2))


def test_arrays_that_are_refused():
    with pytest.raises(TypeError, match=r"^quantize: x must be a NumPy array, got list"):
        mo.quantize([1.0], format="nf4")
    with pytest.raises(
        TypeError, match=r"^quantize: x must have dtype float32, float64, float16 or bfloat16, got int32"
    ):
        mo.quantize(X.astype(np.int32), format="nf4")
    q = mo.quantize(X, format="nf4")
    with pytest.raises(TypeError, match=r"^quantize: out must be a QuantizedArray, got dict"):
        mo.quantize(X, format="nf4", out={})
    with pytest.raises(
        ValueError, match=r"^quantize: out must have format='fp4', axis=None, group_size=64, got format='nf4"
    ):
        mo.quantize(X, format="fp4", out=q)
    with pytest.raises(ValueError, match=r"^quantize: out.codes must have shape \(2, 4\), got \(4, 4\)"):
        mo.quantize(X[:2], format="nf4", out=q)
    with pytest.raises(ValueError, match=r"^quantize: out must have bits=4"):
        mo.quantize(X, bits=4, out=q)
    with pytest.raises(TypeError, match=r"^dequantize: dtype must be float32"):
        q.dequantize(np.int32)
    with pytest.raises(ValueError, match=r"^dequantize: out must have shape \(4, 8\), got \(8,\)"):
        q.dequantize(out=np.zeros(8, np.float32))
    broken = mo.QuantizedArray(q.codes, q.scale[:2], None, None, 4, None, q.shape, None, 64, "nf4")
    with pytest.raises(ValueError, match=r"^dequantize: scale must have shape \(4, 1\), got \(2, 1\)"):
        broken.dequantize()
    broken.scale = q.scale.astype(np.float64)
    with pytest.raises(TypeError, match=r"^dequantize: scale must have dtype float32, got float64"):
        broken.dequantize()
    broken.scale, broken.global_scale = q.scale, np.array(1, np.float32)
    with pytest.raises(ValueError, match=r'^dequantize: global_scale must be None for format "nf4"'):
        broken.dequantize()
    nv = mo.quantize(X, format="nvfp4")
    nv.global_scale = None
    with pytest.raises(ValueError, match=r'^dequantize: global_scale must be given for format "nvfp4"'):
        nv.dequantize()
    with pytest.raises(
        ValueError, match=r"^quantize: x and out.scale overlap in memory|^quantize: out.scale and x overlap"
    ):
        mo.quantize(q.scale, format="nf4", out=mo.QuantizedArray(
            np.zeros((4, 1), np.uint8), q.scale, None, None, 4, None, (4, 1), None, 64, "nf4"
        ))  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- peers


def test_mxfp4_is_that_of_gguf():
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(5).standard_normal((64, 4096), dtype=np.float32)
    x[3] = 0
    blocks = gguf.quants.quantize(x, gguf.GGMLQuantizationType.MXFP4).reshape(64, 128, 17)
    q = mo.quantize(x, format="mxfp4")
    np.testing.assert_array_equal(q.scale, blocks[..., 0])
    halves = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1).reshape(x.shape)
    codes = plain_codes(q)
    np.testing.assert_array_equal(np.where(codes == 8, 0, codes), halves)  # it has no -0
    back = gguf.quants.dequantize(blocks.reshape(64, -1), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(q.dequantize(), back)


def test_nvfp4_is_read_by_gguf():
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(6).standard_normal((16, 1024), dtype=np.float32)
    q = mo.quantize(x, format="nvfp4")
    codes = plain_codes(q).reshape(16, -1, 16)
    halves = (codes[..., :8] | codes[..., 8:] << 4).astype(np.uint8).reshape(16, -1, 32)
    blocks = np.concatenate([q.scale.reshape(16, -1, 4), halves], axis=-1)
    back = gguf.quants.dequantize(blocks.reshape(16, -1), gguf.GGMLQuantizationType.NVFP4)
    np.testing.assert_allclose(q.dequantize(), back / q.global_scale, rtol=3e-7)


def compressed(x, name, group):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = {
        "nvfp4": {"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": torch.float8_e4m3fn},
        "fp8_e4m3": {"num_bits": 8, "strategy": "tensor"},
    }[name]
    args = QuantizationArgs(type="float", symmetric=True, **args)
    t = torch.from_numpy(x)
    parts = t.reshape(len(x), -1, group)
    total = generate_gparam(t.min(), t.max()) if name == "nvfp4" else None
    scale, _ = calculate_qparams(parts.amin(-1), parts.amax(-1), args, global_scale=total)
    return torch, args, t, scale, total


@pytest.mark.slow
def test_nvfp4_is_that_of_compressed_tensors():
    x = np.random.default_rng(7).standard_normal((64, 1024), dtype=np.float32)
    torch, _, t, scale, total = compressed(x, "nvfp4", 16)
    from compressed_tensors.compressors.nvfp4.helpers import quantize_and_pack_fp4, unpack_fp4_from_uint8

    q = mo.quantize(x, format="nvfp4")
    assert float(q.global_scale) == float(total)
    np.testing.assert_array_equal(q.scale, scale.to(torch.float8_e4m3fn).view(torch.uint8).numpy())
    packed = quantize_and_pack_fp4(t, scale, global_scale=total)
    np.testing.assert_array_equal(q.codes, packed.numpy())
    back = unpack_fp4_from_uint8(packed, 64, 1024, torch.float32).reshape(64, -1, 16)
    back = back * (scale.float() / total)[..., None]
    np.testing.assert_array_equal(q.dequantize(), back.reshape(64, 1024).numpy())


@pytest.mark.slow
def test_fp8_is_that_of_compressed_tensors():
    x = np.random.default_rng(8).standard_normal((64, 1024), dtype=np.float32)
    torch, args, t, scale, _ = compressed(x, "fp8_e4m3", 1024)
    from compressed_tensors.quantization.lifecycle.forward import quantize

    q = mo.quantize(x, format="fp8_e4m3", axis=0)
    np.testing.assert_array_equal(q.scale, scale.numpy().ravel())
    args = args.model_copy(update={"strategy": "channel"})
    codes = quantize(t, scale, torch.zeros_like(scale), args, dtype=torch.float8_e4m3fn)
    np.testing.assert_array_equal(q.codes, codes.view(torch.uint8).numpy())
