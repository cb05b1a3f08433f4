"""Static int8: activations that 8 bits are too few for stay float, and codes are not spent where nothing is left."""

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

import modelopt_rs as mo
from activation_graphs import model, node, normal
from modelopt_rs.errors import OptionError
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.report.reports import Report


def with_outliers() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Two layers of which the first takes what one number in thousands is 500 times as large as."""
    proto = model(
        [node("MatMul", ["x", "w1"], ["h"]), node("Tanh", ["h"], ["t"]), node("MatMul", ["t", "w2"], ["y"])],
        {"x": ["batch", 24]},
        {"y": ["batch", 32]},
        {"w1": normal(24, 96), "w2": normal(96, 32)},
    )
    feed = {"x": normal(512, 24)}
    feed["x"][100, 5] = 500.0
    return proto, feed


def quantized(folder: Path, proto: onnx.ModelProto, feed: dict[str, np.ndarray], **options) -> Report:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    onnx_options = OnnxOptions(calibrate=feed, **options.pop("onnx", {}))
    return mo.quantize_file(path, folder / "q.onnx", onnx=onnx_options, overwrite=True, **options)


def operators(path: Path) -> list[str]:
    return [each.op_type for each in onnx.load(path).graph.node]


def test_a_layer_that_takes_numbers_too_far_off_stays_float_and_its_weight_gets_codes(tmp_path):
    proto, feed = with_outliers()
    report = quantized(tmp_path, proto, feed)
    reasons = {each.name: each.reason for each in report.tensors}
    assert "off in int8 on calibration data" in reasons["w1"]
    assert {each.name: each.decision for each in report.tensors}["w1"] == "quantize"
    assert "calibrated ranges" in reasons["w2"]
    assert sum("over 0.06 off in int8" in each for each in report.warnings) == 1
    assert operators(tmp_path / "q.onnx").count("QuantizeLinear") == 1  # of the second layer


@pytest.mark.parametrize("options", [{"uniform": True}, {"max_layer_error": 10.0}])
def test_the_limit_can_be_raised_or_turned_off(tmp_path, options):
    proto, feed = with_outliers()
    report = quantized(tmp_path, proto, feed, **options)
    assert all("calibrated ranges" in each.reason for each in report.tensors)
    assert not any("off in int8" in each for each in report.warnings)


def test_a_lower_limit_leaves_more(tmp_path):
    proto, feed = with_outliers()
    report = quantized(tmp_path, proto, feed, max_layer_error=1e-6)
    assert not any("calibrated ranges" in each.reason for each in report.tensors)
    assert "QuantizeLinear" not in operators(tmp_path / "q.onnx")


def test_samples_that_come_once_are_not_measured(tmp_path):
    proto, feed = with_outliers()
    report = quantized(tmp_path, proto, iter([feed]), run=None)
    assert all("calibrated ranges" in each.reason for each in report.tensors)


def test_what_is_left_float_is_not_smoothed_either(tmp_path):
    """A factor of what goes in must not stay in a weight whose input has none."""
    proto, feed = with_outliers()
    feed["x"][:, 7] *= 30.0
    quantized(tmp_path, proto, feed, onnx={"smooth": 0.5}, max_layer_error=1e-6, run=None)
    rows = {"x": feed["x"][:16]}
    there, found = (session(path).run(None, rows)[0] for path in (tmp_path / "m.onnx", tmp_path / "q.onnx"))
    assert np.linalg.norm(found - there) < 0.1 * np.linalg.norm(there)


def test_a_pool_after_a_convolution_that_stays_float_keeps_its_range(tmp_path):
    """What was on the grid of the convolution has one of its own, with the same range."""
    weights = {"w1": normal(8, 3, 3, 3), "w2": normal(64, 8, 3, 3)}
    nodes = [
        node("Conv", ["x", "w1"], ["c"]),
        node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
        node("Conv", ["p", "w2"], ["y"]),
    ]
    proto = model(nodes, {"x": ["batch", 3, 16, 16]}, {"y": ["batch", 64, 11, 11]}, weights)
    feed = {"x": normal(4, 3, 16, 16)}
    feed["x"][0, 0, 0, 0] = 2000.0
    report = quantized(tmp_path, proto, feed, run=None)
    assert "off in int8" in {each.name: each.reason for each in report.tensors}["w1"]
    session(tmp_path / "q.onnx").run(None, {"x": feed["x"][1:2]})


def session(path: Path):
    from onnxruntime import InferenceSession

    return InferenceSession(str(path), providers=["CPUExecutionProvider"])


def gated(gate: list[onnx.NodeProto], low: float) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A convolution whose output goes far below zero, into a gate that makes nothing of that."""
    w = np.zeros((2, 2, 1, 1), np.float32)
    w[0, 0] = w[1, 1] = 1.0
    nodes = [node("Conv", ["x", "w1"], ["c"]), *gate, node("Conv", ["g", "w2"], ["y"])]
    proto = model(nodes, {"x": ["batch", 2, 8, 8]}, {"y": ["batch", 2, 8, 8]}, {"w1": w, "w2": w})
    x = normal(4, 2, 8, 8)
    x[:, 0, 0] = low
    return proto, {"x": x}


SWISH = [node("Sigmoid", ["c"], ["s"]), node("Mul", ["c", "s"], ["g"])]
HARD = [node("HardSigmoid", ["c"], ["s"], alpha=1 / 6, beta=0.5), node("Mul", ["s", "c"], ["g"])]


def scale_of(path: Path, value: str) -> float:
    found = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    return float(found[f"{value}_scale"])


