"""New nodes in a graph, and what is no longer used taken out of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.names import Names

__all__ = ["Builder", "drop_unused", "insert_after", "replace", "skip"]


class Builder(Names):
    """Makes names, constants and nodes for one model.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.int8.build import Builder
    >>> x = ir.val("x", ir.DataType.FLOAT, [2])
    >>> build = Builder(ir.Model(ir.Graph([x], [x], nodes=[], opset_imports={"": 17}), ir_version=8))
    >>> build.node("Relu", [x], ["x"]).outputs[0].name
    'x_2'
    """

    def scalar(self, wanted: str, number: np.generic) -> ir.Value:
        """Make an initializer of shape ()."""
        name = self.unused(wanted)
        return self.initializer(name, ir.tensor(np.asarray(number), name=name))

    def node(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: ir.Value | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Node:
        """Make a node that is in no graph yet; outputs have unused names, the first the type of `like`."""
        outputs = [ir.Value(name=self.unused(name)) for name in names]
        node = ir.node(operator, inputs, attributes, outputs=outputs, name=self.unused(f"{names[0]}_{operator}"))
        if like is not None:
            outputs[0].shape = like.shape
            outputs[0].type = like.type if dtype is None else ir.TensorType(dtype)
        return node


def insert_after(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Put nodes behind the one that makes a value; of one that the graph doesn't make, at its beginning."""
    producer = value.producer()
    if producer is None or producer.graph is not graph:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)


def replace(node: ir.Node, by: ir.Node) -> None:
    """Put a node of one output in the place of another; the value keeps its name."""
    old, new, graph = node.outputs[0], by.outputs[0], node.graph
    assert graph is not None
    graph.insert_before(node, by)
    name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name, new.name = None, name


def skip(node: ir.Node) -> None:
    """Let a node's first input stand for its one output, under the output's name."""
    before, after, graph = node.inputs[0], node.outputs[0], node.graph
    assert graph is not None
    assert before is not None
    after.replace_all_uses_with(before, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    before.name, after.name = after.name, None


def drop_unused(model: ir.Model, values: Iterable[ir.Value | None]) -> None:
    """Take initializers, and nodes that made values, out of the graph if nothing takes them any more."""
    left = list(values)
    while left:
        value = left.pop()
        if value is None or value.uses() or value.is_graph_output():
            continue
        if value.is_graph_input():
            # With a value of its own an input may be left out; up to IR version 3 all initializers are inputs.
            if not value.is_initializer() or value not in model.graph.inputs:
                continue
            model.graph.inputs.remove(value)
        node = value.producer()
        if node is None:
            model.graph.initializers.pop(str(value.name), None)
        elif node.graph is not None and not any(each.uses() or each.is_graph_output() for each in node.outputs):
            inputs = list(node.inputs)
            node.graph.remove(node, safe=True)
            left += inputs
