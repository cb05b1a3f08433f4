"""Weights that a graph computes of constants are quantized as if they stood in it."""

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper
from onnxruntime import InferenceSession

from activation_graphs import model, node, normal
from modelopt_rs import optimize_file, quantize_file
from modelopt_rs.files.onnx import OnnxSource
from modelopt_rs.onnx.folding import Folding
from modelopt_rs.planning.onnx import OnnxOptions

X = normal(5, 64)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


PATHS = {
    "Slice": ([node("Slice", ["o", "a", "b", "c"], ["w"])],
              {"o": normal(64, 192), "a": ints(64), "b": ints(160), "c": ints(1)}),
    "Reshape": ([node("Reshape", ["o", "a"], ["w"])], {"o": normal(32, 192), "a": ints(64, 96)}),
    "Transpose of a Slice": ([node("Slice", ["o", "a", "b", "c"], ["s"]), node("Transpose", ["s"], ["w"])],
                             {"o": normal(192, 64), "a": ints(0), "b": ints(96), "c": ints(0)}),
    "Concat": ([node("Concat", ["o", "p"], ["w"], axis=1)], {"o": normal(64, 48), "p": normal(64, 48)}),
    "Squeeze": ([node("Squeeze", ["o", "a"], ["w"])], {"o": normal(1, 64, 96), "a": ints(0)}),
    "Unsqueeze and Squeeze": ([node("Unsqueeze", ["o", "a"], ["u"]), node("Squeeze", ["u", "a"], ["w"])],
                              {"o": normal(64, 96), "a": ints(1)}),
    "Split": ([node("Split", ["o"], ["w", "rest"], axis=1), node("MatMul", ["x", "rest"], ["z"])],
              {"o": normal(64, 192)}),
    "a normalized weight": ([node("ReduceL2", ["o"], ["n"], axes=[0]), node("Div", ["o", "n"], ["u"]),
                             node("Mul", ["u", "g"], ["w"])],
                            {"o": normal(64, 96), "g": normal(1, 96)}),
    "Gather": ([node("Gather", ["o", "a"], ["w"]), node("Gather", ["o", "b"], ["v"]),
                node("MatMul", ["x", "v"], ["z"])],
               {"o": normal(2, 64, 96), "a": np.array(1), "b": np.array(0)}),
    "Expand": ([node("Expand", ["o", "a"], ["w"])], {"o": normal(64, 96), "a": ints(1, 1)}),
    "Cast of a Reshape": ([node("Reshape", ["o", "a"], ["h"]), node("Cast", ["h"], ["w"], to=1)],
                          {"o": normal(32, 192).astype(np.float16), "a": ints(64, 96)}),
}  # fmt: skip


def quantized(tmp_path, proto, **options):
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    before.write_bytes(proto.SerializeToString())
    report = quantize_file(before, after, run=None, **options)
    return report, before, after


def outputs(path, feed):
    return InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


def sqnr(x, y):
    return 10 * np.log10(np.square(x).sum() / np.square(x - y).sum())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [{}, {"onnx": OnnxOptions(activations="dynamic")}], ids=["weights", "dynamic"])
