"""Weights wherever they stand in a graph: `lift` makes each an initializer of the main graph."""

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["lift"]

_WEIGHT_SIZE = 16
_NO_INPUTS_BEFORE = 4  # the IR version from which initializers need not be inputs


def lift(model: ir.Model) -> None:
    """Make tensors of Constant nodes, and initializers of the bodies of If, Loop and Scan, initializers of the graph.

    Constants stay where they are if they are small (fewer than 16 elements and fewer than two axes), or in a
    function, which can't see the graph. A constant that is an output of its graph is passed through an Identity.
    Names stay unless another value of the model has the same. Before version 4 of the format every initializer was
    an input as well, of which nobody could set the value: these are no longer inputs, and the version is 4.

    Parameters
    ----------
    model : onnx_ir.Model
        Is changed.
    """
    if model.ir_version < _NO_INPUTS_BEFORE:
        _plain_inputs(model)
    taken = Counter(value.name for graph in model.graphs() for value in _defined(graph))
    lifted: dict[int, ir.Value] = {}  # by tensor: of an inlined function each call has it
    for graph in list(model.graphs()):
        if graph is not model.graph:
            _lift_initializers(graph, model.graph, taken)
        for node in list(graph):
            if _is_weight(node):
                _lift_constant(node, model.graph, taken, lifted)


def _plain_inputs(model: ir.Model) -> None:
    for graph in model.graphs():
        inputs = [value for value in graph.inputs if value.name not in graph.initializers]
        graph.inputs.clear()
        graph.inputs.extend(inputs)
    model.ir_version = _NO_INPUTS_BEFORE


def _defined(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield every value that a graph defines, once."""
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in graph:
        yield from node.outputs


def _is_weight(node: ir.Node) -> bool:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.outputs[0].name:
        return False
    tensor = _tensor(node)
    return tensor is not None and (tensor.size >= _WEIGHT_SIZE or len(tensor.shape) > 1)


def _tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the value of a Constant, None if it is none of numbers."""
    if len(node.attributes) != 1 or next(iter(node.attributes.values())).is_ref():
        return None
    attribute = next(iter(node.attributes.values()))
    if attribute.name == "value" and attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return None if tensor.dtype == ir.DataType.STRING else tensor
    if attribute.name == "value_floats":
        return ir.tensor(list(attribute.as_floats()), dtype=ir.DataType.FLOAT)
    if attribute.name == "value_ints":
        return ir.tensor(list(attribute.as_ints()), dtype=ir.DataType.INT64)
    return None


def _lift_constant(node: ir.Node, main: ir.Graph, taken: Counter[str | None], lifted: dict[int, ir.Value]) -> None:
    tensor, output, graph = _tensor(node), node.outputs[0], node.graph
    assert tensor is not None
    assert graph is not None
    if id(tensor) in lifted and not output.is_graph_output():
        output.replace_all_uses_with(lifted[id(tensor)])
        graph.remove(node, safe=True)
        return
    initializer = lifted[id(tensor)] = ir.Value(
        name=_name(output, taken),
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
        doc_string=output.doc_string,
        metadata_props=dict(output.metadata_props),
    )
    initializer.meta.update(output.meta)
    if output.is_graph_output():
        _pass_through(output, initializer, graph)
    output.replace_all_uses_with(initializer)
    graph.remove(node, safe=True)
    main.register_initializer(initializer)


def _lift_initializers(graph: ir.Graph, main: ir.Graph, taken: Counter[str | None]) -> None:
    for key, value in list(graph.initializers.items()):
        # What is an input as well is a default that the caller may replace.
        if value.is_graph_input() or value.const_value is None or value.const_value.dtype == ir.DataType.STRING:
            continue
        graph.initializers.pop(key)
        name = _name(value, taken)
        if value.is_graph_output():
            _pass_through(value, value, graph)
        value.name = name
        main.register_initializer(value)


def _name(value: ir.Value, taken: Counter[str | None]) -> str:
    """Return the name of an initializer that comes in the place of `value`: its own, if nothing else has that."""
    name = str(value.name)
    if taken[name] == 1 and not value.is_graph_output():
        return name
    k = 1
    while f"{name}_{k}" in taken:
        k += 1
    taken[f"{name}_{k}"] = 1
    return f"{name}_{k}"


def _pass_through(output: ir.Value, initializer: ir.Value, graph: ir.Graph) -> None:
    """Let an Identity give the graph's output, which must be a value of the graph itself."""
    identity = ir.Node("", "Identity", [initializer], num_outputs=1, name=f"{output.name}_identity")
    value = identity.outputs[0]
    value.name, value.type, value.shape, value.doc_string = output.name, output.type, output.shape, output.doc_string
    for i, old in enumerate(graph.outputs):
        if old is output:
            graph.outputs[i] = value
    first = next(iter(graph), None)
    if first is None:
        graph.append(identity)
    else:
        graph.insert_before(first, identity)
