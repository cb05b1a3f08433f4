"""Which layers of an ONNX model get more bits than asked for: by how far off their outputs are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: onnx")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
from modelopt_rs.onnx.measure import layer_alone  # noqa: E402
from onnx_graphs import model, node, value  # noqa: E402


def normal(*shape: int, seed: int = 0, by: float = 1.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * by).astype(np.float32)


def quantized(path: Path, proto: Any, **options: Any) -> Any:
    onnx.save(proto, path / "a.onnx")
    return mo.quantize_file(path / "a.onnx", path / "b.onnx", **{"bits": 4, "durable": False, **options})


def reasons(report: Any) -> dict[str, str]:
    return {tensor.name: tensor.reason for tensor in report.tensors if tensor.decision == "quantize"}


def recurrent(by: float) -> Any:
    """An LSTM whose gates are near their middle, or far from it: then what is off adds up from step to step."""
    weights = {"w": normal(1, 400, 200, by=by), "r": normal(1, 400, 100, seed=1, by=by), "b": normal(1, 800, seed=2)}
    nodes = [node("LSTM", ["x", "w", "r", "b"], ["y", "", ""], name="l", hidden_size=100)]
    return model(nodes, [value("x", ["t", 1, 200])], [value("y", ["t", 1, 1, 100])], weights, opset=21)


def product() -> Any:
    """A matrix with one large row in each block: where x is zero there, the others are all of the output."""
    w = normal(128, 256, by=0.01)
    w[::32] = 20.0
    nodes = [node("MatMul", ["x", "w"], ["y"], name="m")]
    return model(nodes, [value("x", ["n", 128])], [value("y", ["n", 256])], {"w": w})


def seldom(rows: int = 40) -> Any:
    x = normal(rows, 128, seed=3)
    x[:, ::32] = 0.0
    return x


def test_an_lstm_gets_more_bits_where_its_output_is_too_far_off(tmp_path: Path) -> None:
    near = quantized(tmp_path, recurrent(0.1))
    assert not [reason for reason in reasons(near).values() if "error" in reason]
    far = quantized(tmp_path, recurrent(0.8), overwrite=True)
    for name in ("w", "r"):
        assert reasons(far)[name].startswith("8 bits (its error at 4 bits is 0.")
        assert " on made-up inputs): Cast and Mul" in reasons(far)[name]
    assert far.warnings[0] == "2 weights at 8 bits: their error at 4 bits is over 0.15"


def test_what_goes_through_the_layer_decides_and_the_report_says_what_that_was(tmp_path: Path) -> None:
    given = {"calibration data": {"onnx": mo.OnnxOptions(calibrate={"x": seldom()})}}
    given["the given inputs"] = {"run": mo.RunOptions(inputs={"x": seldom()})}
    for words, options in given.items():
        report = quantized(tmp_path, product(), overwrite=True, **options)
        assert reasons(report)["w"].startswith("8 bits (its error at 4 bits is ")
        assert f" on {words}): Cast and Mul" in reasons(report)["w"]
    # Nothing is run: its weights are measured, most of which is in one of each block.
    assert reasons(quantized(tmp_path, product(), overwrite=True, run=None))["w"] == "MatMulNBits, blocks of 32"


def test_data_that_calibrate_bits_leave_activations_as_they_are(tmp_path: Path) -> None:
    report = quantized(tmp_path, product(), onnx=mo.OnnxOptions(calibrate={"x": seldom()}))
    assert (report.options["activations"], report.options["calibrate"]) == ("none", "dict")
    with pytest.raises(mo.OptionError, match=r"^calibrate must be left out with uniform: nothing is measured$"):
        quantized(tmp_path, product(), uniform=True, overwrite=True, onnx=mo.OnnxOptions(calibrate={"x": seldom()}))
    static = mo.OnnxOptions(activations="static", calibrate={"x": seldom()})
    with pytest.raises(mo.OptionError, match=r"^calibrate \(static activations\) needs bits 8, got 4"):
        quantized(tmp_path, product(), overwrite=True, onnx=static)
    with pytest.raises(ValueError, match=r"^calibrate: must have the model's inputs 'x': 'x' is missing"):
        quantized(tmp_path, product(), overwrite=True, onnx=mo.OnnxOptions(calibrate={"z": seldom()}))


def test_of_a_weight_that_is_large_some_outputs_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, session = [], layer_alone.new_session

    def seen(data: bytes, *given: Any) -> Any:
        shapes.append([list(w.dims) for w in onnx.load_from_string(data).graph.initializer])
        return session(data, *given)

    monkeypatch.setattr(layer_alone, "new_session", seen)
    options = mo.OnnxOptions(calibrate={"x": seldom()})
    report = quantized(tmp_path, product(), onnx=options, max_memory=2**20)
    assert shapes[0] == [[128, 128]]  # that with float weights is the first
    assert reasons(report)["w"].startswith("8 bits (its error at 4 bits is ")


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm", "GRU", "RNN"])
def test_layers_of_other_operators_are_measured_too(tmp_path: Path, operator: str) -> None:
    if "Conv" in operator:
        nodes = [node(operator, ["x", "w"], ["y"], name="c")]
        proto = model(
            nodes,
            [value("x", ["n", 64, "h", 9])],
            [value("y", ["n", "m", "h", "w"])],
            {"w": normal(64, 64, 3, 3)},
            opset=21,
        )
    elif operator == "Gemm":
        nodes = [node("Gemm", ["x", "w", "b"], ["y"], name="c", transB=1)]
        constants = {"w": normal(96, 64), "b": normal(96)}
        proto = model(nodes, [value("x", ["n", 64])], [value("y", ["n", 96])], constants)
    else:
        gates = {"GRU": 3, "RNN": 1}[operator]
        constants = {"w": normal(1, 64 * gates, 64), "r": normal(1, 64 * gates, 64, seed=1)}
        nodes = [node(operator, ["x", "w", "r"], ["y"], name="c", hidden_size=64)]
        proto = model(nodes, [value("x", ["t", 1, 64])], [value("y", ["t", 1, 1, 64])], constants, opset=21)
    report = quantized(tmp_path, proto, max_layer_error=0.001)
    assert " on made-up inputs): " in reasons(report)["w"]


def test_a_model_that_can_not_be_run_has_its_weights_measured(tmp_path: Path) -> None:
    proto = product()
    proto.graph.input.append(value("words", [1], onnx.TensorProto.STRING))
    report = quantized(tmp_path, proto, max_layer_error=0.001)
    assert reasons(report)["w"].startswith("8 bits (its error at 4 bits is 0.0")
    assert " on " not in reasons(report)["w"].split(")")[0]


def attention(bias: bool) -> Any:
    """One head of attention as exporters write it, its weights without names that say what they do."""
    weights = {name: normal(64, 64, seed=i) for i, name in enumerate("qkvo")} | {"b": normal(64, seed=4)}
    nodes = []
    for name in "qkv":
        nodes.append(node("MatMul", ["x", name], [f"{name}0"]))
        nodes.append(
            node("Add", ["b", f"{name}0"], [f"{name}1"]) if bias else node("Identity", [f"{name}0"], [f"{name}1"])
        )
        nodes.append(node("Unsqueeze", [f"{name}1", "one"], [f"{name}2"]))
    nodes.append(node("Transpose", ["k2"], ["k3"], perm=[0, 1, 3, 2]))
    nodes.append(node("MatMul", ["q2", "k3"], ["scores"]))
    nodes.append(node("Softmax", ["scores"], ["p0"], axis=-1))
    nodes.append(node("Dropout", ["p0"], ["p"]))
    nodes.append(node("MatMul", ["p", "v2"], ["c0"]))
    nodes.append(node("Squeeze", ["c0", "one"], ["c"]))
    nodes.append(node("MatMul", ["c", "o"], ["y"]))
    constants = weights | {"one": np.array([1], np.int64)}
    return model(nodes, [value("x", ["n", 16, 64])], [value("y", ["n", 16, 64])], constants, opset=17)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_make_attention_values_are_known_by_the_graph(tmp_path: Path, bias: bool) -> None:
    report = quantized(tmp_path, attention(bias), run=None)
    assert [name for name, reason in reasons(report).items() if reason.startswith("8 bits")] == ["v"]
    assert report.warnings[0].endswith("over 0.075, the limit of attention values")
    told = quantized(tmp_path, attention(bias), run=None, max_layer_error=0.3, overwrite=True)
    assert not [reason for reason in reasons(told).values() if reason.startswith("8 bits")]
    alone = quantized(tmp_path, attention(bias), run=None, uniform=True, overwrite=True)
    assert not [reason for reason in reasons(alone).values() if reason.startswith("8 bits")]