def test_a_computed_weight_is_quantized_like_a_stored_one(tmp_path, path, options):
    """H27."""
    nodes, weights = PATHS[path]
    outs = {"y": ["n", 96], **({"z": ["n", 96]} if path in ("Split", "Gather") else {})}
    proto = model([*nodes, node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, outs, weights, opset=13)
    _, before, after = quantized(tmp_path, proto, **options)
    for a, b in zip(outputs(before, {"x": X}), outputs(after, {"x": X}), strict=True):
        assert sqnr(a, b) > (35 if options else 38)
    assert after.stat().st_size < before.stat().st_size * (0.65 if path.startswith(("Cast", "Slice", "Tr")) else 0.35)
    folded = {"Slice", "Concat", "Split", "Squeeze", "Gather", "Expand"}
    assert {n.op_type for n in onnx.load(after).graph.node}.isdisjoint(folded)


def test_a_weight_that_expands_to_more_than_it_is_stays_what_it_is(tmp_path):
    """H20 and H27: its codes would take more bytes."""
    nodes = [node("Expand", ["o", "a"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    proto = model(nodes, {"x": [8, "n", 64]}, {"y": [8, "n", 96]}, {"o": normal(64, 96), "a": ints(8, 64, 96)})
    report, before, after = quantized(tmp_path, proto)
    assert report.totals.changed == 0
    assert after.stat().st_size <= before.stat().st_size + 64


def test_recurrent_weights_cut_from_one_tensor_are_quantized(tmp_path):
    """H27: half of a model."""
    both, shape = normal(256, 56), ["steps", "n", 24]
    weights = {"o": both, "a": ints(0), "b": ints(24), "c": ints(56), "axis": ints(1), "zero": ints(0)}
    nodes = [
        node("Slice", ["o", "a", "b", "axis"], ["i"]),
        node("Unsqueeze", ["i", "zero"], ["w"]),
        node("Slice", ["o", "b", "c", "axis"], ["h"]),
        node("Unsqueeze", ["h", "zero"], ["r"]),
        node("LSTM", ["x", "w", "r"], ["y"], hidden_size=32),
    ]
    weights["o"] = np.concatenate([normal(128, 24, scale=0.3), normal(128, 32, scale=0.15)], 1)
    proto = model(nodes, {"x": shape}, {"y": ["steps", 1, "n", 32]}, weights, opset=13)
    _, before, after = quantized(tmp_path, proto, onnx=OnnxOptions(activations="dynamic"))
    feed = {"x": normal(9, 2, 24)}
    assert sqnr(outputs(before, feed)[0], outputs(after, feed)[0]) > 35
    assert "DynamicQuantizeLSTM" in [n.op_type for n in onnx.load(after).graph.node]
    assert after.stat().st_size < 0.45 * before.stat().st_size


def test_a_computed_weight_in_a_body_is_quantized(tmp_path):
    """H27."""
    inside = [node("Reshape", ["o", "a"], ["w"]), node("MatMul", ["x", "w"], ["inner"])]
    out = helper.make_tensor_value_info("inner", 1, ["n", 96])
    body = helper.make_graph(inside, "body", [], [out])
    nodes = [node("If", ["yes"], ["y"], then_branch=body, else_branch=body)]
    weights = {"o": normal(32, 192), "a": ints(64, 96), "yes": np.array(True)}
    _, before, after = quantized(tmp_path, model(nodes, {"x": ["n", 64]}, {"y": ["n", 96]}, weights))
    assert sqnr(outputs(before, {"x": X})[0], outputs(after, {"x": X})[0]) > 38
    assert after.stat().st_size < 0.6 * before.stat().st_size


@pytest.mark.parametrize("why", ["excluded", "also an output", "over the memory"])
def test_a_computed_weight_that_is_not_quantized_is_computed_as_before(tmp_path, why):
    nodes, weights = PATHS["Slice"]
    outs = {"y": ["n", 96], **({"w": [64, 96]} if why == "also an output" else {})}
    proto = model([*nodes, node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, outs, weights, opset=13)
    options = {"excluded": {"exclude": ["w_folded"]}, "over the memory": {"max_memory": 2**17}}.get(why, {})
    _, before, after = quantized(tmp_path, proto, **options)
    assert [n.op_type for n in onnx.load(after).graph.node] == ["Slice", "MatMul"]
    assert np.array_equal(outputs(before, {"x": X})[0], outputs(after, {"x": X})[0])


def test_codes_are_not_computed_to_floats(tmp_path):
    """A model that is quantized already stays so."""
    codes = (normal(64, 96) * 20).astype(np.int8)
    nodes = [node("Cast", ["o"], ["f"], to=1), node("Mul", ["f", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    proto = model(nodes, {"x": ["n", 64]}, {"y": ["n", 96]}, {"o": codes, "s": normal(1, 96)}, opset=13)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with OnnxSource(tmp_path / "m.onnx") as source:
        assert set(Folding(source, 2**30).tensors) == {"o"}


def test_constants_that_would_grow_are_left(tmp_path):
    """64 times a tensor beside itself would take more memory than there is."""
    nodes = [node("Concat", [f"w{i}", f"w{i}"], [f"w{i + 1}"], axis=1) for i in range(40)]
    nodes.append(node("MatMul", ["x", "w40"], ["y"]))
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", 64])],
                          [helper.make_tensor_value_info("y", 1, None)],
                          [numpy_helper.from_array(normal(64, 8), "w0")]),
        opset_imports=[helper.make_opsetid("", 13)], ir_version=8)  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with OnnxSource(tmp_path / "m.onnx") as source:
        assert set(Folding(source, 2**20).tensors) == {"w0"}


@pytest.mark.parametrize("is_quantized", [True, False])
def test_what_several_bodies_compute_alike_is_stored_once(tmp_path, is_quantized):
    """As exporters leave the weights of an LSTM in both branches of an If."""

    def branch(name):
        nodes = [
            node("Reshape", ["o", "a"], [f"{name}_w"]),
            node("MatMul", ["x", f"{name}_w"], [f"{name}_m"]),
            node("Tanh" if name == "then" else "Relu", [f"{name}_m"], [f"{name}_y"]),
        ]
        out = helper.make_tensor_value_info(f"{name}_y", 1, None)
        return helper.make_graph(nodes, name, [], [out])

    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch("then"), else_branch=branch("else")),
    ]
    weights = {"o": normal(32, 192), "a": ints(64, 96), "zero": np.array(0, np.float32)}
    proto = model(nodes, {"x": ["n", 64]}, {"y": ["n", 96]}, weights)
    exclude = [] if is_quantized else ["*_folded"]
    report, before, after = quantized(tmp_path, proto, exclude=exclude)
    assert report.totals.changed == int(is_quantized)
    if is_quantized:
        assert after.stat().st_size < 0.3 * before.stat().st_size
    for x in (X, -X, np.abs(X)):
        old, new = outputs(before, {"x": x})[0], outputs(after, {"x": x})[0]
        assert sqnr(old, new) > 35 if is_quantized else np.array_equal(old, new)


@pytest.mark.parametrize("left", ["w_folded", "rest_folded"])
def test_one_part_of_a_split_may_be_quantized_and_the_other_stay(tmp_path, left):
    nodes, weights = PATHS["Split"]
    outs = {"y": ["n", 96], "z": ["n", 96]}
    proto = model([*nodes, node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, outs, weights, opset=13)
    report, before, after = quantized(tmp_path, proto, exclude=[left])
    assert report.totals.changed == 1
    for a, b in zip(outputs(before, {"x": X}), outputs(after, {"x": X}), strict=True):
        assert np.array_equal(a, b) or sqnr(a, b) > 38


@pytest.mark.parametrize("exclude", [[], ["w_folded"]])
def test_the_bytes_of_a_report_are_those_that_the_files_have(tmp_path, exclude):
    nodes, weights = PATHS["Concat"]
    proto = model([*nodes, node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, {"y": ["n", 96]}, weights, opset=13)
    report, before, after = quantized(tmp_path, proto, exclude=exclude)
    assert 0 < before.stat().st_size - report.totals.bytes_before < 300
    assert 0 < after.stat().st_size - report.totals.bytes_after < 600


def test_a_target_in_bits_a_weight_counts_computed_weights_once(tmp_path):
    nodes, weights = PATHS["Concat"]
    proto = model([*nodes, node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, {"y": ["n", 96]}, weights, opset=13)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    report = optimize_file(tmp_path / "m.onnx", tmp_path / "s.onnx", target_bpw=5.5, run=None, durable=False)
    assert report.totals.changed == 1
    assert (tmp_path / "s.onnx").stat().st_size < 64 * 96 * 5.5 / 8 + 1200
    assert report.options["allocation"]["ceiling"] < (tmp_path / "m.onnx").stat().st_size + 300
