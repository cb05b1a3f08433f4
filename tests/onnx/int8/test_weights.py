"""Weights to int8 for integer kernels: `graph.int8` against plain NumPy, however the tensor is cut."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("onnx_ir")

from modelopt_rs.files import TensorInfo
from modelopt_rs.onnx.int8.codes import LARGEST, Bias, ChannelCodes, Scaling, Sums

RNG = np.random.default_rng(4)
SHAPES = {"conv": ((6, 4, 3, 3), 0), "depthwise": ((8, 1, 3, 3), 0), "gemm": ((7, 20), 0), "matmul": ((20, 7), 1)}


def info(w: np.ndarray, dtype: str = "F32") -> TensorInfo:
    return TensorInfo("w", dtype, w.shape, w.nbytes)


def made(w: np.ndarray, axis: int, rows: int, dtype: str = "F32", **options: Any) -> dict[str, np.ndarray]:
    """What a transform makes of a weight in tiles of about so many rows."""
    coder = ChannelCodes(info(w, dtype), axis, ("codes", "scale"), **options)
    flat = w.reshape(info(w).rows, -1)
    step = max(rows // coder.row_multiple, 1) * coder.row_multiple
    parts: dict[str, list[np.ndarray]] = {part.name: [] for part in coder.outputs}
    coder.begin(step)
    for _ in range(coder.sweeps):
        for first in range(0, len(flat), step):
            for name, array in coder(flat[first : first + step].copy()):
                parts[name].append(array)
        for name, array in coder.end():
            parts[name].append(array)
    return {p.name: np.concatenate(parts[p.name]).reshape(p.shape) for p in coder.outputs}


def in_order(w: np.ndarray, axis: int) -> np.ndarray:
    """What kernels multiply with each output channel, in their order: [out, inputs], of a Conv position by position."""
    w = np.moveaxis(w, axis, 0)
    return w if w.ndim == 2 else np.swapaxes(w.reshape(*w.shape[:2], -1), 1, 2).reshape(len(w), -1)


def oracle(w: np.ndarray, axis: int, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales in float64 but for the rounding of the scale."""
    rows = in_order(w, axis).astype(np.float64)
    peak = np.abs(rows).max(axis=1)
    if sums is Sums.ANY:
        peak = peak * 127 / 64
    if sums is Sums.PAIRS and rows.shape[1] > 1:
        pairs = [np.abs(rows[:, i] + rows[:, i + 1]) for i in range(0, rows.shape[1] - 1, 2)]
        peak = np.maximum(peak, np.max(pairs, axis=0))
    scale = np.where(peak > 0, peak / 127, 1.0)
    shape = [1] * w.ndim
    shape[axis] = -1
    return w / scale.reshape(shape), scale


@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("sums", Sums)
def test_the_largest_code_is_of_the_largest_weight_or_sum_of_two_that_are_added(shape, axis, rows, sums):
    w = RNG.standard_normal(shape).astype(np.float32)
    got = made(w, axis, rows, sums=sums)
    exact, scale = oracle(w, axis, sums)
    np.testing.assert_allclose(got["scale"], scale, rtol=3e-7)
    assert np.abs(got["codes"] - exact).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(got["codes"], made(w, axis, 7, sums=sums)["codes"])


