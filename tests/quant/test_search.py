"""Scales by search, scales that are given, scales as they are stored."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import modelopt_rs as mo
import reference as ref
import reference_search as search
from modelopt_rs import _core

KINDS = [(bits, scheme) for bits in ref.BITS for scheme in ("symmetric", "asymmetric")]
each_kind = pytest.mark.parametrize(("bits", "scheme"), KINDS)
each_stored = pytest.mark.parametrize("scale_dtype", search.STORED)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def errors(x, q, weights=1.0):
    """The squared error of each row, exactly as the codes say."""
    wide = x.astype(np.float64) - np.asarray(q.dequantize(np.float64), np.float64)
    return (weights * wide**2).sum(-1)


@each_kind
@each_stored
def test_the_error_is_that_of_the_reference(bits, scheme, scale_dtype):
    for size in (7, 31, 32, 33, 64, 65, 200, 255, 256, 257):
        x = normal(3, size, seed=size)
        q = mo.quantize(x, bits=bits, scheme=scheme, group_size=size, search="mse", scale_dtype=scale_dtype)
        want = [search.least_error(row, bits, scheme, scale_dtype) for row in x]
        np.testing.assert_allclose(errors(x, q), want, rtol=2e-2, atol=1e-9, err_msg=str(size))


@pytest.mark.parametrize("bits", ref.BITS)
@pytest.mark.parametrize("size", [7, 31, 32, 64, 65, 256, 257])
def test_scales_and_offsets_leave_the_error_of_the_reference(bits, size):
    x = normal(5, size, seed=size) + np.arange(5, dtype=np.float32)[:, None]
    weights = np.random.default_rng(1).uniform(0, 4, size).astype(np.float32)
    options = {"bits": bits, "scheme": "minmax", "group_size": size, "search": "mse"}
    for counted, counts in ((None, np.ones(size)), (weights, weights)):
        q = mo.quantize(x, **options, weights=counted)
        want = [search.least_error_with_offset(row, bits, counts) for row in x]
        np.testing.assert_allclose(errors(x, q, counts), want, rtol=5e-2, atol=1e-9)


def half_quadratic(x, bits):
    """What hqq's optimizer leaves: float zero points by half-quadratic splitting, with its defaults."""
    top, beta, x = 2**bits - 1, 10.0, x.astype(np.float64)
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scale = top / (high - low)
    zero, best = np.rint(-low * scale), np.inf
    for _ in range(20):
        codes = np.clip(np.rint(x * scale + zero), 0, top)
        off = x - (codes - zero) / scale
        error = np.abs(off).mean()
        if error >= best:
            break
        best, found = error, zero
        shrunk = np.sign(off) * np.maximum(np.abs(off) - np.maximum(np.abs(off), 1e-30) ** -0.3 / beta, 0)
        zero = (codes - (x - shrunk) * scale).mean(-1, keepdims=True)
        beta *= 1.01
    return (np.clip(np.rint(x * scale + found), 0, top) - found) / scale


@pytest.mark.parametrize("bits", ref.BITS)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_an_offset_is_no_worse_than_that_of_half_quadratic_splitting(bits, size):
    rng = np.random.default_rng(size)
    for x in (rng.standard_normal((400, size)), rng.standard_t(4, (400, size)), rng.uniform(1, 2, (400, size))):
        x = x.astype(np.float32)
        q = mo.quantize(x, bits=bits, scheme="minmax", group_size=size, search="mse")
        assert errors(x, q).sum() <= np.square(x - half_quadratic(x, bits)).sum()


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_offsets_are_the_same_for_every_instruction_set_thread_and_cut(dtype, isas):
    for shape, options in [((30, 333), {"group_size": 32}), ((3, 33_000), {"axis": 0}), ((100_003,), {})]:
        x = normal(*shape).astype(dtype)
        for norm in (None, 0.7):
            options = {"bits": 4, "scheme": "minmax", "search": "mse", "norm": norm, **options}
            _core.set_isa("portable")
            want = mo.quantize(x, **options, threads=1)
            for isa in isas:
                _core.set_isa(isa)
                got = mo.quantize(x, **options, threads=3)
                assert {k: v.tobytes() for k, v in got.parts.items()} == {k: v.tobytes() for k, v in want.parts.items()}
                assert mo.fake_quantize(x, **options).tobytes() == want.dequantize(x.dtype).tobytes()
                again = mo.quantize(-x, **options)
                mo.quantize(x, **options, out=again)
                assert again.offset.tobytes() == want.offset.tobytes()