@pytest.mark.parametrize(("gate", "least"), [(SWISH, -8.0), (HARD, -3.0)], ids=["swish", "hard"])
def test_no_codes_are_spent_on_what_a_gate_makes_nothing_of(tmp_path, gate, least):
    proto, feed = gated(gate, -40.0)
    quantized(tmp_path, proto, feed, run=None)
    assert scale_of(tmp_path / "q.onnx", "c") <= (float(feed["x"].max()) - least) / 255 * 1.01
    near, far = ({"x": feed["x"][:1] if x is None else x} for x in (None, np.full((1, 2, 8, 8), -30.0, np.float32)))
    step = scale_of(tmp_path / "q.onnx", "x")
    for rows, most in ((near, step / 2 + 0.05), (far, 0.03)):
        there, found = (session(path).run(None, rows)[0] for path in (tmp_path / "m.onnx", tmp_path / "q.onnx"))
        assert np.abs(found - there).max() < most


def test_what_goes_elsewhere_too_keeps_its_range(tmp_path):
    proto, feed = gated([*SWISH, node("Identity", ["c"], ["also"])], -40.0)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("also", 1, ["batch", 2, 8, 8]))
    quantized(tmp_path, proto, feed, run=None)
    assert scale_of(tmp_path / "q.onnx", "c") >= 40 / 255


def test_uniform_and_a_limit_exclude_each_other(tmp_path):
    proto, feed = with_outliers()
    with pytest.raises(OptionError, match="max_layer_error must be left out with uniform, got"):
        quantized(tmp_path, proto, feed, uniform=True, max_layer_error=0.1)


def with_a_peak(first: str = "Add") -> onnx.ModelProto:
    """Two products; whatever the first one's input is, one number of it in thousands is hundreds of times as large."""
    peak = np.zeros((16, 512), np.float32)
    peak[3, 7] = 500.0
    nodes = [
        node(first, ["x", "peak"] if first == "Add" else ["x"], ["a"]),
        node("MatMul", ["a", "w1"], ["h"]),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "w2"], ["y"]),
    ]
    weights = {"peak": peak, "w1": normal(512, 64), "w2": normal(64, 32)}
    return model(nodes, {"x": [16, 512]}, {"y": [16, 32]}, weights if first == "Add" else weights | {"peak": peak[0]})


def dynamic(folder: Path, proto: onnx.ModelProto, **options) -> Report:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return mo.quantize_file(path, folder / "q.onnx", onnx=OnnxOptions(activations="dynamic"), overwrite=True, **options)


def test_dynamic_layers_too_far_off_on_made_up_inputs_stay_float(tmp_path):
    proto, x = with_a_peak(), {"x": normal(16, 512)}
    errors = {}
    for uniform in (False, True):
        report = dynamic(tmp_path, proto, uniform=uniform)
        there, found = (session(tmp_path / name).run(None, x)[0] for name in ("m.onnx", "q.onnx"))
        errors[uniform] = np.linalg.norm(found - there) / np.linalg.norm(there)
        assert operators(tmp_path / "q.onnx").count("DynamicQuantizeLinear") == 1 + uniform
        told = [each for each in report.warnings if "off in int8 on made-up inputs" in each]
        assert len(told) == (not uniform)
        assert all("uniform ends it" in each for each in told)
    assert errors[False] < 0.5 * errors[True]


@pytest.mark.parametrize("options", [{"max_layer_error": 10.0}, {"run": None}])
def test_dynamic_layers_all_quantize_by_a_higher_limit_and_without_a_run(tmp_path, options):
    report = dynamic(tmp_path, with_a_peak(), **options)
    assert operators(tmp_path / "q.onnx").count("DynamicQuantizeLinear") == 2
    assert not any("off in int8" in each for each in report.warnings)


def test_dynamic_layers_are_measured_on_inputs_that_are_given(tmp_path):
    x = normal(16, 512)
    x[3, 7] = -500.0  # what the graph adds
    report = dynamic(tmp_path, with_a_peak(), run=mo.RunOptions(inputs={"x": x}), max_layer_error=0.03)
    assert not any("off in int8" in each for each in report.warnings)
    report = dynamic(tmp_path, with_a_peak(), run=mo.RunOptions(inputs={"x": 2 * x}))
    assert any("off in int8 on the given inputs" in each for each in report.warnings)


def test_numbers_that_are_none_on_made_up_inputs_are_no_error(tmp_path):
    """The logarithm of inputs of both signs says nothing about real ones."""
    report = dynamic(tmp_path, with_a_peak("Log"))
    assert not any("off in int8" in each for each in report.warnings)
    assert operators(tmp_path / "q.onnx").count("DynamicQuantizeLinear") == 2


@pytest.mark.parametrize(("count", "as_files"), [(3, True), (3, False), (15, False), (16, False), (16, True)])
def test_ranges_of_few_samples_are_told(tmp_path, count, as_files):
    """Any other sample goes beyond the range of n with a chance of 1 in n + 1, whatever the data are."""
    proto, feed = with_outliers()
    feeds = [{"x": feed["x"][i : i + 1]} for i in range(count)]
    given = {"x": feed["x"][:count]}
    if as_files:
        given = tmp_path / "samples"
        given.mkdir()
        for i, each in enumerate(feeds):
            np.savez(given / f"{i}.npz", **each)
    for data in (given, feeds):
        report = quantized(tmp_path, proto, data, run=None)
        told = [each for each in report.warnings if "activations have the ranges" in each]
        assert len(told) == (count < 16)
        assert all(
            f"{count} samples: another goes beyond each end with a chance of 1 in {count + 1};" in t for t in told
        )


def test_samples_are_counted_with_their_batch_and_where_that_is_known(tmp_path):
    proto, feed = with_outliers()
    for data in ([{"x": feed["x"][:16]}], lambda: iter([{"x": feed["x"][:1]}])):
        report = quantized(tmp_path, proto, data, run=None)
        assert not any("activations have the ranges" in each for each in report.warnings)
