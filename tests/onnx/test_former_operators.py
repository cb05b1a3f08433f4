"""Operators of former opsets mean the same after the opset is raised, or it isn't raised."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")

import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

import modelopt_rs as mo
from modelopt_rs import UnsupportedError
from modelopt_rs.onnx.opset import raise_opset
from onnx_graphs import node, run, value

X = np.random.default_rng(0).standard_normal((1, 2, 5, 7)).astype(np.float32)
IR = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7}


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def built(opset: int, nodes: Any, weights: dict[str, Any], outputs: int = 1) -> onnx.ModelProto:
    names = ["y", "z"][:outputs]
    initializers = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "g", [value("x", [1, 2, 5, 7])], [value(n, None) for n in names], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR.get(opset, 8))


def raised(proto: onnx.ModelProto, opset: int = 21) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    raise_opset(model, opset)
    assert model.graph.opset_imports[""] == opset
    return ir.to_proto(model)


def assert_same(proto: onnx.ModelProto) -> None:
    for opset in (21, 25):
        for a, b in zip(run(proto, {"x": X}), run(raised(proto, opset), {"x": X}), strict=True):
            assert a.shape == b.shape
            assert np.allclose(a, b, 1e-5, 1e-6)


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1.7, 2.0), (2.0, 2.0), (1.0, 3.3)])
def test_what_is_resized_finds_its_places_as_before(opset: int, mode: str, scales: tuple[float, float]) -> None:
    """Before opset 11 a pixel of the output is the one at ``x / scale``; onnx's converter takes centers of pixels."""
    s = floats(1, 1, *scales)
    kind = "Resize" if opset == 10 else "Upsample"
    made = (
        node("Upsample", ["x"], ["y"], mode=mode, scales=[float(each) for each in s])
        if opset == 7
        else node(kind, ["x", "s"], ["y"], mode=mode)
    )
    assert_same(built(opset, [made], {} if opset == 7 else {"s": s}))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(0.6, 0.5), (1.0, 0.3), (0.9, 0.9)])
def test_what_is_reduced_finds_its_places_as_before(mode: str, scales: tuple[float, float]) -> None:
    assert_same(built(10, [node("Resize", ["x", "s"], ["y"], mode=mode)], {"s": floats(1, 1, *scales)}))


def test_what_is_resized_in_a_body_finds_its_places_as_before() -> None:
    def branch(name: str, mode: str) -> onnx.GraphProto:
        return helper.make_graph([node("Resize", ["x", "s"], [name], mode=mode)], name, [], [value(name, None)])

    chosen = node("If", ["c"], ["y"], then_branch=branch("a", "linear"), else_branch=branch("b", "nearest"))
    for truth in (True, False):
        assert_same(built(10, [chosen], {"s": floats(1, 1, 1.5, 2), "c": np.array(truth)}))


@pytest.mark.parametrize("scales", [(0.5, 2.0), (3.0, 0.9), (1.5, 0.99)])
def test_what_is_enlarged_and_reduced_at_once_by_the_nearest_is_not_raised(scales: tuple[float, float]) -> None:
    proto = built(10, [node("Resize", ["x", "s"], ["y"], mode="nearest")], {"s": floats(1, 1, *scales)})
    with pytest.raises(UnsupportedError, match="Resize takes the nearest by scales"):
        raised(proto)


@pytest.mark.parametrize("opset", [7, 10])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_a_pad_may_have_a_value_that_its_mode_does_not_look_at(opset: int, mode: str) -> None:
    made = node("Pad", ["x"], ["y"], mode=mode, pads=[0, 0, 1, 2, 0, 0, 2, 1], value=3.0)
    assert_same(built(opset, [made], {}))


@pytest.mark.parametrize(
    "made",
    [
        node("BatchNormalization", ["x", "a", "b", "a", "c"], ["y"]),
        node("PRelu", ["x", "d"], ["y"]),
        node("InstanceNormalization", ["x", "a", "b"], ["y"]),
    ],
)
@pytest.mark.parametrize("opset", [7, 8])
def test_initializers_of_former_versions_need_not_be_inputs(made: Any, opset: int) -> None:
    """onnxruntime takes them so, up to IR version 3 too."""
    weights = {"a": floats(1, 2), "b": floats(0, 1), "c": floats(1, 3), "d": floats(0.1, 0.2).reshape(2, 1, 1)}
    assert_same(built(opset, [made], {name: weights[name] for name in dict.fromkeys(made.input[1:])}))


@pytest.mark.parametrize("opset", [7, 11, 12])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_a_hardmax_that_would_mean_something_else_is_not_raised(opset: int, axis: int) -> None:
    if opset < 11 and axis < 0:
        axis = 3
    with pytest.raises(UnsupportedError, match="Hardmax has another meaning"):
        raised(built(opset, [node("Hardmax", ["x"], ["y"], axis=axis)], {}))


@pytest.mark.parametrize(
    ("opset", "nodes"),
    [
        (11, [node("Softmax", ["x"], ["y"])]),
        (11, [node("LogSoftmax", ["x"], ["y"], axis=-2)]),
        (9, [node("Clip", ["x"], ["y"], max=0.5)]),
        (9, [node("Slice", ["x"], ["y"], starts=[0, -3], ends=[1, 2**63 - 1], axes=[0, 2])]),
        (9, [node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]),
        (12, [node("Unsqueeze", ["x"], ["u"], axes=[0, -1]), node("Squeeze", ["u"], ["y"], axes=[0])]),
        (11, [node("ReduceSum", ["x"], ["y"], axes=[-1])]),
        (10, [node("Dropout", ["x"], ["y"], ratio=0.3)]),
        (10, [node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)]),
    ],
)
def test_attributes_that_became_inputs_mean_the_same(opset: int, nodes: Any) -> None:
    assert_same(built(opset, nodes, {}))


@pytest.mark.parametrize("kind", ["Resize", "Upsample"])
def test_a_convolution_before_one_has_fewer_bits_and_the_same_outputs(tmp_path: Any, kind: str) -> None:
    """Below 8 bits a convolution needs a later opset."""

    nodes = [node("Conv", ["x", "w"], ["h"]), node(kind, ["h", "s"], ["y"], mode="linear")]
    w = np.random.default_rng(1).standard_normal((64, 2, 3, 3)).astype(np.float32)
    onnx.save(built(10 if kind == "Resize" else 9, nodes, {"w": w, "s": floats(1, 1, 2, 2)}), tmp_path / "a.onnx")
    assert mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", bits=4, durable=False).totals.changed == 1
    a, b = (run(onnx.load(tmp_path / f"{name}.onnx"), {"x": X})[0] for name in "ab")
    assert np.linalg.norm(a - b) < 0.15 * np.linalg.norm(a)
