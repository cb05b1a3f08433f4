"""Cropping ONNX models by calibration data: units chosen by what they say, and what stays makes up for what goes."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
from onnx import numpy_helper

import modelopt_rs as mo
from graph_nets import Net
from modelopt_rs.errors import OptionError
from modelopt_rs.onnx.measure.patches import Patches

RNG = np.random.default_rng(0)


def mlp():
    """Return a model whose hidden units are correlated, and samples and others like them."""
    net = Net({"x": ["n", 24]})
    h = "x"
    for name, inputs in (("first", 24), ("second", 64), ("third", 64)):
        h = net.add("Relu", net.add("Gemm", h, net.w(name, inputs, 64), net.w(f"{name}.bias", 64)))
    net.add("MatMul", h, net.w("head", 64, 8), out="y")
    mix = RNG.normal(size=(6, 24)) * np.linspace(0.1, 3, 24)
    data = (RNG.normal(size=(600, 6)) @ mix + 0.05 * RNG.normal(size=(600, 24))).astype(np.float32)
    return net.proto(), {"x": data[:300]}, {"x": data[300:]}


def cnn():
    """Return a model of convolutions, with a Gemm behind them, and samples."""
    net = Net({"x": ["n", 3, 12, 12]})
    h = net.add("Relu", net.add("Conv", "x", net.w("one", 16, 3, 3, 3), net.w("one.bias", 16), pads=[1, 1, 1, 1]))
    h = net.add("Relu", net.add("Conv", h, net.w("two", 24, 16, 3, 3), net.w("two.bias", 24), strides=[2, 2]))
    h = net.add("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    h = net.add("Relu", net.add("Gemm", net.add("Flatten", h), net.w("fc", 96, 32), net.w("fc.bias", 32)))
    net.add("MatMul", h, net.w("head", 32, 5), out="y")
    low = RNG.normal(size=(200, 3, 4, 4)).repeat(3, axis=2).repeat(3, axis=3)
    data = (low + 0.1 * RNG.normal(size=(200, 3, 12, 12))).astype(np.float32)
    return net.proto(), {"x": data[:120]}, {"x": data[120:]}


def cropped(tmp_path, proto, name="b", **options):
    onnx.save(proto, tmp_path / "a.onnx")
    report = mo.crop_file(tmp_path / "a.onnx", tmp_path / f"{name}.onnx", durable=False, **options)
    small = onnx.load(tmp_path / f"{name}.onnx")
    onnx.checker.check_model(small, full_check=True)
    return report, {weight.name: numpy_helper.to_array(weight) for weight in small.graph.initializer}


@pytest.mark.parametrize("made", [mlp, cnn])
def test_calibration_makes_cropped_models_err_less(made, tmp_path):
    """H60: on other inputs than the samples, the same sizes."""
    proto, samples, others = made()
    run = mo.RunOptions(inputs=others)
    options = {"keep": 0.5, "what": ("ffn", "channels") if made is cnn else "ffn", "run": run}
    plain, weights = cropped(tmp_path, proto, "plain", **options)
    best, repaired = cropped(tmp_path, proto, "best", calibrate=samples, **options)
    assert {name: each.shape for name, each in weights.items()} == {name: each.shape for name, each in repaired.items()}
    assert best.run.outputs[0].sqnr_db > plain.run.outputs[0].sqnr_db + (3 if made is mlp else 0.5)
    assert best.options["calibrate"] == "dict"


def test_units_are_chosen_and_repaired_as_the_array_functions_say(tmp_path):
    """H60: one layer by hand, with ColumnNorms, crop's scores, and least_squares."""
    net = Net({"x": ["n", 24]})
    h = net.add("Relu", net.add("MatMul", "x", net.w("up", 24, 64)))
    net.add("MatMul", h, net.w("down", 64, 24), out="y")
    x = RNG.normal(size=(40, 24)).astype(np.float32)
    _, after = cropped(tmp_path, net.proto(), keep=0.5, what="ffn", calibrate=list(x[:, None]))
    up, down = net.weights["up"], net.weights["down"]
    hidden = np.maximum(x.astype(np.float64) @ up, 0)
    score = np.linalg.norm(hidden, axis=0) * np.linalg.norm(down, axis=1)
    kept = np.sort(np.argsort(score)[32:])
    np.testing.assert_array_equal(after["up"], up[:, kept])
    stats = mo.prune.InputStats(64)
    stats.update(hidden)
    want, _ = mo.prune.least_squares(np.ascontiguousarray(down.T), kept, stats, ridge=0.01)
    np.testing.assert_allclose(after["down"], want.T, rtol=1e-3, atol=1e-4)


