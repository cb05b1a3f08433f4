"""Equalization, SmoothQuant and bias correction: what they change, and what they must not."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

from onnx import numpy_helper

from activation_graphs import Int8, attention, convolutions, model, node, normal, numbers, perceptron
from modelopt_rs.files.onnx import OnnxSource
from modelopt_rs.onnx.int8.candidates import find_candidates
from modelopt_rs.onnx.int8.equalize import equalize, find_pairs, weight_matrix
from modelopt_rs.onnx.int8.statistics import Statistics
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions

SPREAD = np.geomspace(0.01, 100, 40).astype(np.float32)


def changed(proto: onnx.ModelProto, **factors: np.ndarray) -> onnx.ModelProto:
    """The model with initializers multiplied."""
    for tensor in proto.graph.initializer:
        if tensor.name in factors:
            array = numpy_helper.to_array(tensor) * factors[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return proto


def unequal() -> onnx.ModelProto:
    """A perceptron with hidden channels of very different ranges, which the next layer undoes."""
    return changed(perceptron(), w1=SPREAD, b1=SPREAD, w2=1 / SPREAD[:, None])


# ---- equalization


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_equalization_takes_the_spread_of_channels_out(tmp_path, activations):
    feed = {"x": normal(256, 24)}
    data = {"calibrate": feed} if activations == "static" else {}
    plain = Int8(tmp_path, unequal(), activations, **data).sqnr(feed)
    equal = Int8(tmp_path, unequal(), activations, equalize=True, **data).sqnr(feed)
    assert equal > plain + 10
    assert equal > 30


def test_equalized_pairs_have_the_same_range_in_every_channel(tmp_path):
    proto = model(
        [node("Gemm", ["x", "w1"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["y"])],
        {"x": ["batch", 24]},
        {"y": ["batch", 12]},
        {"w1": normal(24, 40) * SPREAD, "w2": normal(40, 12)},
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with OnnxSource(path) as source:
        found = find_candidates(source.model, source.tensors, QuantizeOptions(), OnnxOptions(activations="dynamic"))
        first, second = found.layers["w1"][0], found.layers["w2"][0]
        assert find_pairs([second, first]) == [(first, second)]
        equalize([(first, second)])
        outputs = np.abs(weight_matrix(first)).max(axis=(1, 2))
        inputs = np.abs(weight_matrix(second)).max(axis=(0, 2))
    np.testing.assert_allclose(outputs, inputs, rtol=1e-5)
    np.testing.assert_allclose(first.out_scale * second.in_scale, 1, rtol=1e-6)


def test_equalization_changes_nothing_that_the_float_model_computes(tmp_path):
    """The scaled weights and biases, put back into the model, give its outputs."""
    proto = unequal()
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with OnnxSource(path) as source:
        found = find_candidates(source.model, source.tensors, QuantizeOptions(), OnnxOptions(activations="dynamic"))
        layers = {name: group[0] for name, group in found.layers.items()}
        equalize(find_pairs(layers.values()))
        w = {name: weight_matrix(layer)[:, :, 0].T.astype(np.float64) for name, layer in layers.items()}
        b = {name: layer.bias for name, layer in layers.items()}
    x = normal(16, 24).astype(np.float64)
    got = np.maximum(np.maximum(x @ w["w1"] + b["w1"], 0) @ w["w2"] + b["w2"], 0) @ w["w3"]
    made = Int8(tmp_path, proto, "dynamic")
    np.testing.assert_allclose(got, made.run({"x": x.astype(np.float32)})[0][0], rtol=1e-4, atol=1e-4)


def test_convolutions_are_equalized_through_groups(tmp_path):
    feed, spread = {"x": normal(8, 3, 16, 16)}, np.geomspace(0.02, 50, 16).astype(np.float32)
    normal_ = numbers()
    proto = model(
        [
            node("Conv", ["x", "w1", "b1"], ["c1"]),
            node("Relu", ["c1"], ["r1"]),
            node("Conv", ["r1", "w2"], ["c2"], group=16),
            node("Conv", ["c2", "w3"], ["y"], group=2),
        ],
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 8, 10, 10]},
        {
            "w1": normal_(16, 3, 3, 3) * spread[:, None, None, None],
            "b1": normal_(16) * spread,
            "w2": normal_(16, 1, 3, 3),
            "w3": normal_(8, 8, 3, 3) / spread.reshape(2, 1, 8, 1, 1).repeat(4, axis=1).reshape(8, 8, 1, 1),
        },
    )
    plain = Int8(tmp_path, proto, "static", calibrate=feed)
    equal = Int8(tmp_path, proto, "static", calibrate=feed, equalize=True)
    assert equal.sqnr(feed) > max(plain.sqnr(feed) + 10, 30)


@pytest.mark.parametrize("between", ["Clip", "Sin", "output", "two"])
def test_layers_that_do_not_scale_through_are_no_pair(tmp_path, between):
    nodes = [node("Gemm", ["x", "w1"], ["h"])]
    outputs: dict[str, Any] = {"y": ["batch", 12]}
    last = "h"
    if between in ("Clip", "Sin"):
        nodes.append(node(between, ["h"], ["c"]) if between == "Sin" else node("Clip", ["h", "", "six"], ["c"]))
        last = "c"
    nodes.append(node("Gemm", [last, "w2"], ["y"]))
    if between == "output":
        outputs["h"] = ["batch", 40]
    if between == "two":
        nodes.append(node("Sin", ["h"], ["z"]))
        outputs["z"] = ["batch", 40]
    weights = {"w1": normal(24, 40), "w2": normal(40, 12), **({"six": np.float32(6)} if between == "Clip" else {})}
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, {"x": ["batch", 24]}, outputs, weights).SerializeToString())
    with OnnxSource(path) as source:
        found = find_candidates(source.model, source.tensors, QuantizeOptions(), OnnxOptions(activations="dynamic"))
        assert find_pairs([layer for group in found.layers.values() for layer in group]) == []


def test_channels_that_are_zero_are_left_as_they_are(tmp_path):
    dead = np.ones(40, np.float32)
    dead[[3, 7]] = 0
    feed = {"x": normal(64, 24)}
    made = Int8(tmp_path, changed(perceptron(), w1=dead, b1=dead), "static", calibrate=feed, equalize=True)
    assert made.sqnr(feed) > 30


# ---- SmoothQuant


def loud(normed: str = "LayerNormalization") -> onnx.ModelProto:
    """A transformer with two channels of its normalized values a hundred times larger."""
    factor = np.ones(32, np.float32)
    factor[[5, 20]] = 100
    return changed(
        attention(normed=normed),
        gamma1=factor,
        beta1=factor,
        gamma2=factor,
        beta2=factor,
        **{f"{name}_w": 1 / factor[:, None] for name in ("q", "k", "v", "up")},
    )


TEXTS = {"x": normal(8, 7, 32)}


@pytest.mark.parametrize("normed", ["LayerNormalization", "decomposed"])
def test_smoothing_is_folded_into_the_normalization_before(tmp_path, normed):
    plain = Int8(tmp_path, loud(normed), "static", calibrate=TEXTS)
    smooth = Int8(tmp_path, loud(normed), "static", calibrate=TEXTS, smooth=0.5)
    assert smooth.sqnr(TEXTS) > plain.sqnr(TEXTS) + 10
    # Only what has no normalization before it is multiplied.
    factors = [name for name in smooth.weights if name.endswith("_factor")]
    assert sorted(factors) == ["act_factor", "o_factor"]
    assert {"gamma1_smoothed", "beta2_smoothed"} < set(smooth.weights)
    assert "gamma1" not in smooth.weights


def test_the_factors_are_those_of_the_paper(tmp_path):
    proto, alpha = loud(), 0.7
    made = Int8(tmp_path, proto, "static", calibrate=TEXTS, smooth=alpha)
    with OnnxSource(made.before) as source:
        from modelopt_rs.onnx.int8.observe import Observer

        feeds = [{"x": TEXTS["x"][i : i + 1]} for i in range(8)]
        observer = Observer(source.model, made.before, ["n1"], threads=1)
        peaks = [np.abs(array).max(axis=(0, 1)) for _, array in observer.values(feeds, ["n1"])]
    before = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    weights = np.max([np.abs(before[f"{name}_w"]).max(axis=1) for name in "qkv"], axis=0)
    s = np.max(peaks, axis=0) ** alpha / weights ** (1 - alpha)
    np.testing.assert_allclose(made.weights["gamma1_smoothed"], before["gamma1"] / s, rtol=1e-5)
    np.testing.assert_allclose(made.weights["beta1_smoothed"], before["beta1"] / s, rtol=1e-5)
    for name in "qkv":
        back = made.weights[f"{name}_w_quantized"] * made.weights[f"{name}_w_scale"]
        assert np.abs(back - before[f"{name}_w"] * s[:, None]).max() <= made.weights[f"{name}_w_scale"].max() * 0.501


def test_a_normalization_that_others_take_too_is_not_changed(tmp_path):
    normal_ = numbers()
    proto = model(
        [
            node("LayerNormalization", ["x", "gamma", "beta"], ["n"]),
            node("MatMul", ["n", "w"], ["m"]),
            node("Add", ["m", "n"], ["y"]),
        ],
        {"x": ["batch", 32]},
        {"y": ["batch", 32]},
        {"gamma": normal_(32), "beta": normal_(32), "w": normal_(32, 32)},
    )
    feed = {"x": normal(16, 32)}
    made = Int8(tmp_path, proto, "static", calibrate=feed, smooth=0.5)
    assert "n_factor" in made.weights
    assert made.sqnr(feed) > 30


# ---- bias correction


def mean_errors(made: Int8, feed: dict[str, np.ndarray]) -> np.ndarray:
    before, after = made.run(feed)
    channels = 1 if before[0].ndim == 4 else before[0].ndim - 1
    axes = tuple(i for i in range(before[0].ndim) if i != channels)
    return np.abs((after[0] - before[0]).mean(axis=axes))


@pytest.mark.parametrize("kind", ["gemm", "matmul", "conv", "matmul without bias", "rank 3", "rank 3 without bias"])
def test_bias_correction_takes_the_mean_error_out(tmp_path, kind):
    if kind == "conv":
        proto = model(
            [node("Conv", ["x", "w"], ["y"], group=2)],
            {"x": ["batch", 8, 6, 6]},
            {"y": ["batch", 4, 6, 6]},
            {"w": normal(4, 4, 1, 1)},
        )
        feed = {"x": normal(64, 8, 6, 6) + np.arange(8, dtype=np.float32)[:, None, None]}
    else:
        shape = ["batch", 1, 32] if "rank 3" in kind else ["batch", 32]
        nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]
        if kind == "gemm":
            nodes = [node("Gemm", ["x", "w", "b"], ["y"])]
        elif "without" in kind:
            nodes = [node("MatMul", ["x", "w"], ["y"])]
        weights = {"w": normal(32, 12), **({} if "without" in kind else {"b": normal(12)})}
        proto = model(nodes, {"x": shape}, {"y": [*shape[:-1], 12]}, weights)
        feed = {"x": (normal(256, 32) + np.linspace(-3, 9, 32).astype(np.float32)).reshape(256, *shape[1:])}
        if "rank 3" in kind:
            proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    plain = Int8(tmp_path, proto, "static", calibrate=feed, bias_correction=False)
    correct = Int8(tmp_path, proto, "static", calibrate=feed, bias_correction=True)
    assert mean_errors(correct, feed).mean() < mean_errors(plain, feed).mean() / 3
    assert correct.fused.count("MatMulIntegerToFloat") == ("rank 3" in kind)
    assert correct.sqnr(feed) > plain.sqnr(feed)


BIASED = {
    "conv": ([node("Conv", ["x", "w"], ["y"])], [8, 6, 6], (4, 8, 1, 1), True),
    "gemm": ([node("Gemm", ["x", "w", "b"], ["y"])], [32], (32, 12), True),
    "matmul with a bias": (
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])],
        [3, 32],
        (32, 12),
        True,
    ),
    "matmul": ([node("MatMul", ["x", "w"], ["y"])], [32], (32, 12), False),
}


@pytest.mark.parametrize(("nodes", "shape", "weight", "corrected"), BIASED.values(), ids=BIASED)
def test_biases_are_corrected_by_default_where_no_node_comes_in_for_it(tmp_path, nodes, shape, weight, corrected):
    more = {"b": normal(12)} if any("b" in each.input for each in nodes) else {}
    out = [4, 6, 6] if len(shape) == 3 else [*shape[:-1], 12]
    proto = model(nodes, {"x": ["batch", *shape]}, {"y": ["batch", *out]}, {"w": normal(*weight), **more})
    feed = {"x": normal(64, *shape) + 3}
    default = Int8(tmp_path, proto, "static", calibrate=feed)
    plain = Int8(tmp_path, proto, "static", calibrate=feed, bias_correction=False)
    asked = Int8(tmp_path, proto, "static", calibrate=feed, bias_correction=True)
    assert (default.sqnr(feed) > plain.sqnr(feed)) == corrected
    assert len(default.proto.graph.node) == len(plain.proto.graph.node) + (weight == (4, 8, 1, 1))
    assert len(asked.proto.graph.node) > len(default.proto.graph.node) or corrected


def test_the_means_of_one_sample_say_nothing_by_default(tmp_path):
    nodes, shape, weight, _ = BIASED["gemm"]
    proto = model(nodes, {"x": ["batch", *shape]}, {"y": ["batch", 12]}, {"w": normal(*weight), "b": normal(12)})
    feed = {"x": normal(1, 32)}
    default, plain = (Int8(tmp_path, proto, "static", calibrate=feed, bias_correction=how) for how in (None, False))
    np.testing.assert_array_equal(default.weights["w_bias"], plain.weights["w_bias"])


def test_a_likely_mean_is_the_mean_where_samples_agree_and_zero_where_they_do_not():
    value = ir.val("x")
    seen = Statistics("minmax", means={value: 1})
    for sign in (1, -1, 1, -1):
        seen.take("x", np.array([[5.0, sign, 0.0, 2 + sign]], np.float32))
    found = seen.seen[value]
    np.testing.assert_allclose(found.mean, [5, 0, 0, 2])
    # The variance of the mean is 4 / 3 / 4.
    np.testing.assert_allclose(found.likely_mean, [5, 0, 0, 2 * (1 - 1 / 12)])


def test_all_together_are_still_fused(tmp_path):
    feed = {"x": normal(16, 3, 16, 16)}
    made = Int8(
        tmp_path,
        convolutions(),
        "static",
        calibrate=feed,
        equalize=True,
        smooth=0.5,
        bias_correction=True,
        method="mse",
    )
    assert made.fused.count("QLinearConv") == 3
    assert "QGemm" in made.fused
    assert made.sqnr(feed) > 33
