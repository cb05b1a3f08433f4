"""Valid models of unusual build through the commands: each stands for a kind that fell once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")

import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto

import modelopt_rs as mo
from modelopt_rs.onnx.crop.shapes import infer_shapes
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.run import RunOptions
from onnx_graphs import model, node, value


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype)


def quantized(path: Path, proto: Any, **options: Any) -> Any:
    onnx.save(proto, path / "a.onnx")
    return mo.quantize_file(path / "a.onnx", path / "b.onnx", **{"durable": False, **options})


def outputs(path: Path, feed: Any) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


def near(path: Path, feed: Any, by: float) -> bool:
    """Whether all outputs are as far off as `by`, relative to their size, at most."""
    pairs = zip(outputs(path / "a.onnx", feed), outputs(path / "b.onnx", feed), strict=True)
    return all(np.linalg.norm(a - b) <= by * np.linalg.norm(a) for a, b in pairs)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_a_weight_that_is_an_input_too_is_quantized_with_activations(tmp_path: Path, activations: str) -> None:
    """Up to IR version 3 all initializers are inputs."""
    proto = model([node("MatMul", ["x", "w"], ["y"])], [value("x", ["n", 64])], [value("y", ["n", 96])],
                  {"w": normal(64, 96)})  # fmt: skip
    proto.graph.input.append(value("w", [64, 96]))
    feed = {"x": normal(4, 64, seed=1)}
    given = {"calibrate": feed} if activations == "static" else {}
    options = OnnxOptions(activations=activations, **given)
    assert quantized(tmp_path, proto, onnx=options).totals.changed == 1
    assert near(tmp_path, feed, 0.03)
    assert [each.name for each in onnx.load(tmp_path / "b.onnx").graph.input] == ["x"]


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize(("bits", "off"), [(8, 0.01), (4, 0.15)])
@pytest.mark.parametrize(
    ("made", "shape", "feed"),
    [
        (node("MatMul", ["w", "x"], ["y"]), (96, 64), (64, 4)),
        (node("MatMul", ["w", "x"], ["y"]), (1, 4, 32, 64), (2, 4, 64, 3)),
        (node("Gemm", ["w", "x"], ["y"], alpha=0.5, transB=1), (96, 64), (4, 64)),
        (node("Gemm", ["w", "x"], ["y"], transA=1), (64, 96), (64, 4)),
        (node("Gemm", ["x", "w"], ["y"], transA=1), (64, 96), (64, 4)),
    ],
)
def test_a_weight_on_the_left_or_beside_what_is_turned_gets_smaller(
    tmp_path: Path, made: Any, shape: Any, feed: Any, bits: int, off: float, target: Any
) -> None:
    proto = model([made], [value("x", list(feed))], [value("y", [None] * len(feed))], {"w": normal(*shape)}, opset=21)
    report = quantized(tmp_path, proto, bits=bits, onnx=OnnxOptions(target=target), run=RunOptions())
    assert report.totals.changed == 1
    assert report.file_bytes[1] < 0.4 * report.file_bytes[0]
    assert near(tmp_path, {"x": normal(*feed, seed=1)}, off)


def test_layers_of_a_half_precision_model_are_seen(tmp_path: Path) -> None:
    """Inner values whose type the graph does not say are not float32."""
    half = TensorProto.FLOAT16
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    proto = model(nodes, [value("x", ["n", 64], half)], [value("y", ["n", 64], half)],
                  {"w": normal(64, 96, dtype=np.float16), "v": normal(96, 64, dtype=np.float16)})  # fmt: skip
    feed = {"x": normal(4, 64, seed=1, dtype=np.float16)}
    report = quantized(tmp_path, proto, bits=4, max_layer_error=0.2, run=RunOptions(inputs=feed))
    assert report.run.sqnr_db > 15
    far = quantized(tmp_path, proto, bits=4, max_layer_error=1e-3, run=RunOptions(inputs=feed), overwrite=True)
    assert all(each.reason.startswith("8 bits (") for each in far.tensors)
    assert all("on the given inputs" in each.reason for each in far.tensors)


def test_weights_of_float64_are_told(tmp_path: Path) -> None:
    """No form of codes is of float64: the summary says that they stay, and what to do."""
    double = TensorProto.DOUBLE
    proto = model([node("MatMul", ["x", "w"], ["y"])], [value("x", ["n", 64], double)], [value("y", ["n", 96], double)],
                  {"w": normal(64, 96, dtype=np.float64)})  # fmt: skip
    [warning] = quantized(tmp_path, proto, run=None).warnings
    assert "% of the result, stays as it is: a model in float32 is half as large" in warning


def test_an_lstm_whose_first_output_is_left_out_stays_one(tmp_path: Path) -> None:
    nodes = [node("LSTM", ["x", "w", "r", "", "lengths"], ["", "h"], hidden_size=32)]
    proto = model(nodes, [value("x", ["t", "b", 32]), value("lengths", ["b"], TensorProto.INT32)],
                  [value("h", [1, "b", 32])], {"w": normal(1, 128, 32), "r": normal(1, 128, 32)})  # fmt: skip
    quantized(tmp_path, proto, onnx=OnnxOptions(activations="dynamic"))
    made = onnx.load(tmp_path / "b.onnx").graph.node
    assert [list(each.output) for each in made if each.op_type == "DynamicQuantizeLSTM"] == [["", "h"]]
    assert near(tmp_path, {"x": normal(5, 2, 32), "lengths": np.array([5, 3], np.int32)}, 0.02)
    assert mo.quantize_file(tmp_path / "b.onnx", tmp_path / "c.onnx", durable=False).totals.changed == 0


@pytest.mark.parametrize("rank", [2, 3])
def test_inputs_without_a_shape_are_made_up_and_taken_as_they_come(tmp_path: Path, rank: int) -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[*range(rank)]), node("MatMul", ["t", "w"], ["y"])]
    unsaid = onnx.helper.make_tensor_value_info
    proto = model(nodes, [value("x", [None] * rank)], [value("y", [None] * rank)], {"w": normal(64, 96)})
    proto.graph.input[0].CopyFrom(unsaid("x", TensorProto.FLOAT, None))
    proto.graph.output[0].CopyFrom(unsaid("y", TensorProto.FLOAT, None))
    report = quantized(tmp_path, proto, run=RunOptions())
    assert report.run.runs > 0
    assert report.run.inputs[0].shape[-1] == 64
    feed = {"x": normal(*(2,) * (rank - 1), 64)}
    report = quantized(tmp_path, proto, run=RunOptions(inputs=feed), overwrite=True)
    assert report.run.inputs[0].shape == feed["x"].shape
    static = OnnxOptions(activations="static", calibrate=feed)
    assert quantized(tmp_path, proto, onnx=static, overwrite=True).totals.changed == 1


def test_an_input_that_is_a_number_is_still_one(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Mul", ["h", "k"], ["y"])]
    proto = model(nodes, [value("x", ["n", 64]), value("k", [])], [value("y", ["n", 96])], {"w": normal(64, 96)})
    feed = {"x": normal(2, 64), "k": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="'k' must have 0 axes"):
        quantized(tmp_path, proto, run=RunOptions(inputs=feed))


@pytest.mark.parametrize("bits", [8, 4])
def test_outputs_that_are_maps_keep_their_type(tmp_path: Path, bits: int) -> None:
    """Classifiers of scikit-learn give a list of maps from labels to probabilities."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Softmax", ["h"], ["p"]),
             node("ZipMap", ["p"], ["z"], classlabels_int64s=[*range(64)], domain="ai.onnx.ml")]  # fmt: skip
    proto = model(nodes[:2], [value("x", ["n", 64])], [value("p", ["n", 64])], {"w": normal(64, 64)})
    proto.graph.node.append(nodes[2])
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    scalar = onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = onnx.helper.make_sequence_type_proto(onnx.helper.make_map_type_proto(TensorProto.INT64, scalar))
    proto.graph.output.append(onnx.helper.make_value_info("z", maps))
    quantized(tmp_path, proto, bits=bits, run=RunOptions())
    made = onnx.load(tmp_path / "b.onnx")
    assert made.graph.output[1] == proto.graph.output[1]
    feed = {"x": normal(3, 64, seed=1)}
    assert outputs(tmp_path / "b.onnx", feed)[1][2].keys() == outputs(tmp_path / "a.onnx", feed)[1][2].keys()
    assert mo.compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx") is not None


