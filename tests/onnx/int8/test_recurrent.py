"""LSTMs in int8, run in onnxruntime against the originals and against what its own tool makes."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx
from onnx import helper, numpy_helper

from activation_graphs import Int8, model, node, normal

FEED = {"x": normal(12, 2, 24)}


def lstm(directions: int = 2, *, hidden: int = 32, operator: str = "LSTM", **attributes):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator] * hidden
    weights = {
        "w": normal(directions, gates, 24, scale=0.3),
        "r": normal(directions, gates, hidden, scale=0.15),
        "b": normal(directions, 2 * gates, scale=0.1),
    }
    both = "bidirectional" if directions == 2 else "forward"
    made = [node(operator, ["x", *weights], ["y"], name="cell", hidden_size=hidden, direction=both, **attributes)]
    return model(made, {"x": ["steps", "batch", 24]}, {"y": ["steps", directions, "batch", hidden]}, weights)


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_with_dynamic_activations_is_a_dynamic_quantize_lstm(tmp_path, directions):
    """H26."""
    made = Int8(tmp_path, lstm(directions), "dynamic")
    assert made.fused == ["DynamicQuantizeLSTM"]
    assert made.sqnr(FEED) > 35
    assert {decision.action for name, decision in made.decisions.items() if name in "wr"} == {"quantize"}


def test_an_lstm_is_as_near_to_its_weights_as_onnxruntimes_own(tmp_path):
    """H26: codes whose products fit in 16 bits cost less than the seven bits that its tool has for that."""
    from onnxruntime.quantization import quantize_dynamic

    made = Int8(tmp_path, lstm(), "dynamic")
    quantize_dynamic(made.before, tmp_path / "own.onnx", per_channel=True, reduce_range=True)
    ours = made.sqnr(FEED)
    size = made.after.stat().st_size
    made.after = tmp_path / "own.onnx"
    assert ours > made.sqnr(FEED) - 0.1
    assert size < 1.05 * made.after.stat().st_size


def test_two_neighbouring_codes_of_an_lstm_never_saturate(tmp_path):
    """H26: 255 times the sum of any two that are multiplied together fits in 16 bits."""
    codes = Int8(tmp_path, lstm(), "dynamic").weights["w_quantized"].astype(np.int64)
    assert codes.dtype == np.int64
    assert np.abs(codes[..., ::2] + codes[..., 1::2]).max() * 255 < 2**15
    assert np.abs(codes).max() > 64


def test_an_lstm_in_tiles_gives_the_codes_of_one_in_memory(tmp_path):
    whole, tiles = (Int8(tmp_path, lstm(), "dynamic", max_memory=size).weights for size in (2**28, 2**15))
    assert all(np.array_equal(whole[name], tiles[name]) for name in whole)


def test_an_lstm_in_a_body_is_quantized(tmp_path):
    proto = lstm(1)
    body = helper.make_graph(list(proto.graph.node), "body", [], list(proto.graph.output))
    body.output[0].name = body.node[0].output[0] = "inner"
    yes = numpy_helper.from_array(np.array(True), "yes")
    del proto.graph.node[:]
    proto.graph.node.append(node("If", ["yes"], ["y"], then_branch=body, else_branch=body))
    proto.graph.initializer.append(yes)
    made = Int8(tmp_path, proto, "dynamic")
    assert made.sqnr(FEED) > 35
    assert made.decisions["w"].action == "quantize"


@pytest.mark.parametrize(
    ("proto", "exclude", "reason"),
    [
        (lstm(operator="GRU"), [], "GRU 'cell': onnxruntime has no int8 kernel for it"),
        (lstm(operator="RNN"), [], "RNN 'cell': onnxruntime has no int8 kernel for it"),
        (lstm(), ["r"], "LSTM 'cell': its other weight is not quantized"),
    ],
    ids=["GRU", "RNN", "the other weight"],
)
def test_why_a_recurrent_weight_is_left_alone(tmp_path, proto, exclude, reason):
    made = Int8(tmp_path, proto, "dynamic", exclude=exclude)
    assert (made.decisions["w"].action, made.decisions["w"].reason) == ("copy", reason)


def test_a_portable_lstm_stays_standard(tmp_path):
    made = Int8(tmp_path, lstm(), "dynamic", target="portable")
    assert made.operators == ["LSTM"]
    assert made.decisions["w"].reason == "LSTM 'cell': DynamicQuantizeLSTM is onnxruntime's own; the target is portable"


def test_a_model_with_an_lstm_that_is_small_is_quantized(tmp_path):
    made = Int8(tmp_path, lstm(1, hidden=2), "dynamic")
    assert made.weights["r_quantized"].dtype == np.int8
    assert onnx.load(made.after).graph.node[-1].op_type == "DynamicQuantizeLSTM"
