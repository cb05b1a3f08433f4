"""Constants of layers as exporters write them: in initializers, in nodes, and once where several are equal."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("onnxruntime")

import modelopt_rs as mo
from activation_graphs import model, node, normal
from modelopt_rs.planning.onnx import OnnxOptions


def constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def clipped(how: str) -> onnx.ModelProto:
    """Two convolutions with equal biases and a Clip between."""
    weights = {"w1": normal(8, 3, 3, 3), "w2": normal(8, 8, 3, 3)}
    few = {"b1": np.ones(8, np.float32), "low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c"]),
        node("Clip", ["c", "low", "high"], ["r"]),
        node("Conv", ["r", "w2", "b2"], ["y"]),
    ]
    if how == "initializers":
        weights |= few | {"b2": few["b1"]}
    else:
        nodes.insert(0, node("Identity", ["b1"], ["b2"]))
        if how == "nodes":
            nodes[:0] = [constant(name, array) for name, array in few.items()]
        else:
            weights |= few
    return model(nodes, {"x": ["batch", 3, 12, 12]}, {"y": ["batch", 8, 8, 8]}, weights)


@pytest.mark.parametrize("how", ["initializers", "nodes", "shared"])
def test_biases_and_bounds_count_wherever_they_stand(tmp_path: Path, how: str):
    """Of torch's exporter: equal biases behind Identity, bounds of ReLU6 in Constant nodes."""
    path, out = tmp_path / "m.onnx", tmp_path / "q.onnx"
    path.write_bytes(clipped(how).SerializeToString())
    onnx_options = OnnxOptions(calibrate={"x": normal(16, 3, 12, 12)})
    report = mo.quantize_file(path, out, onnx=onnx_options, run=mo.RunOptions())
    reasons = {each.name: each.reason for each in report.tensors}
    assert all("calibrated ranges" in reasons[name] for name in ("w1", "w2"))
    operators = [each.op_type for each in onnx.load(out).graph.node]
    assert operators.count("QuantizeLinear") == 3  # x, what the Clip leaves, y
    assert not {"Clip", "Identity"} & {*operators}
    assert report.run is not None
    assert report.run.sqnr_db > 25