def test_channels_are_repaired_by_kernel_positions(tmp_path):
    """H60: the same of a convolution, whose inputs are patches."""
    net = Net({"x": ["n", 3, 8, 8]})
    h = net.add("Relu", net.add("Conv", "x", net.w("up", 16, 3, 3, 3)))
    h = net.add("Conv", h, net.w("down", 24, 16, 2, 2), strides=[2, 2])
    net.add("Flatten", net.add("GlobalAveragePool", h), out="y")
    x = RNG.normal(size=(30, 3, 8, 8)).astype(np.float32)
    report, after = cropped(tmp_path, net.proto(), keep=0.5, what="channels", calibrate=x)
    assert report.groups[0].kept == 8
    up, down = net.weights["up"], net.weights["down"]
    first = Patches((3, 3), (1, 1), (1, 1), (0,) * 4, "NOTSET", 1)
    rows = np.concatenate(list(first.rows(x, 0))).astype(np.float64)
    hidden = np.maximum(rows @ np.moveaxis(up, 1, -1).reshape(16, -1).T, 0)
    hidden = np.moveaxis(hidden.reshape(30, 6, 6, 16), -1, 1)
    inputs = np.concatenate(list(Patches((2, 2), (2, 2), (1, 1), (0,) * 4, "NOTSET", 1).rows(hidden, 0)))
    matrix = np.moveaxis(down, 1, -1).reshape(24, -1)
    energy = (np.linalg.norm(inputs, axis=0) * np.linalg.norm(matrix, axis=0)) ** 2
    kept = np.sort(np.argsort(energy.reshape(4, 16).sum(axis=0))[8:])
    np.testing.assert_array_equal(after["up"], up[kept])
    stats = mo.prune.InputStats(64)
    stats.update(inputs)
    columns = (16 * np.arange(4)[:, None] + kept).ravel()
    want, _ = mo.prune.least_squares(matrix, columns, stats, ridge=0.01)
    want = np.moveaxis(want.reshape(24, 2, 2, 8), -1, 1)
    np.testing.assert_allclose(after["down"], want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate": {"z": np.ones(3)}}, "calibrate"),
        ({"calibrate": {"x": np.ones((2, 24), np.float32)}, "max_memory": 40_000}, "max_memory is 40,000"),
    ],
)
def test_options(options, message, tmp_path):
    with pytest.raises((OptionError, ValueError), match=message):
        cropped(tmp_path, mlp()[0], keep=0.5, what="ffn", **options)
    assert not (tmp_path / "b.onnx").exists()


def test_hidden_and_models_of_tensors_are_refused_with_the_way_out(tmp_path):
    w = np.ones((4, 4), np.float32)
    info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
    with mo.files.SafetensorsSink(tmp_path / "a.safetensors", [info]) as sink:
        sink.write("fc.weight", w)
        sink.commit()
    with pytest.raises(OptionError, match="calibrate must be left out for a model of tensors alone: nothing runs"):
        mo.crop_file(tmp_path / "a.safetensors", tmp_path / "b", keep=0.5, what="ffn", calibrate=[w])
    net = Net({"x": ["n", 32]})
    h = net.add("MatMul", "x", net.w("in", 32, 32))
    h = net.add("LayerNormalization", h, net.w("scale", 32), net.w("shift", 32))
    net.add("MatMul", h, net.w("head", 32, 24), out="y")
    with pytest.raises(
        OptionError,
        match="what must be of 'ffn', 'heads' or 'channels' with calibrate, got 'hidden', which 'all' has too: norms",
    ):
        cropped(tmp_path, net.proto(), keep=0.5, what="hidden", calibrate={"x": np.ones((2, 32), np.float32)})
