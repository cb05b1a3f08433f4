"""Graphs whose layers compute in int8, run in onnxruntime against the originals."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from activation_graphs import Int8, attention, convolutions, model, node, normal, perceptron
from modelopt_rs.errors import OptionError
from modelopt_rs.files.onnx import OnnxSource
from modelopt_rs.onnx.int8.activations import quantize_activations
from modelopt_rs.onnx.int8.observe import Observer
from modelopt_rs.onnx.quantize import quantize_graph
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.quant import Calibrator

IMAGES = {"x": normal(8, 3, 16, 16)}
VECTORS = {"x": normal(64, 24)}
TEXTS = {"x": normal(4, 7, 32)}
STATIC = "int8, a scale for each output; activations by calibrated ranges"
DYNAMIC = "int8, a scale for each output; activations by the range of each call"


def static(folder: Path, proto: onnx.ModelProto, data: Any, **options: Any) -> Int8:
    return Int8(folder, proto, "static", calibrate=data, **options)


# ---- what onnxruntime makes of it


def test_a_static_convolutional_network_is_integers_from_end_to_end(tmp_path):
    made = static(tmp_path, convolutions(), IMAGES)
    assert [each for each in made.fused if each != "Transpose"] == [
        "QuantizeLinear", "QLinearConv", "NhwcMaxPool", "QLinearConv", "QLinearConv", "QLinearAdd",
        "QLinearGlobalAveragePool", "Flatten", "QGemm",
    ]  # fmt: skip
    assert made.sqnr(IMAGES) > 33
    assert {decision.reason for decision in made.decisions.values() if decision.action == "quantize"} == {STATIC}


def test_a_sum_of_two_is_an_add(tmp_path):
    proto = model(
        [
            node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
            node("Conv", ["x", "v"], ["d"], pads=[1] * 4),
            node("Sum", ["c", "d"], ["s"]),
            node("Relu", ["s"], ["y"]),
        ],
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 8, 16, 16]},
        {"w": normal(8, 3, 3, 3), "v": normal(8, 3, 3, 3, scale=0.5)},
    )
    made = static(tmp_path, proto, IMAGES)
    assert "QLinearAdd" in made.fused
    assert "Relu" not in made.operators
    assert made.sqnr(IMAGES) > 30


def test_operators_between_stay_integers(tmp_path):
    w = {"w1": normal(16, 3, 3, 3, scale=0.3), "b1": normal(16), "w2": normal(16, 16, 3, 3, scale=0.1)}
    proto = model(
        [
            node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
            node("Conv", ["c1", "w2"], ["c2"], pads=[1] * 4),
            node("Concat", ["c2", "c1"], ["a"], axis=1),
            node("Sigmoid", ["a"], ["s"]),
            node("Mul", ["s", "a"], ["m"]),
            node("LeakyRelu", ["m"], ["l"]),
            node("AveragePool", ["l"], ["y"], kernel_shape=[2, 2]),
        ],
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 32, 15, 15]},
        w,
    )
    made = static(tmp_path, proto, IMAGES)
    fused = [each for each in made.fused if each != "Transpose"]
    assert fused == [
        "QuantizeLinear", "QLinearConv", "QLinearConv", "QLinearConcat", "QLinearSigmoid", "QLinearMul",
        "QLinearLeakyRelu", "QLinearAveragePool", "DequantizeLinear",
    ]  # fmt: skip
    assert made.sqnr(IMAGES) > 30


def test_static_gemms_and_matmuls_are_fused_with_their_bias(tmp_path):
    made = static(tmp_path, perceptron(), VECTORS)
    assert made.fused == ["QuantizeLinear", "QGemm", "QGemm", "MatMulIntegerToFloat"]
    assert made.operators.count("Gemm") == 2
    assert "Relu" not in made.operators
    assert made.sqnr(VECTORS) > 30


def test_static_layers_of_a_transformer_are_fused_and_the_rest_stays_float(tmp_path):
    made = static(tmp_path, attention(), TEXTS)
    assert made.fused.count("MatMulIntegerToFloat") == 6
    assert made.fused.count("QuantizeLinear") == 4
    assert not {"MatMulNBits", "DequantizeLinear", "Gemm"} & set(made.fused)
    assert made.sqnr(TEXTS) > 28


@pytest.mark.parametrize(
    ("proto", "feed", "fused"),
    [(perceptron(), VECTORS, 3), (attention(), TEXTS, 3)],
    ids=["perceptron", "transformer"],
)
def test_dynamic_layers_are_fused(tmp_path, proto, feed, fused):
    made = Int8(tmp_path, proto, "dynamic")
    assert made.fused.count("DynamicQuantizeMatMul") == fused
    # Layers that share an input quantize it once.
    assert made.fused.count("DynamicQuantizeLinear") == (1 if feed is TEXTS else 0)
    assert made.fused.count("MatMulIntegerToFloat") == (3 if feed is TEXTS else 0)
    assert not {"MatMulInteger", "Cast"} & set(made.fused)
    assert made.sqnr(feed) > 28


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_in_any_direction_is_fused(tmp_path, activations, bias, transposed):
    w = normal(48, 16, scale=0.3)
    proto = model(
        [node("Gemm", ["x", "w", *(["b"] if bias else [])], ["y"], transB=transposed)],
        {"x": ["batch", 48]},
        {"y": ["batch", 16]},
        {"w": w.T.copy() if transposed else w, **({"b": normal(16)} if bias else {})},
    )
    feed = {"x": normal(20, 48)}
    made = Int8(tmp_path, proto, activations, **({"calibrate": feed} if activations == "static" else {}))
    assert made.fused == (["QuantizeLinear", "QGemm"] if activations == "static" else ["DynamicQuantizeMatMul"])
    assert made.sqnr(feed) > 35


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_a_weight_behind_a_transpose_is_quantized_where_it_stands(tmp_path, activations):
    proto = model(
        [node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("MatMul", ["x", "wt"], ["y"])],
        {"x": ["batch", 48]},
        {"y": ["batch", 16]},
        {"w": normal(16, 48)},
    )
    feed = {"x": normal(20, 48)}
    made = Int8(tmp_path, proto, activations, **({"calibrate": feed} if activations == "static" else {}))
    assert made.weights["w_quantized"].shape == (16, 48)
    assert made.fused in (["QuantizeLinear", "MatMulIntegerToFloat"], ["DynamicQuantizeMatMul"])
    assert made.sqnr(feed) > 35


def test_a_model_of_an_old_opset_is_raised(tmp_path):
    made = static(tmp_path, convolutions(opset=11), IMAGES)
    assert made.proto.opset_import[0].version == 13
    assert "QLinearConv" in made.fused
    assert Int8(tmp_path, convolutions(opset=11), "dynamic").proto.opset_import[0].version == 11
    assert static(tmp_path, convolutions(opset=11), IMAGES, opset=15).proto.opset_import[0].version == 15


def test_inputs_and_outputs_keep_their_names(tmp_path):
    proto = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Relu", ["c"], ["y"]),
            node("MaxPool", ["y"], ["z"], kernel_shape=[2, 2]),
        ],
        {"x": ["batch", 3, 8, 8]},
        {"y": ["batch", 16, 6, 6], "z": ["batch", 16, 5, 5]},
        {"w": normal(16, 3, 3, 3)},
    )  # fmt: skip
    feed = {"x": normal(4, 3, 8, 8)}
    made = static(tmp_path, proto, feed)
    assert [value.name for value in made.proto.graph.output] == ["y", "z"]
    assert made.sqnr(feed) > 33


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("proto", "feed"),
    [(convolutions(), IMAGES), (perceptron(), VECTORS), (attention(), TEXTS)],
    ids=["convolutions", "perceptron", "transformer"],
)
def test_a_runtime_that_fuses_nothing_computes_as_well(tmp_path, activations, proto, feed):
    made = Int8(tmp_path, proto, activations, **({"calibrate": feed} if activations == "static" else {}))
    assert made.sqnr(feed, fused=False) > 28


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_of_any_rank_are_fused(tmp_path, axes):
    shape = [6] * axes
    proto = model(
        [node("Conv", ["x", "w", "b"], ["c"], auto_pad="SAME_UPPER", strides=[2] * axes), node("Relu", ["c"], ["y"])],
        {"x": ["batch", 8, *shape]},
        {"y": ["batch", 12, *[3] * axes]},
        {"w": normal(12, 8, *[3] * axes, scale=0.2), "b": normal(12)},
    )
    feed = {"x": normal(8, 8, *shape)}
    made = static(tmp_path, proto, feed)
    assert "QLinearConv" in made.fused
    assert made.sqnr(feed) > 33


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"equalize": True, "bias_correction": True}], ids=["plain", "balanced"])
def test_a_batch_normalization_is_folded_into_its_convolution(tmp_path, bias, options):
    gamma = normal(16)
    weights = {
        "w": normal(16, 3, 3, 3, scale=0.3),
        "gamma": gamma,
        "beta": normal(16, scale=0.3)[::-1],
        "mean": normal(16, scale=0.5) + 0.1,
        "var": np.square(gamma) + 0.2,
        "w2": normal(8, 16, 3, 3, scale=0.1),
        **({"b": normal(16, scale=0.7)} if bias else {}),
    }
    proto = model(
        [
            node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"]),
            node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], epsilon=0.01),
            node("Relu", ["n"], ["r"]),
            node("Conv", ["r", "w2"], ["y"]),
        ],
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 8, 12, 12]},
        weights,
    )
    made = static(tmp_path, proto, IMAGES, **options)
    assert [each for each in made.fused if each != "Transpose"] == [
        "QuantizeLinear", "QLinearConv", "QLinearConv", "DequantizeLinear",
    ]  # fmt: skip
    assert not {"gamma", "beta", "mean", "var"} & set(made.weights)
    assert made.sqnr(IMAGES) > 30


@pytest.mark.parametrize("why", ["two uses", "training", "computed"])
def test_a_batch_normalization_that_is_no_constant_factor_stays(tmp_path, why):
    weights = {"w": normal(16, 3, 3, 3), **{name: np.abs(normal(16)) + 0.5 for name in ("g", "b", "m", "v")}}
    norm = node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"])
    nodes = [node("Conv", ["x", "w"], ["c"]), norm, node("Relu", ["n"], ["y"])]
    outputs = ["n"]
    if why == "two uses":
        nodes[2] = node("Mul", ["n", "c"], ["y"])
    elif why == "training":
        outputs = ["n", "m2", "v2"]
    else:
        nodes.insert(0, node("Abs", ["g"], ["ga"]))
    norm = node("BatchNormalization", ["c", "ga" if why == "computed" else "g", "b", "m", "v"], outputs,
                **({"training_mode": 1} if why == "training" else {}))  # fmt: skip
    nodes[1 + (why == "computed")] = norm
    proto = model(nodes, {"x": ["batch", 3, 16, 16]}, {"y": ["batch", 16, 14, 14]}, weights)
    made = static(tmp_path, proto, IMAGES)
    assert "BatchNormalization" in made.operators
    assert made.decisions["w"].reason == STATIC
    if why != "training":
        assert made.sqnr(IMAGES) > 25


def test_a_bias_of_more_axes_than_the_product_stays_an_add(tmp_path):
    proto = model(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])],
        {"x": ["batch", 32]},
        {"y": [1, "batch", 12]},
        {"w": normal(32, 12), "b": normal(1, 1, 12)},
    )
    feed = {"x": normal(16, 32)}
    for options in ({}, {"bias_correction": True}):
        made = static(tmp_path, proto, feed, **options)
        assert made.run(feed)[1][0].shape == (1, 16, 12)
        assert made.sqnr(feed) > 30


# ---- grids


@pytest.mark.parametrize("method", ["minmax", "moving_average", "percentile", "entropy", "mse"])
def test_ranges_are_those_of_the_float_models_values(tmp_path, method):
    made = static(tmp_path, convolutions(), IMAGES, method=method)
    names = ["x", "r1", "r2", "c3", "r3", "g"]
    calibrators = {name: Calibrator(method) for name in names}
    with OnnxSource(made.before) as source:
        feeds = [{"x": IMAGES["x"][i : i + 1]} for i in range(8)]
        for name, array in Observer(source.model, made.before, names, threads=1).values(feeds, names):
            calibrators[name].update(array)
    # Relu and Clip cut off no more than the grid: it stands in their place.
    taken = {"x": "x", "r1": "c1", "r2": "c2", "c3": "c3", "r3": "a", "g": "g"}
    for name in names:
        assert made.grid(taken[name]) == calibrators[name].params()


def test_operators_that_move_numbers_keep_the_grid(tmp_path):
    made = static(tmp_path, convolutions(), IMAGES)
    assert made.grid("p1") == made.grid("c1")
    assert made.grid("f") == made.grid("g")
    assert made.grid("p1") != made.grid("x")


def test_a_clip_that_cuts_more_than_the_grid_stays(tmp_path):
    proto = model(
        [node("Conv", ["x", "w"], ["c"]), node("Clip", ["c", "low", "high"], ["y"])],
        {"x": ["batch", 3, 8, 8]},
        {"y": ["batch", 16, 6, 6]},
        {"w": normal(16, 3, 3, 3), "low": np.float32(0.5), "high": np.float32(2)},
    )
    feed = {"x": normal(4, 3, 8, 8)}
    made = static(tmp_path, proto, feed)
    assert "Clip" in made.operators
    assert made.run(feed)[1][0].min() > 0.4
    assert made.sqnr(feed) > 30


def test_values_of_float_nodes_stay_float_for_all_but_the_layers(tmp_path):
    proto = model(
        [node("Sin", ["x"], ["s"]), node("MatMul", ["s", "w"], ["m"]), node("Add", ["m", "s"], ["y"])],
        {"x": ["batch", 32]},
        {"y": ["batch", 32]},
        {"w": normal(32, 32)},
    )
    made = static(tmp_path, proto, {"x": normal(16, 32)})
    add = next(each for each in made.proto.graph.node if each.op_type == "Add")
    assert list(add.input) == ["m", "s"]


def test_weights_have_a_scale_for_each_output_and_codes_as_large_as_their_kernel_takes(tmp_path):
    proto = convolutions()
    before = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    made = static(tmp_path, proto, IMAGES)
    assert sorted(made.transforms) == ["w1", "w2"]  # the others are in memory
    for name in ("w1", "w2", "w3", "w4"):
        w, codes, scale = before[name], made.weights[f"{name}_quantized"], made.weights[f"{name}_scale"]
        peak = np.abs(w).reshape(len(w), -1).max(axis=1)
        assert ((scale > peak / 127.01) & (scale < peak / 63.99)).all()
        back = codes * scale.reshape(-1, *[1] * (w.ndim - 1))
        assert np.abs(back - w).max() <= scale.max() * 0.501
        assert name not in made.weights


@pytest.mark.parametrize(
    ("groups", "inputs", "target", "largest"),
    [(8, 8, "onnxruntime", 127), (1, 8, "onnxruntime", 64), (4, 8, "onnxruntime", 64), (8, 8, "portable", 64)],
)
def test_a_depthwise_convolution_has_codes_of_8_bits_in_onnxruntime(tmp_path, groups, inputs, target, largest):
    """It adds in 32 bits; any other adds two products in 16, of these weights 64 and 64."""
    proto = model(
        [node("Conv", ["x", "w"], ["y"], group=groups)],
        {"x": ["batch", inputs, 6, 6]},
        {"y": ["batch", 8, 4, 4]},
        {"w": np.ones((8, inputs // groups, 3, 3), np.float32)},
    )
    made = static(tmp_path, proto, {"x": normal(16, inputs, 6, 6)}, target=target)
    assert made.weights["w_quantized"].max() == largest
    assert made.fused.count("QLinearConv") == 1


def test_a_depthwise_weight_that_another_convolution_takes_has_codes_for_both(tmp_path):
    proto = model(
        [
            node("Conv", ["x", "w"], ["a"], group=8),
            node("Conv", ["z", "w"], ["b"], group=1),
            node("Add", ["a", "b"], ["y"]),
        ],
        {"x": ["batch", 8, 6, 6], "z": ["batch", 1, 6, 6]},
        {"y": ["batch", 8, 4, 4]},
        {"w": np.ones((8, 1, 3, 3), np.float32)},
    )
    made = static(tmp_path, proto, {"x": normal(16, 8, 6, 6), "z": normal(16, 1, 6, 6)})
    assert made.weights["w_quantized"].max() == 64


@pytest.mark.parametrize("made_of", ["convolutions", "perceptron"])
def test_a_static_model_is_no_farther_off_than_onnxruntimes_own(tmp_path, made_of):
    """Theirs has weights of 8 bits, with which two products saturate on some processors: ours never do."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    proto, shape = (convolutions(), (3, 16, 16)) if made_of == "convolutions" else (perceptron(), (24,))
    known, other = ({"x": np.maximum(normal(32, *shape), -0.5)} for _ in range(2))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"x": known["x"][i : i + 1]} for i in range(32)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    made = static(tmp_path, proto, known)
    quantize_static(made.before, tmp_path / "own.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    ours = made.sqnr(other)
    made.after = tmp_path / "own.onnx"
    assert ours >= made.sqnr(other)


def test_a_weight_of_several_layers_is_stored_once(tmp_path):
    proto = model(
        [node("Gemm", ["x", "w", "b"], ["h"]), node("Sin", ["h"], ["s"]), node("Gemm", ["s", "w", "b2"], ["y"])],
        {"x": ["batch", 32]},
        {"y": ["batch", 32]},
        {"w": normal(32, 32, scale=0.2), "b": normal(32), "b2": normal(32)},
    )
    feed = {"x": normal(16, 32)}
    made = static(tmp_path, proto, feed)
    assert [name for name in made.weights if made.weights[name].dtype == np.int8] == ["w_quantized", "w_zero_point"]
    assert made.fused.count("QGemm") == 2
    assert made.sqnr(feed) > 30
    assert Int8(tmp_path, proto, "dynamic").sqnr(feed) > 30


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_layers_may_follow_each_other(tmp_path, activations, order, operator):
    more = [["b"], ["c"], ["d"]] if operator == "Gemm" else [[]] * 3
    weights = {"w1": normal(32, 40, scale=0.2), "w2": normal(40, 24, scale=0.2), "w3": normal(40, 16, scale=0.2),
               **({"b": normal(40), "c": normal(24), "d": normal(16)} if operator == "Gemm" else {})}  # fmt: skip
    proto = model(
        [
            node(operator, ["x", "w1", *more[0]], ["h"]),
            node(operator, ["h", "w2", *more[1]], ["y"]),
            node(operator, ["h", "w3", *more[2]], ["z"]),
        ],
        {"x": ["batch", 32]},
        {"y": ["batch", 24], "z": ["batch", 16]},
        dict(list(weights.items())[::order]),
    )
    feed = {"x": normal(20, 32)}
    made = Int8(tmp_path, proto, activations, **({"calibrate": feed} if activations == "static" else {}))
    quantizes = "DynamicQuantizeLinear" if activations == "dynamic" else "QuantizeLinear"
    assert made.operators.count(quantizes) == 2
    assert not {"MatMul", "Gemm", "FusedGemm"} & set(made.fused)
    assert made.sqnr(feed) > 30


def test_a_dynamic_layer_in_the_body_of_an_if_is_quantized(tmp_path):
    def branch(name: str, operator: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 32])
        nodes = [node("MatMul", ["h", "w"], [f"{name}_m"]), node(operator, [f"{name}_m"], [name])]
        return helper.make_graph(nodes, name, [], [out])

    proto = model(
        [
            node("Sin", ["x"], ["h"]),
            node("ReduceSum", ["x"], ["s"], keepdims=0),
            node("Greater", ["s", "zero"], ["c"]),
            node("If", ["c"], ["y"], then_branch=branch("t", "Neg"), else_branch=branch("e", "Abs")),
        ],
        {"x": ["batch", 32]},
        {"y": ["batch", 32]},
        {"w": normal(32, 32, scale=0.2), "zero": np.float32(0)},
    )
    made = Int8(tmp_path, proto, "dynamic")
    for sign in (1, -1):
        assert made.sqnr({"x": sign * np.abs(normal(4, 32))}) > 30
    with OnnxSource(made.before) as source:
        options = OnnxOptions(activations="static", calibrate={"x": normal(4, 32)})
        _, decisions = quantize_activations(source.model, source.tensors, QuantizeOptions(), options, path=made.before)
    assert decisions["w"].reason == "int8, a scale for each output; activations by calibrated ranges"


