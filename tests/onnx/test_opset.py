"""A later opset is said without a converter where no operator differs in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: onnx")
ir = pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
from modelopt_rs.onnx import opset  # noqa: E402
from onnx_graphs import model, node, value  # noqa: E402

NODES = {
    "Constant": (node("Constant", [], ["y"], value_floats=[1.0, 2.0]), [2]),
    "Conv": (node("Conv", ["x", "x"], ["y"], pads=[1, 1]), [1, 1, 3]),
    "Flatten": (node("Flatten", ["x"], ["y"]), [1, 12]),
    "Identity": (node("Identity", ["x"], ["y"]), [1, 3, 4]),
    "Relu": (node("Relu", ["x"], ["y"]), [1, 3, 4]),
    "Reshape": (node("Reshape", ["x", "shape"], ["y"]), [2, 6]),
    "Squeeze": (node("Squeeze", ["x", "axis"], ["y"]), [3, 4]),
    "Transpose": (node("Transpose", ["x"], ["y"], perm=[1, 0, 2]), [3, 1, 4]),
    "Unsqueeze": (node("Unsqueeze", ["x", "axis"], ["y"]), [1, 1, 3, 4]),
}


def single(name: str, have: int) -> Any:
    each, shape = NODES[name]
    weights = {"shape": np.array([2, 6]), "axis": np.array([0])}
    used = {name: weights[name] for name in each.input if name in weights}
    return ir.from_proto(model([each], [value("x", [1, 3, 4])], [value("y", shape)], used, opset=have))


@pytest.mark.parametrize("name", [*opset.ONLY_TYPES, "Relu", "Conv"])
@pytest.mark.parametrize("have", [14, 17, 19])
def test_what_is_said_is_what_the_converter_makes_of_it(name: str, have: int) -> None:
    said, made = single(name, have), single(name, have)
    assert opset.raise_alike(said, 21)
    opset.raise_opset(made, 21)
    one, other = (ir.to_proto(each) for each in (said, made))
    assert [n.SerializeToString() for n in one.graph.node] == [n.SerializeToString() for n in other.graph.node]
    assert (one.opset_import, one.ir_version) == (other.opset_import, other.ir_version)


@pytest.mark.parametrize(
    ("name", "have", "to"),
    [
        ("Softmax", 11, 21),
        ("Identity", 13, 21),
        ("Identity", 21, 25),
        ("Cast", 17, 21),
        ("Relu", 21, 21),
        ("None", 17, 21),
    ],
)
def test_what_differs_or_is_unknown_stays_for_the_converter(name: str, have: int, to: int) -> None:
    found = ir.Model(ir.Graph([], [], nodes=[ir.node(name, [ir.val("x")])], opset_imports={"": have}), ir_version=8)
    assert not opset.raise_alike(found, to)
    assert found.graph.opset_imports[""] == have


def test_a_model_is_converted_once_however_many_layers_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer alone was a model that had a process of its own to be converted in."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((16, 16, 3, 3)) / 12).astype(np.float32) for i in range(6)}
    nodes = [node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[1] * 4) for i in range(6)]
    sides = [value(name, ["n", 16, 12, 12]) for name in ("x0", "x6")]
    onnx.save(model(nodes, sides[:1], sides[1:], weights, opset=17), tmp_path / "a.onnx")
    calls: list[str] = []
    apart = opset.call_apart
    monkeypatch.setattr(opset, "call_apart", lambda *a, **k: (calls.append(a[0]), apart(*a, **k))[1])
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", bits=4, durable=False)
    assert [each.decision for each in report.tensors] == ["quantize"] * 6
    assert len(calls) == 1
