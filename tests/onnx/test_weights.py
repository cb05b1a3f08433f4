"""Weights are found wherever they stand, with all their uses, and with axes as they are stored."""

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from modelopt_rs.onnx import Weight, find_weights  # noqa: E402
from modelopt_rs.onnx.weights import other_use  # noqa: E402
from onnx_graphs import model, node, value  # noqa: E402


def found(proto: onnx.ModelProto) -> dict[str, Weight]:
    return {weight.name: weight for weight in find_weights(ir.from_proto(proto))}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


OPERATORS = {
    "MatMul": (node("MatMul", ["x", "w"], ["y"]), [2, 4], [2, 6], ones(4, 6), (0, 1)),
    "Gemm": (node("Gemm", ["x", "w"], ["y"]), [2, 4], [2, 6], ones(4, 6), (0, 1)),
    "Gemm transB": (node("Gemm", ["x", "w"], ["y"], transB=1), [2, 4], [2, 6], ones(6, 4), (1, 0)),
    "Conv": (node("Conv", ["x", "w"], ["y"]), [1, 4, 5, 5], [1, 6, 3, 3], ones(6, 4, 3, 3), (1, 0)),
    "ConvTranspose": (node("ConvTranspose", ["x", "w"], ["y"]), [1, 4, 3, 3], [1, 6, 5, 5], ones(4, 6, 3, 3), (0, 1)),
    "LSTM": (node("LSTM", ["x", "w", "w"], ["y"], hidden_size=4), [3, 2, 4], [3, 1, 2, 4], ones(1, 16, 4), (2, 1)),
    "GRU": (node("GRU", ["x", "w", "w"], ["y"], hidden_size=4), [3, 2, 4], [3, 1, 2, 4], ones(1, 12, 4), (2, 1)),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_the_weight_of_each_operator_is_found_with_its_axes(case: str) -> None:
    made, x, y, w, axes = OPERATORS[case]
    weight = found(model([made], [value("x", x)], [value("y", y)], {"w": w}))["w"]
    assert (weight.kind, weight.in_axis, weight.out_axis) == (case.split()[0].lower(), *axes)
    assert weight.shape == w.shape
    assert [use.reason for use in weight.uses] == [None] * (2 if case in ("LSTM", "GRU") else 1)
    assert weight.others == ()


@pytest.mark.parametrize("equation", ["ij->ji", "ij,jk->ik"])
def test_an_einsum_of_a_weight_alone_is_left_with_the_reason(equation: str) -> None:
    """Also where the equation speaks of an input that isn't there."""
    made = [node("Einsum", ["w"], ["t"], equation="ij->ji"), node("Add", ["x", "t"], ["y"])]
    proto = model(made, [value("x", [6, 4])], [value("y", [6, 4])], {"w": ones(4, 6)})
    proto.graph.node[0].attribute[0].s = equation.encode()
    assert [use.reason for use in found(proto)["w"].uses] == ["Einsum with one input"]


def test_a_table_is_found() -> None:
    proto = model(
        [node("Gather", ["w", "i"], ["y"])],
        [value("i", [3], TensorProto.INT64)],
        [value("y", [3, 6])],
        {"w": ones(4, 6)},
    )
    weight = found(proto)["w"]
    assert (weight.kind, weight.in_axis, weight.out_axis) == ("gather", 1, 0)


def test_axes_are_those_of_the_stored_tensor_behind_transpose_cast_and_identity() -> None:
    nodes = [
        node("Transpose", ["w"], ["a"], perm=[1, 0]),
        node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        node("Identity", ["b"], ["c"]),
        node("MatMul", ["x", "c"], ["y"]),
    ]
    w = np.ones((6, 4), np.float16)
    weight = found(model(nodes, [value("x", [2, 4])], [value("y", [2, 6])], {"w": w}))["w"]
    [use] = weight.uses
    assert (use.in_axis, use.out_axis) == (1, 0)
    assert [n.op_type for n in use.chain] == ["Transpose", "Cast", "Identity"]
    assert use.dtype == ir.DataType.FLOAT


def test_transpose_without_perm_reverses_and_two_compose() -> None:
    nodes = [
        node("Transpose", ["w"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[1, 0, 2, 3]),
        node("Conv", ["x", "b"], ["y"]),
    ]
    # Stored [kw, kh, out, in]; reversed [in, out, kh, kw]; then [out, in, kh, kw].
    weight = found(model(nodes, [value("x", [1, 4, 5, 5])], [value("y", [1, 6, 3, 3])], {"w": ones(3, 3, 6, 4)}))["w"]
    assert (weight.in_axis, weight.out_axis) == (3, 2)


def test_a_shared_weight_comes_once_with_all_uses_and_what_else_uses_it() -> None:
    nodes = [
        node("Gather", ["w", "i"], ["rows"], name="table"),
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["rows", "t"], ["y"], name="head"),
        node("Add", ["w", "w"], ["z"]),
    ]
    inputs, outputs = [value("i", [3], TensorProto.INT64)], [value("y", [3, 6]), value("z", [6, 4])]
    weights = found(model(nodes, inputs, outputs, {"w": ones(6, 4)}))
    assert list(weights) == ["w"]
    assert {use.node.name: (use.kind, use.in_axis, use.out_axis) for use in weights["w"].uses} == {
        "table": ("gather", 1, 0),
        "head": ("matmul", 1, 0),
    }
    assert set(weights["w"].others) == {"Add"}


def test_an_output_of_the_graph_is_another_use() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("Identity", ["w"], ["z"])]
    weight = found(model(nodes, [value("x", [2, 4])], [value("y", [2, 6]), value("z", [4, 6])], {"w": ones(4, 6)}))["w"]
    assert weight.others == ("output",)