# ---- what is left alone


def reasons(folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], activations: str) -> str:
    """Why the weight w of the last node is left alone."""
    path = folder / "m.onnx"
    rank = 4 if nodes[-1].op_type.startswith("Conv") else 2
    shape = ["batch", 16, 8, 8][:rank]
    proto = model(nodes, {"x": shape}, {"y": [f"d{i}" for i in range(rank)]}, weights)
    path.write_bytes(proto.SerializeToString())
    data = {"calibrate": {"x": np.ones([2, 16, 8, 8][:rank], np.float32)}} if activations == "static" else {}
    with OnnxSource(path) as source:
        transforms, decisions = quantize_activations(
            source.model,
            source.tensors,
            QuantizeOptions(),
            OnnxOptions(activations=activations, **data),
            path=path,
        )
    assert not transforms
    assert decisions["w"].action == "copy"
    return decisions["w"].reason


W = {"w": normal(16, 16)}
K = {"w": normal(16, 16, 3, 3)}


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        ([node("ConvTranspose", ["x", "w"], ["y"], name="up")], K,
         "ConvTranspose 'up': onnxruntime has no int8 kernel for it"),
        ([node("Gather", ["w", "i"], ["g"]), node("MatMul", ["x", "g"], ["y"])], {**W, "i": np.arange(16)},
         "Gather: onnxruntime has no int8 kernel for it"),
        ([node("Gemm", ["x", "w"], ["y"], alpha=0.5)], W, "Gemm has alpha 0.5"),
        ([node("Gemm", ["x", "w", "b"], ["y"], beta=2.0)], {**W, "b": normal(16)}, "Gemm has beta 2"),
        ([node("Gemm", ["w", "x"], ["y"], transB=1)], W, "Gemm: onnxruntime has no int8 kernel for it"),
        ([node("Gemm", ["c", "w"], ["g"]), node("Add", ["g", "x"], ["y"])], {**W, "c": normal(1, 16)},
         "Gemm takes nothing but constants"),
        ([node("Gemm", ["x", "w", "b"], ["y"])], {**W, "b": np.float32(1)},
         "Gemm has a bias that is no constant for each output"),
        ([node("Transpose", ["w"], ["t"]), node("Gemm", ["x", "w", "b"], ["g"]), node("MatMul", ["g", "t"], ["y"])],
         {**W, "b": normal(16)}, "its nodes take it in different directions"),
        ([node("Sin", ["w"], ["s"]), node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "s"], ["y"])],
         W, "also used by Sin"),
    ],
    ids=["convtranspose", "gather", "alpha", "beta", "left", "constants", "scalar bias", "directions", "others"],
)  # fmt: skip
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_why_a_weight_is_left_alone(tmp_path, nodes, weights, reason, activations):
    assert reasons(tmp_path, nodes, weights, activations) == reason


