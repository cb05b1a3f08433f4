"""What goes into layers in the bodies of If, Loop and Scan is seen as it runs (H30)."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import modelopt_rs as mo
from modelopt_rs.onnx.int8.observe import Observer

pytest.importorskip("onnxruntime")

N, FLOAT = 16, TensorProto.FLOAT
RNG = np.random.default_rng(5)
W = {name: (RNG.standard_normal((N, N)) / 4).astype(np.float32) for name in ("w0", "w1", "w2", "w3")}


def info(name: str, kind: int = FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def layer(x: str, w: str, y: str) -> list[onnx.NodeProto]:
    return [helper.make_node("MatMul", [x, w], [f"{y}_m"]), helper.make_node("Tanh", [f"{y}_m"], [y])]


def branch(name: str, nodes: list[onnx.NodeProto], out: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [info(out)])


def loop_body(nodes: list[onnx.NodeProto], state: str, out: str) -> onnx.GraphProto:
    nodes = [*nodes, helper.make_node("Identity", [f"{state}_c"], [f"{state}_o"])]
    inputs = [info(f"{state}_i", TensorProto.INT64, []), info(f"{state}_c", TensorProto.BOOL, []), info(state)]
    return helper.make_graph(nodes, "body", inputs, [info(f"{state}_o", TensorProto.BOOL, []), info(out)])


def save(path: Path, nodes: list[onnx.NodeProto], shape: Any, weights: dict[str, np.ndarray] = W) -> Path:
    extra = {"three": np.array(3), "yes": np.array(True), "zero": np.float32(0), "s0": np.zeros((2, N), np.float32)}
    tensors = [numpy_helper.from_array(np.asarray(x), name) for name, x in {**weights, **extra}.items()]
    graph = helper.make_graph(nodes, "g", [info("x", FLOAT, shape)], [info("y")], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def chosen(then: list[onnx.NodeProto], other: list[onnx.NodeProto], outs: tuple[str, str]) -> list[onnx.NodeProto]:
    """By the sign of the sum of x."""
    return [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["more"]),
        helper.make_node(
            "If",
            ["more"],
            ["y"],
            then_branch=branch("then", then, outs[0]),
            else_branch=branch("else", other, outs[1]),
        ),
    ]


def seen(path: Path, names: list[str], feeds: list[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    observer = Observer(ir.load(path), path, names)
    return list(observer.values(({"x": x} for x in feeds), names))


def test_h30_of_a_branch_what_it_makes_when_it_is_taken(tmp_path: Path) -> None:
    nodes = chosen(
        layer("x", "w0", "a") + layer("a", "w1", "b"), layer("x", "w2", "c") + layer("c", "w3", "d"), ("b", "d")
    )
    path = save(tmp_path / "m.onnx", nodes, ["b", N])
    up, down = np.full((3, N), 0.5, np.float32), np.full((2, N), -0.5, np.float32)
    found = seen(path, ["a", "c"], [up, down, up])
    assert [name for name, _ in found] == ["a", "c", "a"]
    for (_, got), want in zip(found, [np.tanh(up @ W["w0"]), np.tanh(down @ W["w2"])] * 2, strict=False):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert [len(x) for x in Observer(ir.load(path), path, ["a", "c"]).outputs({"x": up}, ["y", "a", "c"])] == [3, 3, 0]


def test_h30_of_a_loop_what_goes_in_each_time_whatever_its_shape(tmp_path: Path) -> None:
    body = loop_body([*layer("st", "w0", "t"), helper.make_node("Concat", ["t", "x"], ["u"], axis=0)], "st", "u")
    nodes = [helper.make_node("Loop", ["three", "yes", "x"], ["l"], body=body), *layer("l", "w1", "y")]
    x = RNG.standard_normal((2, N)).astype(np.float32)
    (_, states), (_, last) = seen(save(tmp_path / "m.onnx", nodes, ["b", N]), ["st", "l"], [x])[::-1]
    want, state = [], x
    for _ in range(3):
        want.append(state)
        state = np.concatenate([np.tanh(state @ W["w0"]), x])
    np.testing.assert_allclose(states, np.concatenate(want), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, state, rtol=1e-5, atol=1e-6)


def test_h30_of_a_scan_and_of_bodies_in_bodies(tmp_path: Path) -> None:
    inner = loop_body(layer("st", "w0", "t"), "st", "t")
    scan = helper.make_graph(
        [
            helper.make_node("Add", ["xi", "si"], ["v"]),
            helper.make_node("Loop", ["three", "", "v"], ["l"], body=inner),
            helper.make_node("Identity", ["l"], ["so"]),
            *layer("l", "w1", "yo"),
        ],
        "scan",
        [info("si", shape=[2, N]), info("xi", shape=[2, N])],
        [info("so", shape=[2, N]), info("yo", shape=[2, N])],
    )
    other = [helper.make_node("Identity", ["x"], ["z"])]
    nodes = chosen(
        [helper.make_node("Scan", ["s0", "x"], ["sf", "r"], body=scan, num_scan_inputs=1)], other, ("r", "z")
    )
    x = np.abs(RNG.standard_normal((4, 2, N))).astype(np.float32)
    found = dict(seen(save(tmp_path / "m.onnx", nodes, ["t", 2, N]), ["st", "l"], [x]))
    states, rows, s = [], [], np.zeros((2, N), np.float32)
    for each in x:
        state = each + s
        for _ in range(3):
            states.append(state)
            state = np.tanh(state @ W["w0"])
        rows.append(state)
        s = state
    np.testing.assert_allclose(found["st"], np.concatenate(states), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["l"], np.concatenate(rows), rtol=1e-5, atol=1e-5)
    assert seen(tmp_path / "m.onnx", ["st", "l"], [-x]) == []


@pytest.mark.parametrize("command", ["gptq", "wanda", "calibrate"])
def test_h30_commands_calibrate_weights_in_bodies(tmp_path: Path, command: str) -> None:
    body = loop_body(layer("st", "w0", "t"), "st", "t")
    nodes = [
        helper.make_node("Loop", ["three", "yes", "x"], ["l"], body=body),
        *layer("l", "w1", "h"),
        *layer("h", "w2", "y"),
    ]
    weights = {name: np.ascontiguousarray(w) for name, w in W.items() if name != "w3"}
    path, data = save(tmp_path / "m.onnx", nodes, ["b", N], weights), RNG.standard_normal((8, N)).astype(np.float32)
    if command == "calibrate":
        report = mo.calibrate_file(path, tmp_path / "s.safetensors", calibrate={"x": data})
        assert {each.name: each.rows for each in report.weights} == {"w0": 24, "w1": 8, "w2": 8}
        return
    if command == "wanda":
        made = mo.prune_file(path, tmp_path / "o.onnx", sparsity=0.5, method="wanda", calibrate={"x": data}, run=None)
    else:
        made = mo.quantize_file(path, tmp_path / "o.onnx", bits=4, method="gptq", calibrate={"x": data}, run=None)
    (w0,) = (each for each in made.tensors if each.name == "w0")
    assert w0.decision != "copy"
    assert "body" not in (w0.reason or "")