def classifier() -> Any:
    """A network of scikit-learn as skl2onnx writes it."""
    ml = {"domain": "ai.onnx.ml"}
    nodes = [
        node("Scaler", ["x"], ["s"], offset=[0.0] * 64, scale=[1.0] * 64, **ml), node("Cast", ["s"], ["c"], to=1),
        node("MatMul", ["c", "w1"], ["m"]), node("Relu", ["m"], ["h"]), node("MatMul", ["h", "w2"], ["l"]),
        node("Softmax", ["l"], ["p"]), node("ZipMap", ["p"], ["z"], classlabels_int64s=[*range(8)], **ml),
    ]  # fmt: skip
    scalar = onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = onnx.helper.make_sequence_type_proto(onnx.helper.make_map_type_proto(TensorProto.INT64, scalar))
    inits = [onnx.numpy_helper.from_array(w, name) for name, w in (("w1", normal(64, 128)), ("w2", normal(128, 8)))]
    outs = [value("p", [None, 8]), onnx.helper.make_value_info("z", maps)]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", [None, 64])], outs, inits)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_networks_of_scikit_learn_are_cropped(tmp_path: Path) -> None:
    """What a Scaler makes has a shape, and so has all behind it, though another output is a list of maps."""
    onnx.save(proto := classifier(), tmp_path / "a.onnx")
    report = mo.crop_file(tmp_path / "a.onnx", tmp_path / "b.onnx", keep=0.5, what="ffn", durable=False)
    assert report.totals.changed == 2
    made = onnx.load(tmp_path / "b.onnx")
    assert [list(each.dims) for each in made.graph.initializer] == [[64, 64], [64, 8]]
    assert made.graph.output[1] == proto.graph.output[1]
    assert outputs(tmp_path / "b.onnx", {"x": normal(3, 64)})[0].shape == (3, 8)