def _branch(name: str) -> onnx.GraphProto:
    return helper.make_graph([node("MatMul", ["x", "w"], [f"{name}_y"])], name, [], [value(f"{name}_y", [2, 6])])


def test_uses_in_the_bodies_of_if_and_loop_are_found() -> None:
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("MatMul", ["state", "square"], ["next"])],
        "body",
        [value("step", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state", [2, 6])],
        [value("go_on", [], TensorProto.BOOL), value("next", [2, 6])],
    )
    nodes = [
        node("If", ["c"], ["a"], then_branch=_branch("then"), else_branch=_branch("else")),
        node("Loop", ["n", "c", "a"], ["y"], body=body),
    ]
    inputs = [value("x", [2, 4]), value("c", [], TensorProto.BOOL), value("n", [], TensorProto.INT64)]
    weights = found(model(nodes, inputs, [value("y", [2, 6])], {"w": ones(4, 6), "square": ones(6, 6)}))
    assert [len(weight.uses) for weight in weights.values()] == [2, 1]
    assert {use.node.graph.name for use in weights["w"].uses} == {"then", "else"}


@pytest.mark.parametrize(
    ("made", "x", "y", "axes"),
    [
        (node("MatMul", ["w", "x"], ["y"]), [6, 2], [4, 2], (1, 0)),
        (node("Gemm", ["w", "x"], ["y"]), [6, 2], [4, 2], (1, 0)),
        (node("Gemm", ["w", "x"], ["y"], transA=1), [4, 2], [6, 2], (0, 1)),
        (node("Gemm", ["x", "w"], ["y"], transA=1), [4, 2], [2, 6], (0, 1)),
        (node("Gemm", ["x", "w"], ["y"], transA=1, transB=1), [6, 2], [2, 4], (1, 0)),
    ],
)
def test_weights_on_the_left_and_beside_what_is_turned_are_found(made: Any, x: Any, y: Any, axes: Any) -> None:
    [use] = found(model([made], [value("x", x)], [value("y", y)], {"w": ones(4, 6)}))["w"].uses
    assert (use.kind, use.reason, (use.in_axis, use.out_axis)) == ("batched", None, axes)


REASONS = {
    "1-dimensional": ([node("MatMul", ["x", "w"], ["y"])], [2, 4], [2], ones(4)),
    "MatMul takes nothing but constants": ([node("MatMul", ["w", "w"], ["y"])], [4, 4], [4, 4], ones(4, 4)),
}


@pytest.mark.parametrize("reason", REASONS)
def test_uses_that_can_not_be_quantized_say_why(reason: str) -> None:
    nodes, x, y, w = REASONS[reason]
    uses = found(model(nodes, [value("x", x)], [value("y", y)], {"w": w}))["w"].uses
    assert {use.reason for use in uses} == {reason}


@pytest.mark.parametrize(
    ("shape", "axis", "reason"),
    [
        ((4, 6), 1, "Gather on axis 1"),
        ((4, 6, 2), 0, "3-dimensional: a table of more than rows"),
        ((4,), 0, "1-dimensional"),
    ],
)
def test_tables_that_can_not_be_quantized_say_why(shape: tuple[int, ...], axis: int, reason: str) -> None:
    out = [*shape[:axis], 3, *shape[axis + 1 :]]
    proto = model(
        [node("Gather", ["w", "i"], ["y"], axis=axis)],
        [value("i", [3], TensorProto.INT64)],
        [value("y", out)],
        {"w": ones(*shape)},
    )
    assert [use.reason for use in found(proto)["w"].uses] == [reason]


def test_what_is_no_weight_says_what_it_is_used_for() -> None:
    nodes = [
        node("DequantizeLinear", ["q", "s"], ["w"]),
        node("MatMul", ["x", "w"], ["a"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    proto = model(
        nodes,
        [value("x", [2, 4])],
        [value("y", [2, 6])],
        {"q": np.ones((4, 6), np.int8), "s": np.float32(0.5), "b": ones(6), "unused": ones(3)},
    )
    graph = ir.from_proto(proto)
    assert find_weights(graph) == []
    assert {name: other_use(v) for name, v in graph.graph.initializers.items()} == {
        "q": "quantized already (DequantizeLinear)",
        "s": "quantized already (DequantizeLinear)",
        "b": "no weight: used by Add",
        "unused": "no weight: not used",
    }


def test_a_node_of_another_domain_is_no_use_as_a_weight() -> None:
    proto = model(
        [node("GroupQueryAttention", ["x", "w"], ["y"], domain="com.microsoft")],
        [value("x", [2, 4])],
        [value("y", [2, 6])],
        {"w": ones(4, 6)},
        domains=["com.microsoft"],
    )
    assert found(proto) == {}
    assert numpy_helper.to_array(proto.graph.initializer[0]).shape == (4, 6)


def test_names_of_nodes_and_operators_are_escaped_and_cut() -> None:
    """e16: they come from a file."""
    x, w = ir.val("x"), ir.val("w", const_value=ir.tensor(ones(4, 6), name="w"))
    nodes = [ir.node("MatMul", [x, w], name="a\x1b[31m" + "b" * 300), ir.node("Bad\nOp", [w], domain="evil")]
    graph = ir.Graph([x], [nodes[0].outputs[0]], nodes=nodes, initializers=[w], opset_imports={"": 17})
    [weight] = find_weights(ir.Model(graph, ir_version=8))
    assert weight.others == ("'Bad\\nOp'",)
    assert weight.uses[0].where.startswith("MatMul 'a\\x1b[31mbbb")
    assert len(weight.uses[0].where) < 160


def unchecked(nodes: list[onnx.NodeProto], w: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [value("x", [2, 4])], [value("y", [2, 6])], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_weight_behind_a_transpose_of_other_axes_is_none() -> None:
    """A mutant: what a node of unknown axes gives has those of its file, not those of the Transpose."""
    nodes = [node("Transpose", ["w"], ["t"], perm=[0, 2, 1, 3]), node("MatMul", ["x", "t"], ["y"])]
    assert found(unchecked(nodes, ones(4, 6))) == {}


@pytest.mark.parametrize("inputs", [["x", "w"], ["w", "x"]])
def test_a_gemm_takes_no_stack_of_matrices(inputs: list[str]) -> None:
    weight = found(unchecked([node("Gemm", inputs, ["y"])], ones(1, 4, 6)))["w"]
    assert [use.reason for use in weight.uses] == ["3-dimensional, which no Gemm takes"]
