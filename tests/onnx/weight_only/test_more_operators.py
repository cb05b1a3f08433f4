"""Weights of batched products, Einsum and operators of com.microsoft, run in onnxruntime against the originals."""

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

from activation_graphs import normal
from modelopt_rs import quantize_file
from modelopt_rs.planning.onnx import OnnxOptions

MS = "com.microsoft"
IDS = np.array([[1, 5, 3], [2, 2, 0]], np.int32)
TABLES = {"t": normal(64, 32), "p": normal(16, 32), "s": normal(2, 32), "g": np.ones(32, np.float32), "b": normal(32)}

# By name: the nodes, the feed, the weights.
CASES = {
    "MatMul of one matrix of three axes": (
        [("MatMul", "xw", {}, "")], {"x": normal(3, 5, 64)}, {"w": normal(1, 64, 48)}),
    "MatMul of a batch": ([("MatMul", "xw", {}, "")], {"x": normal(4, 5, 64)}, {"w": normal(4, 64, 48)}),
    "MatMul of heads": ([("MatMul", "xw", {}, "")], {"x": normal(2, 4, 5, 64)}, {"w": normal(1, 4, 64, 32)}),
    "Einsum": ([("Einsum", "xw", {"equation": "bti,oi->bto"}, "")], {"x": normal(2, 5, 64)}, {"w": normal(48, 64)}),
    "Einsum of heads": ([("Einsum", "xw", {"equation": "btd, dhk -> bthk"}, "")],
                        {"x": normal(2, 5, 64)}, {"w": normal(64, 4, 16)}),
    "ConvTranspose": ([("ConvTranspose", "xw", {}, "")], {"x": normal(1, 32, 6, 6)}, {"w": normal(32, 16, 3, 3)}),
    "RNN": ([("RNN", "xwr", {"hidden_size": 32}, "")], {"x": normal(6, 2, 32)},
            {"w": normal(1, 32, 32, scale=0.1), "r": normal(1, 32, 32, scale=0.1)}),
    "Attention": ([("Attention", "xwb", {"num_heads": 4}, MS)], {"x": normal(2, 5, 32)},
                  {"w": normal(32, 96, scale=0.2), "b": normal(96)}),
    "FusedMatMul": ([("FusedMatMul", "xw", {"alpha": 0.5, "transB": 1}, MS)],
                    {"x": normal(2, 5, 64)}, {"w": normal(48, 64)}),
    "FusedGemm": ([("FusedGemm", "xwb", {"activation": "Relu"}, MS)], {"x": normal(5, 64)},
                  {"w": normal(64, 48), "b": normal(48)}),
    "FusedConv": ([("FusedConv", "xw", {"activation": "Relu"}, MS)], {"x": normal(1, 16, 9, 9)},
                  {"w": normal(16, 16, 3, 3)}),
    "EmbedLayerNormalization": ([("EmbedLayerNormalization", "xutpsgb", {}, MS)],
                                {"x": IDS, "u": np.zeros_like(IDS)}, TABLES),
}  # fmt: skip

RANKS = {"ConvTranspose": 4, "RNN": 4, "FusedGemm": 2, "FusedConv": 4}


def written(path, nodes, feed, weights):
    made = [
        helper.make_node(op, list(names), ["y"] if op != "RNN" else ["y", ""], domain=domain, name=op, **attributes)
        for op, names, attributes, domain in nodes
    ]
    if made[0].op_type == "EmbedLayerNormalization":
        made[0].output.append("mask")
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
    inputs = [helper.make_tensor_value_info(name, kinds[x.dtype], x.shape) for name, x in feed.items()]
    initializers = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    rank = RANKS.get(made[0].op_type, 3)
    rank = len(made[0].attribute[0].s.decode().split("->")[1].strip()) if made[0].op_type == "Einsum" else rank
    rank = max(rank, next(iter(feed.values())).ndim) if made[0].op_type == "MatMul" else rank
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"d{i}" for i in range(rank)])]
    graph = helper.make_graph(made, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def run(path, feed, *, plain=False):
    options = SessionOptions()
    if plain:
        options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    return InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bits", [8, 4])
def test_the_weights_of_an_operator_are_quantized(tmp_path, name, bits):
    """H11, H12: the result in onnxruntime is that of the float operator with the weights that are stored."""
    nodes, feed, weights = CASES[name]
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    written(before, nodes, feed, weights)
    report = quantize_file(before, after, bits=bits, run=None)
    large = [row for row in report.tensors if row.bytes_before >= 2048]
    assert {row.decision for row in large} == {"quantize"}, [row.reason for row in large]
    x, y = run(before, feed), run(after, feed)
    assert 10 * np.log10(np.square(x).sum() / np.square(x - y).sum()) > (30 if bits == 8 else 10)
    np.testing.assert_allclose(run(after, feed, plain=True), y, rtol=1e-3, atol=1e-3 * np.abs(x).max())


@pytest.mark.parametrize("name", ["MatMul of a batch", "Einsum", "ConvTranspose", "RNN"])
def test_a_portable_model_of_them_is_standard(tmp_path, name):
    nodes, feed, weights = CASES[name]
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    written(before, nodes, feed, weights)
    quantize_file(before, after, run=None, onnx=OnnxOptions(target="portable"))
    assert "DequantizeLinear" in [node.op_type for node in onnx.load(after).graph.node]
    x, y = run(before, feed), run(after, feed)
    assert 10 * np.log10(np.square(x).sum() / np.square(x - y).sum()) > 30


def test_an_einsum_that_sums_nothing_of_a_weight_is_left_alone(tmp_path):
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    written(before, [("Einsum", "xw", {"equation": "bi,oi->boi"}, "")], {"x": normal(2, 64)}, {"w": normal(48, 64)})
    [row] = quantize_file(before, after, run=None).tensors
    assert row.reason == "an Einsum that does not sum over an axis of it and keep another"