@example(x=np.float32([[-0.328125] + 28 * [0]]), bits=2, size=29)
@example(x=np.float32([[-29024] + 4 * [56800]]), bits=8, size=5)
@given(
    x=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-60000, 60000, width=16),
    ),
    bits=st.sampled_from(ref.BITS),
    size=st.integers(1, 40),
)
def test_no_group_with_an_offset_is_worse_than_by_the_plain_formula(x, bits, size):
    options = {"bits": bits, "scheme": "minmax", "group_size": size}
    plain, found = (mo.quantize(x, **options, search=search) for search in (None, "mse"))
    for i in range(0, x.shape[1], size):
        part = x[:, i : i + size].astype(np.float64)
        of = [np.square(part - q.dequantize(np.float64)[:, i : i + size]).sum(-1) for q in (found, plain)]
        assert (of[0] <= of[1]).all()


def test_what_is_not_finite_moves_no_offset():
    x = normal(3, 37) + 5
    holes = x.copy()
    holes[0, 3], holes[1, 4], holes[2, 36] = np.nan, np.inf, -np.inf
    weights = np.ones(37, np.float32)
    for options in ({}, {"weights": weights}):
        options = {"bits": 4, "scheme": "minmax", "group_size": 37, "search": "mse", **options}
        q = mo.quantize(holes, **options, nonfinite="saturate")
        for row, hole in enumerate((3, 4, 36)):
            alone = np.delete(x[row], hole)[None]
            same = mo.quantize(alone, bits=4, scheme="minmax", group_size=36, search="mse")
            assert (q.scale[row], q.offset[row]) == (same.scale[0], same.offset[0])
    empty = mo.quantize(np.full((1, 4), np.nan, np.float32), **options | {"weights": None}, nonfinite="saturate")
    assert (empty.scale.item(), empty.offset.item()) == (1.0, 0.0)
    constant = mo.quantize(np.full((2, 4), 3.7, np.float32), **options | {"weights": None})
    np.testing.assert_array_equal(constant.dequantize(), np.full((2, 4), 3.7, np.float32))


@each_kind
def test_weights_count_errors(bits, scheme):
    x, weights = normal(8, 96), np.random.default_rng(1).uniform(0, 4, 96).astype(np.float32)
    options = {"bits": bits, "scheme": scheme, "group_size": 32, "search": "mse"}
    q = mo.quantize(x, **options, weights=weights)
    want = [
        sum(search.least_error(row[i : i + 32], bits, scheme, None, weights[i : i + 32]) for i in (0, 32, 64))
        for row in x
    ]
    np.testing.assert_allclose(errors(x, q, weights), want, rtol=2e-2)
    assert errors(x, q, weights).sum() < errors(x, mo.quantize(x, **options), weights).sum()
    ones = mo.quantize(x, **options, weights=np.full(96, 2.0**70, np.float32))
    assert ref.bits_of(ones.scale) == ref.bits_of(mo.quantize(x, **options).scale)


def norms(x, q, norm, weights=1.0):
    """The errors of each row to a power, as the search counts them."""
    wide = np.abs(x.astype(np.float64) - np.asarray(q.dequantize(np.float64), np.float64))
    scale = np.abs(q.scale.astype(np.float64))
    return (weights * wide**2 * np.maximum(wide, scale / 1024) ** (norm - 2)).sum(-1)