def test_the_opset_of_a_model_that_gives_maps_is_raised(tmp_path: Path) -> None:
    report = quantized(tmp_path, proto := classifier(), bits=4, onnx=OnnxOptions(target="portable"))
    assert [each.reason for each in report.tensors if each.name == "w1"] == ["DequantizeLinear, blocks of 32"]
    made = onnx.load(tmp_path / "b.onnx")
    assert made.opset_import[0].version >= 21
    assert list(made.graph.output) == list(proto.graph.output)
    before, after = (outputs(tmp_path / name, {"x": normal(3, 64, seed=1)})[0] for name in ("a.onnx", "b.onnx"))
    assert np.linalg.norm(before - after) < 0.2 * np.linalg.norm(before)


def test_numbers_in_attributes_are_told_by_every_command(tmp_path: Path) -> None:
    """Trees and support vectors are no tensors: nothing of them gets smaller."""
    n = 500
    lists = {
        "nodes_treeids": [*range(n)], "nodes_nodeids": [0] * n, "nodes_featureids": [0] * n, "nodes_values": [0.0] * n,
        "nodes_modes": ["LEAF"] * n, "nodes_truenodeids": [0] * n, "nodes_falsenodeids": [0] * n,
        "target_treeids": [*range(n)], "target_nodeids": [0] * n, "target_ids": [0] * n, "target_weights": [0.1] * n,
    }  # fmt: skip
    trees = node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, **lists)
    graph = onnx.helper.make_graph([trees], "g", [value("x", [None, 4])], [value("y", [None, 1])])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    report = quantized(tmp_path, onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert report.totals.changed == 0
    pruned = mo.prune_file(tmp_path / "a.onnx", tmp_path / "p.onnx", sparsity=0.5, durable=False)
    for warnings in (report.warnings, pruned.warnings, mo.inspect_file(tmp_path / "a.onnx").warnings):
        assert [each.split("% of the file ")[1] for each in warnings] == [
            "are numbers in attributes of TreeEnsembleRegressor, no tensors: nothing makes these smaller"
        ]
    onnx.save(classifier(), tmp_path / "c.onnx")
    assert mo.inspect_file(tmp_path / "c.onnx").warnings == ()


@pytest.mark.parametrize("name", ["Scaler", "Normalizer", "Imputer", "Binarizer", "LabelEncoder"])
def test_shapes_go_through_operators_of_elements(name: str) -> None:
    given = {"Imputer": {"imputed_value_floats": [0.0]}, "LabelEncoder": {"keys_floats": [0.0], "values_int64s": [1]}}
    nodes = [node(name, ["x"], ["y"], domain="ai.onnx.ml", **given.get(name, {})), node("Flatten", ["y"], ["z"])]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", ["n", 4, 3])], [onnx.ValueInfoProto(name="z")])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    made = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    infer_shapes(made)
    assert [str(each.shape) for each in (made.graph[0].outputs[0], made.graph.outputs[0])] == ["[n,4,3]", "[n,12]"]
    assert made.graph.outputs[0].dtype == (ir.DataType.INT64 if name == "LabelEncoder" else ir.DataType.FLOAT)


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_of_groups_that_a_later_opset_has_by_channels_are_left_as_they_are(tmp_path: Path, bits: int) -> None:
    """GroupNormalization of opset 18, which onnx converts to 21 without a change: 4 bits of a Conv would need that."""
    nodes = [node("Conv", ["x", "w"], ["c"]), node("GroupNormalization", ["c", "s", "b"], ["y"], num_groups=4)]
    weights = {"w": normal(32, 16, 3, 3), "s": normal(4), "b": normal(4)}
    proto = model(nodes[:1], [value("x", ["n", 16, 8, 8])], [value("c", ["n", 32, 6, 6])], weights, opset=18)
    proto.graph.node.append(nodes[1])  # the checker calls it deprecated; onnxruntime runs it
    proto.graph.output.append(value("y", ["n", 32, 6, 6]))
    report = quantized(tmp_path, proto, bits=bits, run=RunOptions())
    assert report.totals.changed == 1
    assert onnx.load(tmp_path / "b.onnx").opset_import[0].version == 18
    assert report.run.sqnr_db > 30


@pytest.mark.parametrize("bits", [8, 4])
def test_experts_of_a_fused_mixture_get_smaller(tmp_path: Path, bits: int) -> None:
    nodes = [
        node("MatMul", ["x", "r"], ["p"]),
        node("MoE", ["x", "p", "a", "", "b"], ["y"], k=2, activation_type="gelu", domain="com.microsoft"),
    ]
    weights = {"r": normal(32, 4), "a": normal(4, 64, 32), "b": normal(4, 32, 64)}
    proto = model(nodes[:1], [value("x", ["n", 32])], [value("p", ["n", 4])], weights, opset=21)
    proto.graph.node.append(nodes[1])
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    proto.graph.output.append(value("y", ["n", 32]))
    report = quantized(tmp_path, proto, bits=bits, run=RunOptions())
    assert {each.name for each in report.tensors if each.decision == "quantize"} >= {"a", "b"}
    assert report.file_bytes[1] < 0.4 * report.file_bytes[0]
    assert near(tmp_path, {"x": normal(3, 32, seed=1)}, 0.2 if bits == 4 else 0.02)


def test_a_shape_is_taken_of_codes(tmp_path: Path) -> None:
    """H36: else a whole tensor is made of numbers for it, in every call."""
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Shape", ["c"], ["s"]), node("Relu", ["c"], ["r"]),
             node("Conv", ["r", "v"], ["d"]), node("Expand", ["d", "s"], ["y"])]  # fmt: skip
    proto = model(nodes, [value("x", ["n", 16, 8, 8])], [value("y", ["n", 32, 6, 6])],
                  {"w": normal(32, 16, 3, 3), "v": normal(32, 32, 1, 1)})  # fmt: skip
    feed = {"x": normal(2, 16, 8, 8)}
    quantized(tmp_path, proto, onnx=OnnxOptions(activations="static", calibrate=feed))
    assert near(tmp_path, feed, 0.05)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "c.onnx")
    onnxruntime.InferenceSession(tmp_path / "b.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "c.onnx").graph
    made = {name: each.op_type for each in graph.node for name in each.output}
    assert [made[each.input[0]] for each in graph.node if each.op_type == "Shape"] == ["QLinearConv"]
    assert [each.op_type for each in graph.node].count("QLinearConv") == 2


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_a_product_of_two_weights_stays_and_the_rest_gets_smaller(tmp_path: Path, operator: str, bits: int) -> None:
    """Each of the two would have taken the place of the node: the runtime computes it once, in floats."""
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node(operator, ["t", "w"], ["product"]),
        node("MatMul", ["x", "v"], ["m"]),
        node("Add", ["m", "product"], ["y"]),
    ]
    tensors = {"w": normal(64, 64), "v": normal(64, 64, seed=1)}
    feed = {"x": normal(64, 64, seed=2)}
    report = quantized(tmp_path, model(nodes, [value("x", [64, 64])], [value("y", [64, 64])], tensors), bits=bits)
    assert report.totals.changed == 1
    assert near(tmp_path, feed, 0.2)


