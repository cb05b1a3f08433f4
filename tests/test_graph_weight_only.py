"""A graph rewritten to quantized weights computes what the float graph computes with those weights dequantized."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402
from onnx_graphs import Quantized, dense, model, node, run, value, with_weight  # noqa: E402

from modelopt_rs.pipeline.onnx_options import OnnxOptions  # noqa: E402
from modelopt_rs.pipeline.plan import OptionError, QuantizeOptions  # noqa: E402

EXACT = OnnxOptions(accuracy_level=0)
PORTABLE = OnnxOptions(target="portable")
SCHEMES = ("symmetric", "asymmetric")


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def off(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The largest difference over the largest value."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want, strict=True))


def matmul(k: int = 128, n: int = 264, dtype: Any = np.float32, opset: int = 17) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(
        [node("MatMul", ["x", "w"], ["y"], name="dense")],
        [value("x", ["b", k], element)],
        [value("y", ["b", n], element)],
        {"w": weights(k, n).astype(dtype)},
        opset=opset,
    )


def inputs(proto: onnx.ModelProto, batch: int = 3) -> dict[str, np.ndarray]:
    """Reproducible inputs; a symbolic dimension is `batch`."""
    feeds = {}
    for i, info in enumerate(proto.graph.input):
        shape = [d.dim_value or batch for d in info.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        x = np.random.default_rng(7 + i).normal(size=shape)
        feeds[info.name] = (np.abs(x) * 10).astype(dtype) if dtype.kind == "i" else x.astype(dtype)
    return feeds


class Case:
    """A model with the weight "w", and how it is cut into blocks: by 8 bits and by fewer, for each target."""

    def __init__(self, proto: onnx.ModelProto, axes: tuple[int, int], blocks: dict[tuple[str, int], int]) -> None:
        self.proto, (self.in_axis, self.out_axis), self.blocks = proto, axes, blocks


def _blocks(onnxruntime8: int, below: int) -> dict[tuple[str, int], int]:
    return {(target, bits): (onnxruntime8 if target == "onnxruntime" else 0) if bits == 8 else below
            for target in ("onnxruntime", "portable") for bits in (8, 4, 2)}  # fmt: skip


def _one(operator: str, w: np.ndarray, x: list[Any], y: list[Any], **attributes: Any) -> onnx.ModelProto:
    return model([node(operator, ["x", "w"], ["y"], **attributes)], [value("x", x)], [value("y", y)], {"w": w})


def _recurrent(operator: str, gates: int, dirs: int) -> onnx.ModelProto:
    made = node(operator, ["x", "w", "r"], ["y"], hidden_size=4, direction="bidirectional" if dirs == 2 else "forward")
    # So small that it stays: one weight changes at a time.
    r = weights(dirs, 4 * gates, 4, seed=1) * np.float32(0.1)
    arrays = {"w": weights(dirs, 4 * gates, 64), "r": r}
    return model([made], [value("x", [5, "b", 64])], [value("y", [5, dirs, "b", 4])], arrays)


CASES: dict[str, Callable[[], Case]] = {
    "MatMul": lambda: Case(matmul(), (0, 1), _blocks(128, 32)),
    "MatMul, 100 inputs": lambda: Case(matmul(100, 360), (0, 1), _blocks(128, 32)),
    "Gemm": lambda: Case(_one("Gemm", weights(128, 264), ["b", 128], ["b", 264]), (0, 1), _blocks(128, 32)),
    "Gemm, transB": lambda: Case(
        _one("Gemm", weights(264, 128), ["b", 128], ["b", 264], transB=1), (1, 0), _blocks(128, 32)
    ),
    "Conv": lambda: Case(_one("Conv", weights(16, 64, 3, 3), ["b", 64, 9, 9], ["b", 16, 7, 7]), (1, 0), _blocks(0, 32)),
    "Conv, depthwise": lambda: Case(
        _one("Conv", weights(64, 1, 3, 3), ["b", 64, 9, 9], ["b", 64, 7, 7], group=64), (1, 0), _blocks(0, 0)
    ),
    "Conv, 1-dimensional": lambda: Case(_one("Conv", weights(24, 48, 5), ["b", 48, 9], ["b", 24, 5]), (1, 0), _blocks(0, 16)),
    "ConvTranspose": lambda: Case(
        _one("ConvTranspose", weights(64, 10, 3, 3), ["b", 64, 9, 9], ["b", 10, 11, 11]), (0, 1), _blocks(0, 32)
    ),
    "LSTM": lambda: Case(_recurrent("LSTM", 4, 1), (2, 1), _blocks(0, 32)),
    "GRU, both directions": lambda: Case(_recurrent("GRU", 3, 2), (2, 1), _blocks(0, 32)),
    "Gather": lambda: Case(
        model(
            [node("Gather", ["w", "i"], ["y"])],
            [value("i", ["b", 2], TensorProto.INT64)],
            [value("y", ["b", 2, 64])],
            {"w": weights(80, 64)},
        ),
        (1, 0),
        _blocks(0, 32),
    ),
}


def expected(case: Case, options: QuantizeOptions, block: int) -> onnx.ModelProto:
    change = lambda w: dense(w, options, block, case.in_axis, case.out_axis)  # noqa: E731
    return with_weight(case.proto, "w", change)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", CASES)
def test_every_operator_computes_with_the_weights_that_the_codes_stand_for(
    name: str, bits: int, scheme: str, target: str
) -> None:
    case, options = CASES[name](), QuantizeOptions(bits=bits, scheme=scheme)
    small = Quantized(case.proto, options, OnnxOptions(target=target, accuracy_level=0))
    assert small.decisions["w"].action == "quantize", small.decisions["w"].reason
    feeds = inputs(case.proto)
    want = run(expected(case, options, case.blocks[target, bits]), feeds)
    assert off(run(small.proto, feeds), want) < 2e-5, small.decisions["w"].reason
    assert off(run(case.proto, feeds), want) > 2e-5  # the tolerance can tell the float weights from their codes
    if target == "portable":
        assert [opset.domain for opset in small.proto.opset_import] == [""]
