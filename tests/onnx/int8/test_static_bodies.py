"""Static activations of layers in the bodies of If, Loop and Scan: calibrated there, and computed in int8 there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
import onnx
import onnxruntime
from onnx import TensorProto, helper

import modelopt_rs as mo
from modelopt_rs.planning.onnx import OnnxOptions
from onnx_graphs import model, node, value

RNG = np.random.default_rng(5)
N64 = ["n", 64]


def normal(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)


def body(name: str, nodes: Any, inputs: Any, outputs: Any) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, inputs, outputs)


def chosen() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """An If whose branches take a value from outside, by a MatMul and by a Gemm with a bias."""
    first = body("then", [node("MatMul", ["a", "w"], ["t"])], [], [value("t", N64)])
    nodes = [node("Tanh", ["a"], ["e0"]), node("Gemm", ["e0", "v", "b"], ["e"], transB=1)]
    second = body("else", nodes, [], [value("e", N64)])
    made = [node("Relu", ["x"], ["a"]), node("If", ["c"], ["y"], then_branch=first, else_branch=second)]
    weights = {"w": normal(64, 64), "v": normal(64, 64, seed=1), "b": np.ones(64, np.float32)}
    proto = model(made, [value("x", N64), value("c", [], TensorProto.BOOL)], [value("y", N64)], weights)
    return proto, {"x": normal(8, 64, seed=3), "c": np.array(True)}


def repeated() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A Loop whose state meets a MatMul with a bias in every run."""
    nodes = [node("MatMul", ["s", "w"], ["m"]), node("Add", ["m", "b"], ["p"]), node("Tanh", ["p"], ["s2"])]
    nodes.append(node("Identity", ["go"], ["go2"]))
    inputs = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("s", N64)]
    looped = body("loop", nodes, inputs, [value("go2", [], TensorProto.BOOL), value("s2", N64)])
    weights = {"w": normal(64, 64), "b": np.full(64, 0.1, np.float32), "v": normal(64, 96, seed=1)}
    made = [node("Loop", ["k", "", "x"], ["l"], body=looped), node("MatMul", ["l", "v"], ["y"])]
    proto = model(made, [value("x", N64), value("k", [], TensorProto.INT64)], [value("y", ["n", 96])], weights)
    return proto, {"x": normal(8, 64, seed=3), "k": np.array(3)}


def scanned() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A Scan over steps, with a weight for the state and one for the step."""
    nodes = [node("MatMul", ["s", "w"], ["a"]), node("MatMul", ["e", "v"], ["b"]), node("Sub", ["a", "b"], ["d"])]
    nodes += [node("Tanh", ["d"], ["s2"]), node("Identity", ["s2"], ["o"])]
    inputs, outputs = [value("s", [2, 64]), value("e", [2, 32])], [value("s2", [2, 64]), value("o", [2, 64])]
    step = body("step", nodes, inputs, outputs)
    made = [node("Scan", ["h", "x"], ["z", "y"], body=step, num_scan_inputs=1)]
    weights = {"w": normal(64, 64), "v": normal(32, 64, seed=1), "h": np.zeros((2, 64), np.float32)}
    proto = model(made, [value("x", [5, 2, 32])], [value("y", [5, 2, 64])], weights)
    return proto, {"x": normal(5, 2, 32, seed=3)}


def kernels(path: Path, to: Path) -> list[str]:
    """The operators that onnxruntime runs, in the graph and in bodies."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(to), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graphs, found = [onnx.load(to).graph], []
    while graphs:
        for each in graphs.pop().node:
            found.append(each.op_type)
            graphs += [attribute.g for attribute in each.attribute if attribute.HasField("g")]
    return found


def quantized(path: Path, proto: Any, calibrate: Any, **options: Any) -> Any:
    onnx.save(proto, path / "a.onnx")
    onnx_options = OnnxOptions(activations="static", calibrate=calibrate, **options)
    return mo.quantize_file(path / "a.onnx", path / "b.onnx", onnx=onnx_options, durable=False)


def outputs(path: Path, feed: Any) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]


@pytest.mark.parametrize(("made", "layers"), [(repeated, 2), (scanned, 2), (chosen, 2)])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_products_in_bodies_are_computed_in_int8(tmp_path: Path, made: Any, layers: int, bias_correction: bool) -> None:
    """H30: samples go through the bodies, and each has its grid within."""
    proto, feed = made()
    samples = [feed] if made is not chosen else [feed, {**feed, "c": np.array(False)}]
    report = quantized(tmp_path, proto, samples, bias_correction=bias_correction)
    reasons = {each.name: each.reason for each in report.tensors if each.name in "wv"}
    assert all(each == "int8, a scale for each output; activations by calibrated ranges" for each in reasons.values())
    found = kernels(tmp_path / "b.onnx", tmp_path / "c.onnx")
    assert sum(each in ("MatMulIntegerToFloat", "QGemm") for each in found) == layers
    for sample in samples:
        want = outputs(tmp_path / "a.onnx", sample)
        assert np.linalg.norm(outputs(tmp_path / "b.onnx", sample) - want) < 0.05 * np.linalg.norm(want)


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_that_no_sample_gets_to_has_its_weights_alone_quantized(tmp_path: Path, taken: bool) -> None:
    proto, feed = chosen()
    first = next(each.g for each in proto.graph.node[1].attribute if each.name == "then_branch")
    first.node[0].input[0] = "t0"  # so that each branch makes what its layer takes
    first.node.insert(0, node("Sigmoid", ["a"], ["t0"]))
    report = quantized(tmp_path, proto, {**feed, "c": np.array(taken)})
    reasons = {each.name: each.reason for each in report.tensors}
    idle, other = ("v", "w") if taken else ("w", "v")
    assert "no sample gets to its body" in reasons[idle]
    assert reasons[idle].startswith("Cast and Mul")
    assert reasons[other] == "int8, a scale for each output; activations by calibrated ranges"
    for truth in (True, False):
        sample = {**feed, "c": np.array(truth)}
        want = outputs(tmp_path / "a.onnx", sample)
        assert np.linalg.norm(outputs(tmp_path / "b.onnx", sample) - want) < 0.05 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("options", "why"), [({"equalize": True}, "equalize and smooth"), ({"smooth": 0.5}, "equalize and smooth")]
)
def test_what_does_not_reach_into_bodies_is_said(tmp_path: Path, options: Any, why: str) -> None:
    proto, feed = repeated()
    report = quantized(tmp_path, proto, feed, **options)
    reasons = {each.name: each.reason for each in report.tensors}
    assert f"{why} do not reach there" in reasons["w"]
    assert reasons["v"] == "int8, a scale for each output; activations by calibrated ranges"


def test_a_convolution_in_a_body_has_its_weight_alone_quantized(tmp_path: Path) -> None:
    branches = [
        body(name, [node(kind, ["x", *more], [name])], [], [value(name, [1, 64, 5, 5])])
        for name, kind, more in (("t", "Conv", ["w"]), ("e", "Relu", []))
    ]
    made = [node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    inputs = [value("x", [1, 64, 5, 5]), value("c", [], TensorProto.BOOL)]
    proto = model(made, inputs, [value("y", [1, 64, 5, 5])], {"w": normal(64, 64, 1, 1)})
    report = quantized(tmp_path, proto, {"x": normal(1, 64, 5, 5), "c": np.array(True)})
    assert "only of MatMul and Gemm activations are calibrated there" in report.tensors[0].reason
    assert report.totals.changed == 1
