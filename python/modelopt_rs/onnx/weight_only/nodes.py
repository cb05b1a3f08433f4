"""The nodes that take a weight in its new form, in the place of those that took it in the old one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.names import Names
from modelopt_rs.onnx.weights import Use

__all__ = ["MICROSOFT", "InsertedNodes", "QuantizedWeight"]

MICROSOFT = "com.microsoft"
Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight in its new form.

    Attributes
    ----------
    shape : tuple of int
        Of the old weight.
    bits : int
        Of its codes.
    codes, scale : Value
    zero_point : Value or None
    """

    shape: tuple[int, ...]
    bits: int
    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None

    @property
    def parts(self) -> list[ir.Value]:
        """The values, as most operators take them."""
        found = [self.codes, self.scale]
        return found if self.zero_point is None else [*found, self.zero_point]


class InsertedNodes:
    """Nodes that are put before the one that takes a weight, or take its place.

    Parameters
    ----------
    use : Use
    names : Names
    """

    def __init__(self, use: Use, names: Names) -> None:
        self._use, self._names = use, names
        self._node = use.node
        self._base = use.node.name or use.node.outputs[0].name or use.node.op_type

    def add(
        self, operator: str, inputs: Sequence[ir.Value | None], attributes: Attributes | None = None, domain: str = ""
    ) -> ir.Value:
        """Add a node; return its output."""
        name = self._names.unused(f"{self._base}_{operator}")
        node = ir.node(operator, inputs, attributes, domain=domain, name=name)
        output = node.outputs[0]
        output.name = self._names.unused(f"{name}_output")
        assert self._node.graph is not None
        self._node.graph.insert_before(self._node, node)
        return output

    def constant(self, name: str, values: Any, dtype: ir.DataType) -> ir.Value:
        """Return a small constant."""
        return self._names.constant(name, np.asarray(values, dtype.numpy()))

    def take_over(self, value: ir.Value) -> None:
        """Let a value stand for the output of the node, and remove the node."""
        old, graph = self._node.outputs[0], self._node.graph
        assert graph is not None
        name, value.type, value.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.remove(self._node, safe=True)
        old.name, value.name = None, name

    def take_product(self, product: ir.Value) -> None:
        """Let a product stand for a MatMul or, with its factors and its third input, for a Gemm."""
        node, dtype = self._node, self._use.dtype
        if self._use.kind == "gemm":
            alpha, beta = (_float(node, name) for name in ("alpha", "beta"))
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if alpha != 1.0:
                product = self.add("Mul", [product, self.constant("alpha", alpha, dtype)])
            if bias is not None and beta != 0.0:
                scaled = bias if beta == 1.0 else self.add("Mul", [bias, self.constant("beta", beta, dtype)])
                product = self.add("Add", [product, scaled])
        self.take_over(product)

    def as_seen(self, dense: ir.Value) -> ir.Value:
        """Return a weight that lies as the old one did in the order of axes that the node takes."""
        for node in self._use.chain:
            if node.op_type == "Transpose":
                dense = self.add("Transpose", [dense], {name: a.value for name, a in node.attributes.items()})
        return dense


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else float(attribute.as_float())