def test_why_a_convolution_is_left_alone(tmp_path):
    want = "Conv 'c': a Conv that quantizes its input in each call is slower than float32"
    assert reasons(tmp_path, [node("Conv", ["x", "w"], ["y"], name="c")], K, "dynamic") == want
    turned = [node("Transpose", ["w"], ["t"], perm=[1, 0, 2, 3]), node("Conv", ["x", "t"], ["y"])]
    assert reasons(tmp_path, turned, K, "static") == "Conv takes it behind Transpose"
    computed = [node("Sin", ["b"], ["s"]), node("Conv", ["x", "w", "s"], ["y"])]
    want = "Conv has a bias that is no constant for each output"
    assert reasons(tmp_path, computed, {**K, "b": normal(16)}, "static") == want


def test_half_precision_is_left_alone(tmp_path):
    path = tmp_path / "m.onnx"
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": [4, 32]}, {"y": [4, 32]}, {"w": normal(32, 32)})
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(32, 32).astype(np.float16), "w"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    path.write_bytes(proto.SerializeToString())
    with OnnxSource(path) as source:
        options = OnnxOptions(activations="dynamic")
        _, decisions = quantize_activations(source.model, source.tensors, QuantizeOptions(), options)
    assert decisions["w"].reason == "MatMul computes in FLOAT16: int8 kernels take float32"


