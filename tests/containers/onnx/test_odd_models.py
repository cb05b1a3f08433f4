"""Models that are odd but good, which are mended on reading; and graphs that are refused on opening."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

import modelopt_rs as mo  # noqa: E402
from modelopt_rs import FormatError  # noqa: E402
from modelopt_rs.containers.onnx.operators import problem  # noqa: E402
from modelopt_rs.files.onnx import OnnxSource  # noqa: E402
from modelopt_rs.onnx.weights import OPERATORS  # noqa: E402

helper = onnx.helper
node = helper.make_node


def value(name: str, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, 1, shape)


def model(nodes: list[Any], imports: list[tuple[str, int]] | None = None, **more: Any) -> Any:
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(nodes, "g", [value("x", ["n", 64])], [value("y", ["n", 64])], [weight])
    opsets = [helper.make_opsetid(*each) for each in imports or [("", 17)]]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


PLAIN = [node("MatMul", ["x", "w"], ["h"], name="mm"), node("Relu", ["h"], ["y"])]


def opened(tmp_path: Path, proto: Any) -> Any:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return OnnxSource(path)


@pytest.mark.parametrize(
    ("imports", "version"),
    [([("ai.onnx", 12), ("", 13)], 13), ([("", 13), ("ai.onnx", 12)], 12), ([("ai.onnx", 17)], 17)],
)
def test_the_default_domain_has_one_entry_the_last(tmp_path: Path, imports: list[Any], version: int) -> None:
    """H8."""
    with opened(tmp_path, model(PLAIN, imports)) as source:
        assert dict(source.model.graph.opset_imports) == {"": version}


def test_nodes_are_sorted_imports_added_and_negative_lengths_open(tmp_path: Path) -> None:
    """H9, H15."""
    nodes = [node("Gelu", ["h"], ["y"], domain="com.microsoft"), node("MatMul", ["x", "w"], ["h"])]
    proto = model(nodes)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    with opened(tmp_path, proto) as source:
        assert [each.op_type for each in source.model.graph] == ["MatMul", "Gelu"]
        assert source.model.graph.opset_imports["com.microsoft"] == 1
        assert not isinstance(source.model.graph.inputs[0].shape[0], int)


def test_functions_are_inlined(tmp_path: Path) -> None:
    """H13: a weight that is passed to a function is the weight of its layer."""
    function = helper.make_function(
        "own", "layer", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], ["c"])], [helper.make_opsetid("", 17)]
    )
    calls = [node("layer", ["x", "w"], ["h"], domain="own"), node("layer", ["h", "w"], ["y"], domain="own")]
    proto = model(calls, [("", 17), ("own", 1)], functions=[function])
    opened(tmp_path, proto).close()
    report = mo.quantize_file(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert [row.decision for row in report.tensors] == ["quantize"]


@pytest.mark.parametrize(("operator", "taken"), [("MatMul", 1), ("HardSwish", 0)])
def test_functions_of_another_opset_are_inlined_where_their_operators_are_the_same(
    tmp_path: Path, operator: str, taken: int
) -> None:
    """H13: MatMul is the same from 13 to 23, HardSwish is from 22 on another one."""
    inner = [node("MatMul", ["a", "b"], ["m"]), node(operator, ["m"] * (2 if operator == "MatMul" else 1), ["c"])]
    function = helper.make_function("own", "layer", ["a", "b"], ["c"], inner, [helper.make_opsetid("", 14)])
    proto = model([node("layer", ["x", "w"], ["y"], domain="own")], [("", 22), ("own", 1)], functions=[function])
    proto.ir_version = 10
    opened(tmp_path, proto).close()
    report = mo.quantize_file(tmp_path / "m.onnx", tmp_path / "out.onnx", run=None)
    assert report.totals.changed == taken


@pytest.mark.parametrize("version", [0, 1 << 31, (1 << 63) - 1])
def test_functions_of_a_version_that_no_operator_has_stay(tmp_path: Path, version: int) -> None:
    """A mutant: a version that is no int of C."""
    inner = [node("MatMul", ["a", "b"], ["c"])]
    function = helper.make_function("own", "layer", ["a", "b"], ["c"], inner, [helper.make_opsetid("", version)])
    proto = model([node("layer", ["x", "w"], ["y"], domain="own")], [("", 17), ("own", 1)], functions=[function])
    with opened(tmp_path, proto) as source:
        assert [each.op_type for each in source.model.graph] == ["layer"]


def taking_a_graph(kind: int) -> Any:
    """A node whose attribute is a graph, or some, that the call of its function would give."""
    taker = node("Relu", ["h"], ["y"])
    taker.attribute.append(onnx.AttributeProto(name="body", type=kind, ref_attr_name="given"))
    return taker


@pytest.mark.parametrize("kind", [onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS])
@pytest.mark.parametrize("where", ["graph", "function", "body"])
def test_a_graph_that_a_call_would_give_is_refused(tmp_path: Path, kind: int, where: str) -> None:
    """A mutant: such an attribute has no graph to look into."""
    nodes, functions = [PLAIN[0], taking_a_graph(kind)], []
    if where == "function":
        opsets = [helper.make_opsetid("", 17)]
        functions = [helper.make_function("own", "last", ["h"], ["y"], [taking_a_graph(kind)], opsets)]
        nodes = [PLAIN[0], node("last", ["h"], ["y"], domain="own")]
    elif where == "body":
        body = helper.make_graph([taking_a_graph(kind)], "b", [], [value("y", ["n", 64])])
        nodes = [PLAIN[0], node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
        nodes.insert(0, node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.array(True))))
    with pytest.raises(FormatError, match=r"attribute 'body' of node 'Relu'.* has no graph of its own"):
        opened(tmp_path, model(nodes, [("", 17), ("own", 1)], functions=functions))


WRONG = {
    "depends on its own output": [node("Identity", ["i"], ["i"]), *PLAIN],
    "made twice": [*PLAIN, node("Relu", ["x"], ["y"])],
    "must have 1 inputs, got 2": [node("Identity", ["x", "x"], ["i"]), *PLAIN],
    "must have 2 inputs, got 1": [node("MatMul", ["x"], ["y"])],
    "'transB' must be of kind INT, got FLOAT": [node("Gemm", ["x", "w"], ["y"], transB=1.5)],
    "'transA' must be of kind INT, got FLOAT": [
        node("FusedGemm", ["x", "w"], ["y"], domain="com.microsoft", transA=0.5)
    ],
    "must name each axis once": [node("Transpose", ["w"], ["t"], perm=[0, 5]), *PLAIN],
    "names 3 axes, its input has 2": [node("Transpose", ["w"], ["t"], perm=[0, 2, 1]), *PLAIN],
    "must have the attribute 'to'": [node("Cast", ["w"], ["t"]), *PLAIN],
    "must have a value, got the attribute 'allowzero'": [node("Constant", [], ["t"], allowzero="NOTSET"), *PLAIN],
}


def test_an_attribute_that_an_operator_does_not_have_is_not_read(tmp_path: Path) -> None:
    """A mutant: `transA` of a MatMul, a number with a point; onnxruntime refuses the model, inspect looks at it."""
    nodes = [node("MatMul", ["w", "x"], ["y"], transA=0.5, transB=0.5)]
    opened(tmp_path, model(nodes)).close()
    assert [row.name for row in mo.inspect_file(tmp_path / "m.onnx").tensors] == ["w"]


def test_attributes_of_every_operator_that_takes_weights_are_checked() -> None:
    """Those of com.microsoft stand in no table of onnx."""
    inputs = {"FusedMatMul": 2, "FusedGemm": 3, "FusedConv": 3, "PackedAttention": 5}
    names = [name for domain, name in OPERATORS if domain]
    for name in names:
        proto = node(name, ["i"] * inputs.get(name, 7), ["y"], domain="com.microsoft")
        assert problem(proto, {}) is None, name
        words = ("transA", "group", "num_heads", "k", "epsilon")
        proto.attribute.extend(helper.make_attribute(each, "?") for each in words)
        assert "must be of kind" in (problem(proto, {}) or ""), name


@pytest.mark.parametrize("what", WRONG)
def test_a_graph_is_checked_when_it_is_opened(tmp_path: Path, what: str) -> None:
    """H38."""
    with pytest.raises(FormatError, match=what):
        opened(tmp_path, model(WRONG[what]))