def test_a_flaw_of_the_source_that_stands_behind_another_is_none_of_the_output(tmp_path: Path) -> None:
    """H9 and H14: the checker says one thing at a time, and refuses operators that onnxruntime runs."""
    nodes = [node("Conv", ["x", "c"], ["a"], pads=[1, 1, 1, 1]), node("Relu", ["n"], ["r"]),
             node("GroupNormalization", ["a", "g", "g"], ["n"], num_groups=8),
             node("Conv", ["r", "d"], ["y"])]  # fmt: skip
    weights = {"c": normal(64, 8, 3, 3), "d": normal(8, 64, 1, 1), "g": np.ones(8, np.float32)}
    initializers = [onnx.numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = onnx.helper.make_graph([nodes[0], nodes[2], nodes[1], nodes[3]], "g", [value("x", [1, 8, 9, 9])],
                                   [value("y", [1, 8, 9, 9])], initializers)  # fmt: skip
    graph.output[0].type.tensor_type.ClearField("shape")
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "a.onnx")
    report = mo.crop_file(tmp_path / "a.onnx", tmp_path / "b.onnx", keep=0.5, what="all", run=RunOptions())
    assert report.totals.changed == 2
    assert report.run.runs == 1


@pytest.mark.parametrize("more", [("w",), ("w", "x"), ("w", "h")])
def test_what_is_an_output_without_a_node_is_seen_where_outputs_are_measured(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Initializers and inputs may be outputs."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])]
    proto = model(nodes, [value("x", ["n", 64])], [value("y", ["n", 32])],
                  {"w": normal(64, 96), "v": normal(96, 32, seed=1)})  # fmt: skip
    proto.graph.output.extend(value(name, {"w": [64, 96], "v": [96, 32]}.get(name, ["n", None])) for name in more)
    onnx.save(proto, tmp_path / "a.onnx")
    report = mo.optimize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", target_bpw=8, durable=False)
    assert report.totals.changed >= 1
    assert near(tmp_path, {"x": normal(4, 64, seed=2)}, 0.2)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("beside", [False, True])
def test_weights_that_nobody_can_feed_are_quantized(tmp_path: Path, bits: int, beside: bool) -> None:
    """NumPy has no bfloat16."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    nodes = [node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT), node("MatMul", ["x", "wide"], ["h"])]
    weights = {"w": normal(64, 96).astype(ml_dtypes.bfloat16), "v": normal(96, 64, seed=1)}
    nodes.append(node("MatMul", ["h", "v"], ["y"]) if beside else node("Identity", ["h"], ["y"]))
    proto = model(nodes, [value("x", ["n", 64])], [value("y", ["n", None])], weights)
    assert quantized(tmp_path, proto, bits=bits).totals.changed == 1 + beside
    assert near(tmp_path, {"x": normal(4, 64, seed=2)}, {8: 0.02, 4: 0.2, 2: 0.9}[bits])


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2", "INT4"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_weights_beside_codes_that_a_graph_has_already_are_pruned(tmp_path: Path, kind: str, method: str) -> None:
    codes = onnx.helper.make_tensor("c", getattr(TensorProto, kind), [64, 96], np.arange(64 * 96) % 7 - 3)
    nodes = [node("DequantizeLinear", ["c", "s"], ["d"]), node("MatMul", ["x", "d"], ["h"])]
    nodes.append(node("MatMul", ["h", "w"], ["y"]))
    proto = model(nodes, [value("x", ["n", 64])], [value("y", ["n", 32])],
                  {"s": np.float32(0.1), "w": normal(96, 32), "c": np.zeros((64, 96), np.int8)}, opset=21)  # fmt: skip
    proto.graph.initializer[-1].CopyFrom(codes)
    onnx.save(proto, tmp_path / "a.onnx")
    given = {"calibrate": {"x": normal(4, 64, seed=2)}} if method == "wanda" else {}
    options = {"sparsity": 0.5, "method": method, "include": ["w"], "durable": False, **given}
    assert mo.prune_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **options).totals.changed == 1
    made = {each.name: each for each in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert (onnx.numpy_helper.to_array(made["w"]) == 0).mean() == 0.5
    assert onnx.numpy_helper.to_array(made["c"]).tobytes() == onnx.numpy_helper.to_array(codes).tobytes()


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "gptq"])
def test_what_goes_into_layers_of_half_precision_is_collected(tmp_path: Path, operator: str, method: str) -> None:
    half, more = TensorProto.FLOAT16, (1, 1) if operator == "Conv" else ()
    w = normal(64, 64, *more, dtype=np.float16)
    nodes = [node("Relu", ["x"], ["h"]), node(operator, ["h", "w"], ["m"]), node("Tanh", ["m"], ["y"])]
    place = [["n", 64, *(["h", "w"] if more else [])] for _ in range(2)]
    proto = model(nodes, [value("x", place[0], half)], [value("y", place[1], half)], {"w": w})
    onnx.save(proto, tmp_path / "a.onnx")
    feed = {"x": normal(16, 64, *((3, 3) if more else ()), seed=1, dtype=np.float16)}
    options = {"method": method, "calibrate": feed, "durable": False}
    files = tmp_path / "a.onnx", tmp_path / "b.onnx"
    made = (
        mo.quantize_file(*files, bits=4, **options)
        if method == "gptq"
        else mo.prune_file(*files, sparsity=0.5, **options)
    )
    assert made.totals.changed == 1
    assert "float32" not in made.tensors[0].reason
    assert near(tmp_path, feed, 0.6)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_weights_and_inputs_without_a_number_are_left_beside_others(tmp_path: Path, target: str, bits: int) -> None:
    proto = model(
        [node("MatMul", ["none", "nothing"], ["z"]), node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "z"], ["y"])],
        [value("x", ["n", 64]), value("none", ["n", 0])],
        [value("y", ["n", 96])],
        {"w": normal(64, 96), "nothing": np.zeros((0, 96), np.float32)},
    )
    report = quantized(tmp_path, proto, bits=bits, onnx=OnnxOptions(target=target))
    assert report.totals.changed == 1
    feed = {"x": normal(4, 64, seed=1), "none": np.zeros((4, 0), np.float32)}
    assert near(tmp_path, feed, {8: 0.01, 4: 0.15, 2: 0.5}[bits])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_table_of_masks_is_quantized_at_4_bits(tmp_path: Path, dtype: Any) -> None:
    """Zeros and the smallest number there is: their scales are no numbers of float16."""
    mask = np.triu(np.full((64, 64), np.finfo(dtype).min, dtype), 1)
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = model(
        [
            node("Gather", ["mask", "ids"], ["m"]),
            node("MatMul", ["x", "w"], ["a"]),
            node("Add", ["a", "m"], ["s"]),
            node("Softmax", ["s"], ["p"], axis=-1),
            node("MatMul", ["p", "v"], ["y"]),
        ],
        [value("x", ["n", 64], element), value("ids", ["n"], TensorProto.INT64)],
        [value("y", ["n", 64], element)],
        {"mask": mask, "w": normal(64, 64, dtype=dtype), "v": normal(64, 64, seed=1, dtype=dtype)},
    )
    report = quantized(tmp_path, proto, bits=4)
    assert report.totals.changed >= 2
    assert near(tmp_path, {"x": normal(40, 64, seed=2, dtype=dtype), "ids": np.arange(40)}, 0.15)