def test_globs_choose_weights(tmp_path):
    made = static(tmp_path, convolutions(), IMAGES, exclude=["w[13]"])
    assert made.decisions["w1"].reason == "excluded by 'w[13]'"
    assert made.fused.count("QLinearConv") == 1
    assert made.sqnr(IMAGES) > 33
    with pytest.raises(OptionError, match=r"^exclude 'v\*' matches no tensor$"):
        static(tmp_path, convolutions(), IMAGES, exclude=["v*"])
    with pytest.raises(OptionError, match=r"^include 'w1': tensor 'w1' can't be quantized: Conv: a Conv that"):
        Int8(tmp_path, convolutions(), "dynamic", include=["w1"])


def test_what_int8_does_not_take_has_its_weights_quantized_alone(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(convolutions().SerializeToString())
    with OnnxSource(path) as source:
        transforms, decisions = quantize_graph(
            source.model,
            source.tensors,
            QuantizeOptions(exclude=["w2", "w4"]),
            OnnxOptions(activations="dynamic"),
            path=path,
        )
    assert sorted(transforms) == ["w1"]
    assert decisions["w1"].action == "quantize"
    assert re.fullmatch(r".*; Conv: a Conv that quantizes its input in each call is .*", decisions["w1"].reason)
    assert decisions["w2"].reason == "excluded by 'w2'"


# ---- errors


@pytest.mark.parametrize(
    ("options", "onnx_options", "message"),
    [
        ({}, {}, "activations must be 'dynamic' or 'static', got 'none'"),
        ({"bits": 4}, {"activations": "dynamic"}, "activations 'dynamic' needs bits 8, got 4: integer kernels"),
        ({"scheme": "asymmetric"}, {"activations": "dynamic"}, "activations 'dynamic' needs scheme 'symmetric', got '"),
        ({"group_size": 32}, {"activations": "dynamic"}, "activations 'dynamic' needs group_size 0, got 32: "),
        ({}, {"activations": "dynamic", "smooth": 0.5}, "smooth needs activations 'static', got 'dynamic': "),
        ({}, {"activations": "dynamic", "bias_correction": True}, "bias_correction needs activations 'static', got"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_named_and_nothing_is_changed(tmp_path, options, onnx_options, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(perceptron().SerializeToString())
    with OnnxSource(path) as source:
        before = [each.op_type for each in source.model.graph]
        with pytest.raises(OptionError, match=f"^{re.escape(message)}"):
            quantize_activations(source.model, source.tensors, QuantizeOptions(**options), OnnxOptions(**onnx_options))
        assert [each.op_type for each in source.model.graph] == before


def test_activations_that_are_not_finite_are_named(tmp_path):
    data = {"x": VECTORS["x"].copy()}
    data["x"][3, 4] = np.nan
    message = r"^calibrate: value 'x': Calibrator: x must be finite, has 1 values that are not$"
    with pytest.raises(ValueError, match=message):
        static(tmp_path, perceptron(), data)


def test_values_that_are_empty_in_every_sample_are_named(tmp_path):
    message = "^calibrate: value 'x' is empty in every sample; exclude the weights it meets$"
    with pytest.raises(ValueError, match=message):
        static(tmp_path, perceptron(), [{"x": np.zeros((0, 24), np.float32)}])


def test_samples_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^calibrate: axis 1 of 'x' must be 24 long, got shape"):
        static(tmp_path, perceptron(), {"x": normal(3, 23)})


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_tiles_and_memory_change_no_byte(tmp_path, activations):
    data = {"calibrate": VECTORS} if activations == "static" else {}
    made = [Int8(tmp_path, perceptron(), activations, max_memory=memory, **data).weights for memory in (3000, 2**28)]
    assert made[0].keys() == made[1].keys()
    for name, array in made[0].items():
        if name.startswith("w1"):
            np.testing.assert_array_equal(array, made[1][name])


def test_a_nearest_resize_stays_integers(tmp_path):
    """H36: what stands between a Resize and a Concat went to floats and back."""
    proto = model(
        [
            node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
            node("Resize", ["c", "", "s"], ["r"], mode="nearest", coordinate_transformation_mode="asymmetric"),
            node("Conv", ["r", "v"], ["y"], pads=[1] * 4),
        ],
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 8, 32, 32]},
        {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "s": np.array([1, 1, 2, 2], np.float32)},
    )
    made = static(tmp_path, proto, IMAGES)
    fused = [each for each in made.fused if each != "Transpose"]
    assert fused == ["QuantizeLinear", "QLinearConv", "Resize", "QLinearConv", "DequantizeLinear"]
    assert made.sqnr(IMAGES) > 30


def test_a_gate_without_an_integer_kernel_keeps_the_rest_on_integers(tmp_path):
    """H36: squeeze and excitation, whose HardSigmoid is a float operator, is multiplied on the grid."""
    proto = model(
        [
            node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
            node("HardSwish", ["c"], ["h"]),
            node("GlobalAveragePool", ["h"], ["p"]),
            node("Conv", ["p", "v"], ["d"]),
            node("HardSigmoid", ["d"], ["g"]),
            node("Mul", ["h", "g"], ["m"]),
            node("Conv", ["m", "v"], ["y"]),
        ],
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 8, 16, 16]},
        {"w": normal(8, 3, 3, 3, scale=0.3), "v": normal(8, 8, 1, 1, scale=0.3)},
    )
    made = static(tmp_path, proto, IMAGES)
    assert {"QLinearMul", "QLinearGlobalAveragePool"} <= set(made.fused)
    assert "GlobalAveragePool" not in made.fused
    assert made.sqnr(IMAGES) > 28


def test_a_model_that_nothing_is_done_to_stays_as_it_is(tmp_path):
    """H20: no opset is raised for nothing, which would make the file larger."""
    codes, nodes = {"w": np.ones((3, 8), np.int8)}, [node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z"], ["i"]),
        *nodes,
    ]
    proto = model(nodes, {"x": ["n", 3]}, {"y": ["n", 8]}, codes, opset=12)
    onnx.save(proto, tmp_path / "a.onnx")
    for activations in ("static", "dynamic"):
        options = OnnxOptions(
            activations=activations, calibrate={"x": normal(4, 3)} if activations == "static" else None
        )
        with OnnxSource(tmp_path / "a.onnx") as source:
            transforms, _ = quantize_graph(
                source.graph, source.tensors, QuantizeOptions(), options, path=tmp_path / "a.onnx"
            )
            assert transforms == {}
            assert source.graph.graph.opset_imports[""] == 12