def added_in_16_bits(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Sums as a processor without VNNI makes them: vpmaddubsw adds two products with saturation, vpmaddwd the rest."""
    products = np.pad(x.astype(np.int64) * codes, [(0, 0), (0, codes.shape[1] % 2)])
    return np.clip(products[:, ::2] + products[:, 1::2], -(2**15), 2**15 - 1).sum(axis=1)


@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("spread", ["normal", "alike", "two halves"])
def test_no_processor_saturates_whatever_goes_in(shape, axis, spread):
    """The activations are the worst: 255 where weights have one sign, 0 where they have the other."""
    w = RNG.standard_normal(shape).astype(np.float32) if spread == "normal" else np.ones(shape, np.float32)
    if spread == "two halves":  # sums of which both are rounded up
        w *= np.float32(63.5)
        w[(0,) * w.ndim] = 127
    codes = in_order(made(w, axis, 4)["codes"].astype(np.int64), axis)
    for x in (255 * (codes > 0), 255 * (codes < 0), np.full(codes.shape, 255)):
        np.testing.assert_array_equal(added_in_16_bits(x, codes), (x * codes).sum(axis=1))
    plain = np.rint(in_order(w, axis) / np.abs(in_order(w, axis)).max(axis=1, keepdims=True) * 127)
    if codes.shape[1] > 1 and spread != "normal":
        assert (added_in_16_bits(255 * (plain > 0), plain) < (255 * (plain > 0) * plain).sum(axis=1)).all()


def test_any_two_products_fit_16_bits_where_the_order_is_not_known():
    w = np.ones((3, 8), np.float32)
    assert made(w, 0, 3, sums=Sums.ANY)["codes"].max() == 64


def test_weights_whose_neighbours_have_other_signs_have_all_codes():
    w = np.tile(np.array([1, -1], np.float32), (4, 3))
    assert np.abs(made(w, 0, 4)["codes"]).min() == LARGEST


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_half_precision_has_the_codes_of_its_values(dtype, numpy_dtype):
    w = RNG.standard_normal((5, 8)).astype(numpy_dtype)
    stored = w.view(np.uint16) if dtype == "BF16" else w
    got, want = made(stored, 0, 2, dtype), made(w.astype(np.float32), 0, 2)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", [2, 1000])
def test_scaling_is_as_if_the_weights_were_scaled_before(shape, axis, rows):
    w = RNG.standard_normal(shape).astype(np.float32)
    groups = 8 if shape[1] == 1 else 1
    inputs = RNG.uniform(0.5, 2, (1 if axis == 1 else groups) * shape[1 - axis]).astype(np.float32)
    outputs = RNG.uniform(0.5, 2, shape[axis]).astype(np.float32)
    scaled = w.copy()
    for o in range(shape[axis]):
        for i in range(shape[1 - axis]):
            at = (o, i) if axis == 0 else (i, o)
            scaled[at] = w[at] * inputs[o * groups // shape[0] * shape[1] + i if groups > 1 else i] * outputs[o]
    got = made(w, axis, rows, scaling=Scaling(inputs, outputs))
    want = made(scaled, axis, rows)
    np.testing.assert_array_equal(got["codes"], want["codes"])
    np.testing.assert_array_equal(got["scale"], want["scale"])


@pytest.mark.parametrize(("shape", "axis"), [SHAPES["conv"], SHAPES["matmul"]], ids=["conv", "matmul"])
@pytest.mark.parametrize("rows", [2, 1000])
def test_biases_are_in_steps_of_both_scales(shape, axis, rows):
    w = RNG.standard_normal(shape).astype(np.float32)
    values = [RNG.standard_normal(shape[axis]).astype(np.float32) for _ in range(2)]
    biases = [Bias((f"b{i}", f"s{i}"), value, 0.01 * (1 + i)) for i, value in enumerate(values)]
    got = made(w, axis, rows, biases=biases)
    np.testing.assert_array_equal(got["codes"], made(w, axis, rows)["codes"])
    for i, value in enumerate(values):
        np.testing.assert_array_equal(got[f"s{i}"], np.float32(0.01 * (1 + i)) * got["scale"])
        np.testing.assert_array_equal(got[f"b{i}"], np.rint(value / got[f"s{i}"].astype(np.float64)))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_bias_that_int32_could_not_hold_makes_the_scale_larger(axis):
    w = np.full((4, 4), 1e-12, np.float32)
    bias = np.array([100.0, -100.0, 1e-12, 0.0], np.float32)
    got = made(w, axis, 2, biases=[Bias(("b", "s"), bias, 0.01)])
    back = got["b"].astype(np.float64) * got["s"]
    np.testing.assert_allclose(back[:2], bias[:2], rtol=1e-6)
    assert np.abs(got["b"]).max() <= 2**30 + 2**8
    codes = got["codes"] if axis == 0 else got["codes"].T
    assert codes[3].tolist() == [64] * 4  # two make 128


def test_zeros_have_scale_1():
    got = made(np.zeros((3, 4), np.float32), 0, 1)
    assert got["scale"].tolist() == [1, 1, 1]
    assert not got["codes"].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_that_is_not_finite_is_refused(axis):
    w = np.ones((4, 4), np.float32)
    w[2, 1] = np.nan
    with pytest.raises(ValueError, match="non-finite"):
        made(w, axis, 4)


def test_figures_say_how_far_the_codes_are_from_the_weights():
    w = RNG.standard_normal((16, 300)).astype(np.float32)
    coder = ChannelCodes(info(w), 0, ("codes", "scale"))
    coder.begin(16)
    parts = dict(coder(w))
    back = parts["codes"].astype(np.float64) * parts["scale"][:, None]
    want = 10 * np.log10(np.square(w).sum() / np.square(w - back).sum())
    assert coder.figures.sqnr_db == pytest.approx(want, abs=1e-3)
