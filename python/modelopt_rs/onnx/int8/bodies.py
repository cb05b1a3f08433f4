"""Values in the bodies of If, Loop and Scan, brought out as outputs of a model: onnxruntime shows no others."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["FLAT", "WIDTH", "bring_out", "made_often"]

FLAT: Final = "/modelopt_rs/flat"
"""What the name of a value ends in that has all its elements of a run, one after the other."""
WIDTH: Final = "/modelopt_rs/width"
"""And what that ends in which has the length of its last axis, for each time that it was made."""

_WHOLE: Final = "/modelopt_rs/whole"  # an initializer: the shape [-1]
_PARTS: Final = {FLAT: 1, WIDTH: 7}  # their types in the format: float, int64
_Path: TypeAlias = "list[tuple[GraphProto, NodeProto, GraphProto]]"


def bring_out(model: "ModelProto", names: Sequence[str]) -> None:
    """Make outputs of values that stand in bodies: of each its elements and its width, over all runs of the body.

    A body that doesn't run has none. What is made in an If comes out of the branch that is taken; a Loop carries
    along what it has made before, for it may change its shape; a Scan stacks it.

    Parameters
    ----------
    model : ModelProto
        Changed in place.
    names : sequence of str
        Values of float32, each of which stands in one body only.
    """
    from onnx import helper, numpy_helper

    places = dict(_values(model.graph, []))
    if names:
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), _WHOLE))
        for part, kind in _PARTS.items():
            empty = numpy_helper.from_array(np.zeros(0, helper.tensor_dtype_to_np_dtype(kind)), f"{part}/none")
            model.graph.initializer.append(empty)
    for name in names:
        path = places[name]
        inner = path[-1][2]
        rank, last = f"{name}{WIDTH}/shape", f"{name}{WIDTH}"
        inner.node.append(helper.make_node("Shape", [name], [rank]))
        inner.node.append(helper.make_node("Gather", [rank, _WHOLE], [last], axis=0))
        inner.node.append(helper.make_node("Reshape", [name, _WHOLE], [f"{name}{FLAT}"]))
        for part, kind in _PARTS.items():
            for depth in range(len(path) - 1, -1, -1):
                _lift(path[depth], f"{name}{part}", part, depth)
            out = helper.make_tensor_value_info(f"{name}{part}", kind, [None])
            model.graph.output.append(out)


def made_often(model: ir.Model) -> set[str]:
    """Return the names that several values of a model have, in its graph and in bodies: they can't be told apart."""
    names = Counter(str(value.name) for graph in model.graphs() for value in (*graph.inputs, *_made(graph)))
    return {name for name, count in names.items() if count > 1}


def _made(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from node.outputs


def _values(graph: "GraphProto", path: _Path) -> Iterator[tuple[str, _Path]]:
    """Yield the values that are made in bodies, with the bodies that they stand in, the outermost first."""
    for node in graph.node:
        for body in _bodies(node):
            here = [*path, (graph, node, body)]
            for name in (*(x.name for x in body.input), *(out for inner in body.node for out in inner.output)):
                yield name, here
            yield from _values(body, here)


def _bodies(node: "NodeProto") -> "list[GraphProto]":
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _lift(place: "tuple[GraphProto, NodeProto, GraphProto]", name: str, part: str, depth: int) -> None:
    """Bring a value of one axis out of a body, into the graph where the body's node stands, under the same name."""
    from onnx import helper

    graph, node, body = place
    kind, inner = _PARTS[part], f"{name}/{depth}"
    for each in body.node:  # what it is called within
        each.output[:] = [inner if out == name else out for out in each.output]
    info = helper.make_tensor_value_info(inner, kind, [None])
    if node.op_type == "Loop":
        node.input.extend([""] * (2 - len(node.input)))  # how often, and whether at all
        states = len(node.input) - 2
        before, after = f"{inner}/before", f"{inner}/after"
        body.node.append(helper.make_node("Concat", [before, inner], [after], axis=0))
        body.input.append(helper.make_tensor_value_info(before, kind, [None]))
        outputs = [*body.output[: states + 1], helper.make_tensor_value_info(after, kind, [None])]
        outputs += body.output[states + 1 :]
        del body.output[:]
        body.output.extend(outputs)
        node.input.append(f"{part}/none")
        node.output[:] = [*node.output[:states], name, *node.output[states:]]
        return
    if node.op_type == "If":
        for other in _bodies(node):
            if other is not body:
                nothing = helper.make_tensor(f"{inner}/none", kind, [0], [])
                other.node.append(helper.make_node("Constant", [], [f"{inner}/none"], value=nothing))
                other.output.append(helper.make_tensor_value_info(f"{inner}/none", kind, [0]))
        body.output.append(info)
        node.output.append(name)
        return
    body.output.append(info)
    node.output.append(f"{name}/all")
    graph.node.append(helper.make_node("Reshape", [f"{name}/all", _WHOLE], [name]))
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)