@each_kind
@pytest.mark.parametrize("norm", [0.7, 1, 2.4, 4.0])
@pytest.mark.parametrize("size", [7, 32, 300])
def test_a_norm_leaves_the_error_of_the_reference(bits, scheme, norm, size):
    x, weights = normal(5, size, seed=size), np.random.default_rng(1).uniform(0, 4, size).astype(np.float32)
    options = {"bits": bits, "scheme": scheme, "group_size": size, "search": "mse", "scale_dtype": "float16"}
    for counted, counts in ((None, 1.0), (weights, weights)):
        q = mo.quantize(x, **options, norm=norm, weights=counted)
        want = [search.norm_error(row, bits, scheme, norm, "float16", counted) for row in x]
        np.testing.assert_allclose(norms(x, q, norm, counts), want, rtol=2e-2, atol=1e-9)
        plain = mo.quantize(x, bits=bits, scheme=scheme, group_size=size, scale_dtype="float16")
        assert (norms(x, q, norm, counts) <= norms(x, plain, norm, counts) * (1 + 1e-6)).all()


def test_a_norm_has_less_of_its_own_error_than_least_squares_have():
    x = np.random.default_rng(0).standard_t(3, (64, 256)).astype(np.float32)
    options = {"bits": 4, "group_size": 32, "search": "mse"}
    for norm in (0.7, 2.4):
        square, found = mo.quantize(x, **options), mo.quantize(x, **options, norm=norm)
        off = [np.abs(x - q.dequantize()) ** norm for q in (square, found)]
        assert off[1].sum() < off[0].sum()
    assert mo.quantize(x, **options, norm=2.0).scale.tobytes() == mo.quantize(x, **options).scale.tobytes()


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_a_norm_gives_the_same_bits_for_every_instruction_set_and_thread(dtype, isas):
    for shape, options in [((70, 333), {"group_size": 32}), ((9, 3_300), {"axis": 0}), ((70_003,), {})]:
        x = normal(*shape).astype(dtype)
        options = {"bits": 4, "scheme": "asymmetric", "search": "mse", "norm": 0.7, **options}
        _core.set_isa("portable")
        want = mo.quantize(x, **options, threads=1)
        for isa in isas:
            _core.set_isa(isa)
            got = mo.quantize(x, **options, threads=3)
            assert {k: v.tobytes() for k, v in got.parts.items()} == {k: v.tobytes() for k, v in want.parts.items()}
            assert mo.fake_quantize(x, **options).tobytes() == want.dequantize(x.dtype).tobytes()


@given(
    x=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-60000, 60000, width=16),
    ),
    kind=st.sampled_from(KINDS),
    size=st.integers(1, 40),
    scale_dtype=st.sampled_from(list(search.STORED)),
)
def test_no_group_is_worse_than_by_the_plain_formula(x, kind, size, scale_dtype):
    bits, scheme = kind
    options = {"bits": bits, "scheme": scheme, "group_size": size, "scale_dtype": scale_dtype}
    plain, found = mo.quantize(x, **options), mo.quantize(x, **options, search="mse")
    for i in range(0, x.shape[1], size):

        def error(q, i=i):
            wide = x.astype(np.float64) - q.dequantize(np.float64)
            return (wide[:, i : i + size] ** 2).sum(-1)

        # Products with scales are rounded to float32.
        rounding = 1e-13 * (x.astype(np.float64) ** 2)[:, i : i + size].sum(-1)
        assert (error(found) <= error(plain) + rounding).all()


@each_kind
@pytest.mark.parametrize("n", [31, 32_768, 32_769, 200_001])
def test_a_whole_array_is_searched_in_pieces(bits, scheme, n):
    x = normal(n, seed=n)
    q = mo.quantize(x, bits=bits, scheme=scheme, search="mse")
    want = search.least_error(x, bits, scheme)
    np.testing.assert_allclose(errors(x, q), want, rtol=2e-2, atol=1e-9)


