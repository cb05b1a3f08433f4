"""Products with quantized weights: against float64, against onnxruntime, and laws that hold to the bit."""

import pickle
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelopt_rs as mo
from modelopt_rs import _core
from modelopt_rs.quant import PackedWeight, linear

TOPS = {"int8": 127, "int24": 4_194_303}
# Half a unit; of three digits the quotient is rounded before it is a whole number: 0.63 of one.
HALF = {"int8": 0.501, "int24": 0.7}
COMPUTES = ("int8", "int24", "float32")


def floats(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def blocks(k: int, group: int | None) -> list[slice]:
    """The blocks of a row: groups, of longer ones and rows pieces of 128."""
    group = k if group is None else group
    step = group if group <= 256 else 128
    groups = [(first, min(first + group, k)) for first in range(0, k, max(group, 1))]
    return [slice(at, min(at + step, end)) for first, end in groups for at in range(first, end, step)]


def whole(x: np.ndarray, compute: str) -> tuple[np.ndarray, np.ndarray]:
    """A block of rows as whole numbers and their units, each step in float32 as the docstring says."""
    top = np.float32(TOPS[compute])
    unit = np.abs(x).max(axis=-1, keepdims=True) / top
    quotient = x / np.where(unit == 0, np.float32(1), unit)
    return np.clip(np.rint(quotient), -top, top).astype(np.float64), unit.astype(np.float64)


def expected(x: np.ndarray, q: mo.QuantizedArray, compute: str, group: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64 of what the codes of both stand for, and the bound of the docstring for x itself."""
    w = q.dequantize(np.float64)
    if compute == "float32":
        y = x.astype(np.float64) @ w.T
        return y, 1e-6 * (np.abs(x) @ np.abs(w).T)
    y = np.zeros((len(x), len(w)))
    bound = np.zeros_like(y)
    for block in blocks(x.shape[1], group):
        numbers, unit = whole(x[:, block], compute)
        y += (numbers * unit) @ w[:, block].T
        bound += HALF[compute] * unit * np.abs(w[:, block]).sum(axis=1)
    return y, bound


def weight(n: int, k: int, bits: int, scheme: str = "symmetric", group: int | None = None) -> mo.QuantizedArray:
    w = floats(n, k, seed=n + k) if scheme == "symmetric" else np.abs(floats(n, k, seed=n + k)) + 0.25
    options: Any = {"axis": 0} if group is None else {"group_size": group}
    return mo.quantize(w, bits=bits, scheme=scheme, **options)


# ---- the numbers


@pytest.mark.parametrize(
    ("bits", "scheme", "compute"), list(product((8, 4, 2), ("symmetric", "asymmetric", "minmax"), COMPUTES))
)
@pytest.mark.parametrize("group", [None, 16, 32, 100, 256, 300])
def test_a_product_is_that_of_the_codes(bits: int, scheme: str, compute: str, group: int | None) -> None:
    q = weight(37, 330, bits, scheme, group)
    for m in (1, 4, 8, 17):
        x = floats(m, 330, seed=m)
        y = linear(x, q, compute=compute)
        want, bound = expected(x, q, compute, group)
        terms = np.abs(x).astype(np.float64) @ np.abs(q.dequantize(np.float64)).T
        np.testing.assert_array_less(np.abs(y - want), 2e-6 * terms + 1e-30)
        exact = x.astype(np.float64) @ q.dequantize(np.float64).T
        assert (np.abs(y - exact) <= bound + 2e-6 * terms).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20), st.integers(0, 40), st.integers(0, 300), st.sampled_from([8, 4, 2]), st.integers(1, 320),
    st.sampled_from(["symmetric", "asymmetric", "minmax"]), st.sampled_from(COMPUTES),
)  # fmt: skip
def test_any_shape_and_group(m: int, n: int, k: int, bits: int, group: int, scheme: str, compute: Any) -> None:
    if n * k == 0:
        return
    q = weight(n, k, bits, scheme, group)
    x, bias = floats(m, k, seed=m), floats(n, seed=n)
    y = linear(x, q, bias, compute=compute)
    want, _ = expected(x, q, compute, min(group, k)) if m else (np.zeros((0, n)), None)
    terms = np.abs(x).astype(np.float64) @ np.abs(q.dequantize(np.float64)).T + np.abs(bias)
    assert (np.abs(y - (want + bias)) <= 2e-6 * terms + 1e-30).all()
    if compute != "float32":
        np.testing.assert_array_equal(y, linear(x, q.prepack(), bias, compute=compute))


@pytest.mark.parametrize("compute", COMPUTES)
def test_nothing_is_multiplied(compute: Any) -> None:
    none = mo.QuantizedArray(np.zeros((3, 0), np.int8), np.ones(3, np.float32), axis=0, shape=(3, 0))
    np.testing.assert_array_equal(linear(np.zeros((2, 0), np.float32), none, compute=compute), np.zeros((2, 3)))
    bias = floats(3)
    np.testing.assert_array_equal(linear(np.zeros(0, np.float32), none, bias, compute=compute), bias)
    empty = mo.QuantizedArray(np.zeros((0, 4), np.int8), np.ones(0, np.float32), axis=0, shape=(0, 4))
    assert linear(floats(5, 4), empty, compute=compute).shape == (5, 0)
    assert linear(floats(0, 4), weight(6, 4, 8), compute=compute).shape == (0, 6)


def test_two_digits_more_are_as_good_as_float32() -> None:
    q = weight(64, 384, 8)
    x = floats(8, 384)
    exact = x.astype(np.float64) @ q.dequantize(np.float64).T
    off = {compute: float(np.abs(linear(x, q, compute=compute) - exact).max()) for compute in COMPUTES}
    assert off["int24"] < 4 * off["float32"] + 1e-6
    assert off["int24"] < off["int8"] / 1000


def test_signed_zero_points_and_codes_of_other_makers() -> None:
    x = floats(3, 48)
    codes = np.random.default_rng(3).integers(-128, 128, (5, 48)).astype(np.int8)
    zero_point = np.array([-128, 127, 3, 0, -1], np.int8)
    q = mo.QuantizedArray(codes, np.full(5, 0.01, np.float32), zero_point, axis=0)
    want, _ = expected(x, q, "int8", None)
    np.testing.assert_allclose(linear(x, q), want, rtol=1e-5, atol=1e-4)
    plain = mo.quantize(floats(6, 48), bits=4, group_size=16)
    named = mo.quantize(floats(6, 48), format="int4", group_size=16)
    np.testing.assert_array_equal(linear(x, plain), linear(x, named))
    np.testing.assert_array_equal(linear(x, plain.prepack()), linear(x, named.prepack()))


@pytest.mark.parametrize("form", ["nf4", "mxfp4", "nvfp4", "fp8_e4m3"])
def test_formats_are_multiplied_in_floats(form: str) -> None:
    q = mo.quantize(floats(20, 128), format=form)
    x = floats(3, 128, seed=5)
    want = x.astype(np.float64) @ q.dequantize(np.float64).T
    np.testing.assert_allclose(linear(x, q, compute="float32"), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=rf"linear: w must have evenly spaced codes.*{form}.*compute='float32'"):
        linear(x, q)
    with pytest.raises(ValueError, match="prepack: w must have evenly spaced codes"):
        q.prepack()


@pytest.mark.parametrize("options", [{"axis": 1}, {"axis": 0}, {"group_size": 7}, {}])
def test_floats_take_any_scales(options: Any) -> None:
    q = mo.quantize(floats(9, 70), bits=4, **options)
    x = floats(4, 70, seed=8)
    want = x.astype(np.float64) @ q.dequantize(np.float64).T
    np.testing.assert_allclose(linear(x, q, compute="float32"), want, rtol=1e-4, atol=1e-4)


def test_float64_scales_are_rounded() -> None:
    w = np.random.default_rng(2).standard_normal((9, 64))
    q = mo.quantize(w, axis=0)
    assert q.scale.dtype == np.float64
    same = mo.QuantizedArray(q.codes, q.scale.astype(np.float32), axis=0, shape=q.shape)
    np.testing.assert_array_equal(linear(floats(2, 64), q), linear(floats(2, 64), same))


# ---- what never changes a bit


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(
    ("bits", "group", "k"), [(8, None, 260), (4, 32, 260), (2, 64, 260), (4, 20, 260), (8, None, 320), (4, 64, 320)]
)
def test_rows_threads_and_instruction_sets_change_no_bit(
    compute: Any, bits: int, group: int | None, k: int, isas: Any
) -> None:
    q, x = weight(70, k, bits, "asymmetric", group), floats(19, k)
    _core.set_isa("portable")
    want = linear(x, q, compute=compute, threads=1)
    for isa in isas:
        _core.set_isa(isa)
        for threads in (1, 2, 5):
            np.testing.assert_array_equal(linear(x, q, compute=compute, threads=threads), want)
        one_by_one = np.stack([linear(row, q, compute=compute) for row in x])
        np.testing.assert_array_equal(one_by_one, want)
        if compute != "float32":
            np.testing.assert_array_equal(linear(x, q.prepack(threads=3), compute=compute), want)


def test_many_rows_are_those_of_few() -> None:
    q, x = weight(20, 40, 4, group=16).prepack(), floats(1100, 40)
    want = np.concatenate([linear(x[i : i + 7], q) for i in range(0, 1100, 7)])
    np.testing.assert_array_equal(linear(x, q), want)


def test_x_may_lie_anyhow_and_have_any_axes() -> None:
    q = weight(10, 24, 8)
    x = floats(2, 3, 24)
    want = linear(x, q)
    assert want.shape == (2, 3, 10)
    np.testing.assert_array_equal(linear(np.asfortranarray(x), q), want)
    np.testing.assert_array_equal(linear(np.repeat(x, 2, axis=1)[:, ::2], q), want)
    np.testing.assert_array_equal(linear(x[1, 2], q), want[1, 2])
    np.testing.assert_array_equal(linear(x.astype(np.float16), q), linear(x.astype(np.float16).astype(np.float32), q))
    np.testing.assert_array_equal(linear(x.astype(np.float64), q), want)


def test_out_is_written_and_returned() -> None:
    q, x = weight(10, 24, 8), floats(3, 24)
    out = np.full((3, 10), np.nan, np.float32)
    assert linear(x, q, out=out) is out
    np.testing.assert_array_equal(out, linear(x, q))


def test_packed_weights_pickle_and_say_what_they_are() -> None:
    packed = weight(33, 64, 4, "asymmetric", 32).prepack()
    assert repr(packed) == "PackedWeight(shape=(33, 64), bits=4, scheme='asymmetric', group_size=32)"
    assert repr(weight(3, 64, 8).prepack()) == "PackedWeight(shape=(3, 64), bits=8, scheme='symmetric', axis=0)"
    again = pickle.loads(pickle.dumps(packed))
    np.testing.assert_array_equal(linear(floats(2, 64), again), linear(floats(2, 64), packed))
    assert packed.nbytes == 3 * (2 * (64 + 64) + 64 * 16 // 2)
    assert packed.panels.ctypes.data % 64 == 0


# ---- what is not finite


def test_rows_that_are_not_finite_are_nan_alone() -> None:
    q, x = weight(40, 64, 4, group=32), floats(4, 64)
    x[1, 3], x[2, 40] = np.nan, -np.inf
    for compute in ("int8", "int24"):
        y = linear(x, q, compute=compute)
        assert np.isnan(y[1:3]).all()
        np.testing.assert_array_equal(y[[0, 3]], linear(x[[0, 3]], q, compute=compute))
    y = linear(x, q, compute="float32")
    assert np.isnan(y[1]).all()
    assert np.isinf(y[2][q.dequantize()[:, 40] != 0]).all()


def test_tiny_and_large_numbers() -> None:
    q = weight(7, 32, 8)
    for factor in (1e-45, 1e-40, 1e-30, 1e30, 1e36):
        x = (floats(2, 32) * np.float32(factor)).astype(np.float32)
        y = linear(x, q)
        exact = x.astype(np.float64) @ q.dequantize(np.float64).T
        unit = np.abs(x).max(axis=1, keepdims=True) / 127.0
        assert (np.abs(y - exact) <= (0.51 * unit + 1e-45) * np.abs(q.dequantize()).sum(axis=1) * 1.01 + 1e-44).all()


# ---- the operator


@pytest.mark.parametrize("options", [{"axis": 0}, {"axis": 1}, {"group_size": 32}, {}, {"format": "nf4"}])
def test_h54_the_operator_multiplies_as_numpy_does(options: Any) -> None:
    q = mo.quantize(floats(1000, 64), **options)
    w = q.dequantize(np.float64)
    for x in (floats(64), floats(64, 5), floats(64, 5).T.copy().T, floats(2, 64, 3)):
        y = q @ x
        assert y.dtype == np.float32
        assert y.flags.c_contiguous
        np.testing.assert_allclose(y, w @ x.astype(np.float64), rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(np.matmul(q, x), y)
    for x in (floats(1000), floats(5, 1000), floats(2, 3, 1000)):
        np.testing.assert_allclose(x @ q, x.astype(np.float64) @ w, rtol=2e-5, atol=2e-4)
    np.testing.assert_array_equal(q[:7] @ floats(64), (q @ floats(64))[:7])
    np.testing.assert_allclose(q[:64] @ q[64:128], w[:64] @ w[64:128], rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(q * np.ones(64), q.dequantize() * np.ones(64))
    np.testing.assert_array_equal(np.add(q, q), 2 * q.dequantize())
    np.testing.assert_array_equal(q[3] @ floats(64), q[3].dequantize() @ floats(64))


def test_h54_the_operator_refuses_what_does_not_fit() -> None:
    q = weight(6, 8, 8)
    with pytest.raises(ValueError, match=r"matmul: x must have 8 in its last axis, got shape \(7,\)"):
        q @ floats(7)
    with pytest.raises(ValueError, match=r"matmul: x must have 8 in its last axis but one, got shape \(6, 8\)"):
        q @ floats(6, 8)
    with pytest.raises(ValueError, match=r"matmul: x must have 6 in its last axis, got shape \(2, 8\)"):
        floats(2, 8) @ q
    with pytest.raises(ValueError, match=r"got shape \(2, 8\); quant\.linear\(x, q\) multiplies with q transposed$"):
        floats(2, 8) @ q  # as x @ q.T of floats
    with pytest.raises(ValueError, match=r"got shape \(2, 7\)$"):
        floats(2, 7) @ q
    with pytest.raises(TypeError, match="matmul: x must"):
        q @ "text"


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_the_operator_gives_the_same_bits_with_any_threads_and_instruction_set(side: str, isas: Any) -> None:
    q = weight(3000, 40, 8)
    x = floats(40) if side == "rows" else floats(3, 3000)
    found = []
    for isa in isas:
        _core.set_isa(isa)
        for threads in (1, 3):
            with mo.num_threads(threads):
                found.append(q @ x if side == "rows" else x @ q)
    for each in found:
        np.testing.assert_array_equal(each, found[0])


# ---- errors


def test_errors_name_what_is_wrong() -> None:
    q, x = weight(6, 8, 8), floats(2, 8)
    with pytest.raises(TypeError, match="linear: w must be a QuantizedArray or a PackedWeight, got ndarray"):
        linear(x, floats(6, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"linear: x must have 8 in its last axis like w, got shape \(2, 7\)"):
        linear(floats(2, 7), q)
    with pytest.raises(ValueError, match=r"linear: x must have axes, got shape \(\)"):
        linear(np.array(1, np.float32), q)
    with pytest.raises(ValueError, match=r"linear: w must have shape \(out, in\), got \(2, 3, 4\)"):
        linear(floats(2, 4), mo.quantize(floats(2, 3, 4)))
    with pytest.raises(ValueError, match=r"linear: bias must have shape \(6,\), got \(5,\)"):
        linear(x, q, floats(5))
    with pytest.raises(TypeError, match="linear: bias must have dtype float32, got float64"):
        linear(x, q, np.zeros(6))
    with pytest.raises(TypeError, match=r"linear: x must have dtype .*, got int32"):
        linear(x.astype(np.int32), q)
    with pytest.raises(ValueError, match=r"linear: out must have shape \(2, 6\), got \(6, 2\)"):
        linear(x, q, out=np.zeros((6, 2), np.float32))
    with pytest.raises(ValueError, match="linear: out must be C-contiguous"):
        linear(x, q, out=np.zeros((6, 2), np.float32).T)
    with pytest.raises(TypeError, match="linear: out must have dtype float32, got float64"):
        linear(x, q, out=np.zeros((2, 6)))
    with pytest.raises(ValueError, match="linear: compute must be 'int8', 'int24' or 'float32', got 'int4'"):
        linear(x, q, compute="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="linear: compute must be 'int8' or 'int24' for packed weights, got 'float32'"):
        linear(x, q.prepack(), compute="float32")
    with pytest.raises(ValueError, match="linear: w must have evenly spaced codes, with scales of rows"):
        linear(x, mo.quantize(floats(6, 8), axis=1))
    square = np.zeros((8, 8), np.float32)
    with pytest.raises(ValueError, match="overlap"):
        linear(square, weight(8, 8, 8), out=square)


def test_panels_that_do_not_fit_are_refused() -> None:
    packed = weight(20, 32, 4, group=16).prepack()
    wrong = PackedWeight(packed.panels[:1], packed.shape, packed.bits, packed.scheme, packed.group_size)
    with pytest.raises(ValueError, match=r"linear: w.panels must have shape \(2, 384\), got \(1, 384\)"):
        linear(floats(1, 32), wrong)


# ---- onnxruntime


@pytest.mark.parametrize(
    ("bits", "group", "has_zero_points"),
    [(4, 32, False), (4, 32, True), (4, 16, False), (4, 128, True), (8, 32, False), (2, 64, False)],
)
def test_onnxruntime_level_4_is_within_the_bounds_of_both(bits: int, group: int, has_zero_points: bool) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    n, k = 48, 256
    q = weight(n, k, bits, "asymmetric" if has_zero_points else "symmetric", group)
    half = 1 << (bits - 1)
    codes = mo.quant.unpack(q.codes, bits, k) if bits < 8 else q.codes
    unsigned = codes if has_zero_points else ((codes.astype(np.int16) ^ half) & (2 * half - 1)).astype(np.uint8)
    packed = mo.quant.pack(unsigned.astype(np.uint8), bits) if bits < 8 else unsigned.astype(np.uint8)
    tensors = {"w": packed.reshape(n, k // group, group * bits // 8), "s": q.scale.reshape(-1)}
    if has_zero_points:
        assert q.zero_point is not None
        tensors["z"] = mo.quant.pack(q.zero_point, bits)
    inputs = ["x", "w", "s"] + (["z"] if has_zero_points else [])
    node = onnx.helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft",
                                 K=k, N=n, bits=bits, block_size=group, accuracy_level=4)  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", 1, ["m", k])], [value("y", 1, ["m", n])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()],
    )  # fmt: skip
    domains = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=domains, ir_version=10)
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        pytest.skip(f"this onnxruntime has no such product: {error}")
    for m in (1, 8):
        x = floats(m, k, seed=m)
        theirs = session.run(None, {"x": x})[0]
        _, bound = expected(x, q, "int8", group)
        exact = x.astype(np.float64) @ q.dequantize(np.float64).T
        ours = linear(x, q)
        assert (np.abs(ours - exact) <= 1.001 * bound + 1e-4).all()
        assert (np.abs(theirs - ours) <= 2.002 * bound + 1e-4).all()


@pytest.mark.parametrize("dtype", [np.int64, bool, complex, object])
def test_a_product_names_itself_where_x_is_no_array_of_floats(dtype):
    q = mo.quantize(np.eye(4, dtype=np.float32), axis=0)
    for multiply in (lambda x: q @ x, lambda x: x @ q):
        with pytest.raises(TypeError, match="matmul: x must have dtype float32, float64, float16 or bfloat16, got"):
            multiply(np.ones(4, dtype))
