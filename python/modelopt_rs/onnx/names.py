"""Names that no value and no node of a model has, and small constants that nodes share."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array

__all__ = ["Names"]


class Names:
    """The names of a model: gives new ones, and initializers for small constants, each once.

    Parameters
    ----------
    model : Model

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.names import Names
    >>> x = ir.val("x", ir.DataType.FLOAT, [1])
    >>> names = Names(ir.Model(ir.Graph([x], [x], nodes=[], opset_imports={"": 17}), ir_version=8))
    >>> names.unused("x"), names.unused("y"), names.unused("y")
    ('x_2', 'y', 'y_2')
    """

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._taken = set(_names(model))
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def unused(self, wanted: str) -> str:
        """Return `wanted`, or with a number behind it, and keep it."""
        name, i = wanted, 2
        while name in self._taken:
            name, i = f"{wanted}_{i}", i + 1
        self._taken.add(name)
        return name

    def constant(self, wanted: str, array: Array) -> ir.Value:
        """Return an initializer with these values; nodes of any graph may take it."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = self.unused(wanted)
            tensor = ir.tensor(np.ascontiguousarray(array), name=name)
            self._constants[key] = self.initializer(name, tensor)
        return self._constants[key]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Add a Cast of an initializer to the front of the main graph; nodes of any graph may take what it gives."""
        name = self.unused(f"{value.name}_Cast")
        node = ir.node("Cast", [value], {"to": dtype.value}, name=name)
        output = node.outputs[0]
        output.name, output.shape, output.type = self.unused(f"{name}_output"), value.shape, ir.TensorType(dtype)
        first = next(iter(self._graph), None)
        if first is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(first, node)
        return output

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer to the main graph."""
        shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]  # shapes of tensors have no symbols
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _names(model: ir.Model) -> Iterator[str]:
    for graph in model.graphs():
        values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        nodes = list(graph)
        for value in [*values, *(output for node in nodes for output in node.outputs)]:
            if value.name:
                yield value.name
        for node in nodes:
            if node.name:
                yield node.name