@each_kind
@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_b10_b11_the_same_bits_for_every_instruction_set_thread_and_cut(bits, scheme, dtype, isas):
    for shape, options in [((70, 333), {"group_size": 32}), ((9, 33_000), {"axis": 0}), ((100_003,), {})]:
        x = normal(*shape).astype(dtype)
        options = {"bits": bits, "scheme": scheme, "search": "mse", "scale_dtype": "float16", **options}
        _core.set_isa("portable")
        want = mo.quantize(x, **options, threads=1)
        for isa in isas:
            _core.set_isa(isa)
            for threads in (1, 3):
                got = mo.quantize(x, **options, threads=threads)
                assert {k: v.tobytes() for k, v in got.parts.items()} == {k: v.tobytes() for k, v in want.parts.items()}
        if len(shape) == 2:
            part = mo.quantize(x[3:5], **options)
            assert part.scale.tobytes() == want.scale[3:5].tobytes()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_any_axis_is_as_the_first(axis):
    x = normal(3, 4, 50)
    got = mo.quantize(x, bits=4, axis=axis, search="mse")
    moved = mo.quantize(np.ascontiguousarray(np.moveaxis(x, axis, 0)), bits=4, axis=0, search="mse")
    assert got.scale.tobytes() == moved.scale.tobytes()
    np.testing.assert_array_equal(np.moveaxis(got.dequantize(), axis, 0), moved.dequantize())


@each_kind
def test_given_scales_make_the_codes_of_the_plain_formula(bits, scheme):
    x = normal(6, 50)
    q = mo.quantize(x, bits=bits, scheme=scheme, group_size=8)
    options = {"bits": bits, "scheme": scheme, "group_size": 8, "scale": q.scale, "zero_point": q.zero_point}
    again = mo.quantize(x, **options)
    assert again.codes.tobytes() == q.codes.tobytes()
    assert again.scale is not q.scale
    assert mo.fake_quantize(x, **options).tobytes() == q.dequantize().tobytes()
    out = mo.quantize(-x, bits=bits, scheme=scheme, group_size=8)
    assert mo.quantize(x, **options, out=out) is out
    assert out.scale.tobytes() == q.scale.tobytes()
    assert out.codes.tobytes() == q.codes.tobytes()


@pytest.mark.parametrize("dtype", ref.DTYPES, ids=str)
def test_numbers_beyond_given_scales_become_the_limits(dtype):
    x = np.array([-1000.0, -1.0, -0.26, 0.0, 0.25, 1.0, 1000.0]).astype(dtype)
    assert mo.quantize(x, scale=0.0625).codes.tolist() == [-128, -16, -4, 0, 4, 16, 127]
    assert mo.quantize(x, scale=-0.0625).codes.tolist() == [127, 16, 4, 0, -4, -16, -128]
    q = mo.quantize(x, scheme="asymmetric", scale=0.5, zero_point=3)
    assert q.codes.tolist() == [0, 1, 2, 3, 3, 5, 255]


@each_kind
def test_fake_quantize_is_quantize_and_dequantize(bits, scheme):
    x = normal(7, 100)
    options = {"bits": bits, "scheme": scheme, "group_size": 32, "search": "mse", "scale_dtype": "bfloat16"}
    q = mo.quantize(x, **options)
    assert mo.fake_quantize(x, **options).tobytes() == q.dequantize().tobytes()
    np.testing.assert_array_equal(q.scale.astype(ref.BF16).astype(np.float32), q.scale)


