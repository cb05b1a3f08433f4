"""Weights to int8 for integer kernels: `graph.int8` against plain NumPy, however the tensor is cut."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("onnx_ir")

from modelopt_rs.files import TensorInfo
from modelopt_rs.onnx.int8.codes import LARGEST, Bias, ChannelCodes, Scaling

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


def oracle(w: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales in float64 but for the rounding of the scale."""
    others = tuple(i for i in range(w.ndim) if i != axis)
    peak = np.abs(w.astype(np.float64)).max(axis=others)
    scale = np.where(peak > 0, peak / 64, 1.0)
    shape = [1] * w.ndim
    shape[axis] = -1
    return w / scale.reshape(shape), scale


@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_codes_are_the_weights_over_a_64th_of_the_largest_of_their_channel(shape, axis, rows):
    w = RNG.standard_normal(shape).astype(np.float32)
    got = made(w, axis, rows)
    exact, scale = oracle(w, axis)
    np.testing.assert_allclose(got["scale"], scale, rtol=3e-7)
    assert np.abs(got["codes"] - exact).max() <= 0.5 + 1e-4
    assert np.abs(got["codes"]).max(axis=tuple(i for i in range(w.ndim) if i != axis)).tolist() == [LARGEST] * len(
        scale
    )
    np.testing.assert_array_equal(got["codes"], made(w, axis, 7)["codes"])


def test_two_products_fit_16_bits_so_that_no_processor_saturates():
    assert 2 * 255 * LARGEST < 2**15


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
    assert codes[3].tolist() == [64] * 4


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