@each_kind
def test_zeros_nan_infinities_and_extremes(bits, scheme):
    options = {"bits": bits, "scheme": scheme, "group_size": 4, "search": "mse"}
    q = mo.quantize(np.zeros((2, 4), np.float32), **options)
    assert q.scale.tolist() == [[1.0], [1.0]]
    assert not q.dequantize().any()
    assert mo.quantize(np.zeros((0, 4), np.float32), **options).scale.shape == (0, 1)
    x = normal(3, 4)
    x[1, 2] = np.nan
    x[2, 0] = np.inf
    with pytest.raises(ValueError, match=r"quantize: x has 2 non-finite values, first at index \(1, 2\)"):
        mo.quantize(x, **options)
    back = mo.quantize(x, **options, nonfinite="saturate").dequantize()
    assert back[1, 2] == 0
    assert np.isfinite(back).all()
    for big in (1e38, 1e-37, 1e-44):
        x = (np.array([[-1.0, 0.5, 0.25, 1.0]]) * big).astype(np.float32)
        q = mo.quantize(x, **options)
        plain = mo.quantize(x, bits=bits, scheme=scheme, group_size=4)
        assert np.isfinite(q.scale).all()
        assert (errors(x, q) <= errors(x, plain)).all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"search": "best"}, ValueError, "search must be None or 'mse', got \"best\""),
        ({"search": 1}, TypeError, "search must be a string, got 1"),
        ({"search": 0.7}, TypeError, "search must be a string, got 0.7"),
        ({"norm": 2.4}, ValueError, "norm must be None without search, got 2.4"),
        ({"search": "mse", "norm": 0.4}, ValueError, "norm must be from 0.5 to 4, got 0.4"),
        ({"search": "mse", "norm": float("nan")}, ValueError, "norm must be from 0.5 to 4, got NaN"),
        ({"search": "mse", "norm": "2"}, TypeError, "norm must be a number or None, got str"),
        ({"search": "mse", "norm": True}, TypeError, "norm must be a number or None, got bool"),
        ({"scale": 1.0, "norm": 2.4}, ValueError, "search, weights, scale_dtype and norm must be None where"),
        ({"scale_dtype": "int8"}, ValueError, "scale_dtype must be None, 'float32', 'float16' or 'bfloat16'"),
        ({"scale": 1.0, "scheme": "minmax"}, ValueError, "scale must be None for scheme 'minmax'"),
        ({"scale_dtype": "float16", "scheme": "minmax"}, ValueError, "scale_dtype must be None for scheme 'minmax'"),
        ({"search": "mse", "format": "nf4"}, ValueError, 'search, scale and scale_dtype must be None for format "nf4"'),
        ({"weights": np.ones(8, np.float32)}, ValueError, "weights must be None without search"),
        ({"search": "mse", "weights": np.ones(7, np.float32)}, ValueError, r"weights must have shape \(8,\), got"),
        ({"search": "mse", "weights": -np.ones(8, np.float32)}, ValueError, "weights must be finite and not negative"),
        (
            {"search": "mse", "axis": 1, "weights": np.ones(8, np.float32)},
            ValueError,
            "weights must be None for axis=1",
        ),
        ({"zero_point": 1}, ValueError, "zero_point must be None without scale"),
        ({"scale": 0.0}, ValueError, "scale must be finite and not 0"),
        ({"scale": np.inf}, ValueError, "scale must be finite and not 0"),
        ({"scale": "x"}, TypeError, "scale must be a number or an array of numbers, got str"),
        ({"scale": np.ones(3)}, ValueError, r"scale must have shape \(\), got \(3,\)"),
        (
            {"scale": 1.0, "search": "mse"},
            ValueError,
            "search, weights, scale_dtype and norm must be None where scale is given",
        ),
        ({"scale": 1.0, "zero_point": 1}, ValueError, "zero_point must be None for scheme 'symmetric'"),
        ({"scale": 1.0, "scheme": "asymmetric"}, ValueError, "zero_point must be given with scale"),
        ({"scale": 1.0, "scheme": "asymmetric", "zero_point": 256}, ValueError, "zero_point must be within 0 to 255"),
        (
            {"scale": 1.0, "scheme": "asymmetric", "zero_point": 16, "bits": 4},
            ValueError,
            "zero_point must be within 0 to 15",
        ),
        ({"scale": 1.0, "scheme": "asymmetric", "zero_point": 1.5}, TypeError, "zero_point must be an int or an array"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(options, error, words):
    x = normal(4, 8)
    for function in (mo.quantize, mo.fake_quantize):
        with pytest.raises(error, match=f"^{function.__name__}: {words}"):
            function(x, **options)
