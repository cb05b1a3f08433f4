"""The nodes that take a weight in its new form, in the place of those that took it in the old one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.names import Names
from modelopt_rs.onnx.weight_only.forms import Form
from modelopt_rs.onnx.weights import Use
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions

__all__ = ["MICROSOFT", "QuantizedWeight", "rewrite_use"]

MICROSOFT = "com.microsoft"
Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight in its new form.

    Attributes
    ----------
    form : Form
    shape : tuple of int
        Of the old weight.
    codes, scale : Value
    zero_point : Value or None
    """

    form: Form
    shape: tuple[int, ...]
    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None

    @property
    def parts(self) -> list[ir.Value]:
        """The values, as most operators take them."""
        found = [self.codes, self.scale]
        return found if self.zero_point is None else [*found, self.zero_point]


def rewrite_use(use: Use, stored: QuantizedWeight, options: QuantizeOptions, onnx: OnnxOptions, names: Names) -> None:
    """Let a node take a weight in its new form; what is left over of the old one is not removed here."""
    graph = _Inserted(use, names)
    form = stored.form
    if form.operation == "nbits":
        _product(graph, use, _nbits(graph, use, stored, options, onnx))
    elif form.operation == "gather_block":
        graph.take_over(_gather_block(graph, use, stored, options))
    elif form.operation == "gather":
        graph.take_over(_gather(graph, use, stored, options))
    elif form.operation == "fold":
        use.node.replace_input_with(use.index, _as_seen(graph, use, _folded(graph, use, stored)))
    elif use.kind == "gemm":
        # Before a Gemm it would not be fused.
        _product(graph, use, graph.add("MatMul", [use.node.inputs[0], _dequantized(graph, use, stored)]))
    elif use.kind == "matmul":
        use.node.replace_input_with(use.index, _dequantized(graph, use, stored))
    else:
        use.node.replace_input_with(use.index, _as_seen(graph, use, _dequantized(graph, use, stored)))


class _Inserted:
    """Nodes that are put before the one that they serve, or take its place."""

    def __init__(self, use: Use, names: Names) -> None:
        self._node, self._names = use.node, names
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


def _nbits(
    graph: _Inserted, use: Use, stored: QuantizedWeight, options: QuantizeOptions, onnx: OnnxOptions
) -> ir.Value:
    attributes = {
        "K": stored.shape[use.in_axis],
        "N": stored.shape[use.out_axis],
        "bits": options.bits,
        "block_size": stored.form.block,
        "accuracy_level": onnx.accuracy_level,
    }
    return graph.add("MatMulNBits", [use.node.inputs[0], *stored.parts], attributes, MICROSOFT)


def _product(graph: _Inserted, use: Use, product: ir.Value) -> None:
    """Let a product stand for a MatMul or, with its factors and its third input, for a Gemm."""
    if use.kind == "gemm":
        alpha, beta = (_float(use.node, name) for name in ("alpha", "beta"))
        bias = use.node.inputs[2] if len(use.node.inputs) > 2 else None
        if alpha != 1.0:
            product = graph.add("Mul", [product, graph.constant("alpha", alpha, use.dtype)])
        if bias is not None and beta != 0.0:
            scaled = bias if beta == 1.0 else graph.add("Mul", [bias, graph.constant("beta", beta, use.dtype)])
            product = graph.add("Add", [product, scaled])
    graph.take_over(product)


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else float(attribute.as_float())


def _gather_block(graph: _Inserted, use: Use, stored: QuantizedWeight, options: QuantizeOptions) -> ir.Value:
    codes = stored.codes
    if len(codes.shape or ()) == 3:  # shared with a MatMulNBits
        shape = [stored.shape[0], stored.shape[1] * options.bits // 8]
        codes = graph.add("Reshape", [codes, graph.constant("shape", shape, ir.DataType.INT64)])
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": stored.form.block, "bits": options.bits}
    inputs = [codes, use.node.inputs[1], *stored.parts[1:]]
    return graph.add("GatherBlockQuantized", inputs, attributes, MICROSOFT)


def _gather(graph: _Inserted, use: Use, stored: QuantizedWeight, options: QuantizeOptions) -> ir.Value:
    """Take the rows of codes, scales and zero points, and multiply: only as many as there are indices."""
    indices, block = use.node.inputs[1], stored.form.block
    codes, scale, *points = (graph.add("Gather", [part, indices]) for part in stored.parts)
    if options.bits < 8:
        codes = _unpacked(graph, codes, options.bits)
    numbers = graph.add("Cast", [codes], {"to": use.dtype.value})
    rank = 0 if indices is None or indices.shape is None else len(indices.shape)
    if block and options.bits < 8:
        groups = [0] * rank + [stored.shape[1] // block, block]
        numbers = graph.add("Reshape", [numbers, graph.constant("shape", groups, ir.DataType.INT64)])
    if points:
        numbers = graph.add("Sub", [numbers, graph.add("Cast", points, {"to": use.dtype.value})])
    elif options.bits < 8:
        numbers = graph.add("Sub", [numbers, graph.constant("zero", 1 << (options.bits - 1), use.dtype)])
    rows = graph.add("Mul", [numbers, scale])
    if block:
        whole = graph.constant("shape", [0] * rank + [stored.shape[1]], ir.DataType.INT64)
        rows = graph.add("Reshape", [rows, whole])
    return rows


def _unpacked(graph: _Inserted, codes: ir.Value, bits: int) -> ir.Value:
    """Return the codes of bytes, a byte each: those in the lowest bits first."""
    mask = graph.constant("mask", (1 << bits) - 1, ir.DataType.UINT8)
    parts = []
    for shift in range(0, 8, bits):
        part = codes
        if shift:
            by = graph.constant("shift", shift, ir.DataType.UINT8)
            part = graph.add("BitShift", [codes, by], {"direction": "RIGHT"})
        # Nothing is above the highest.
        parts.append(part if shift + bits == 8 else graph.add("BitwiseAnd", [part, mask]))
    return graph.add("Concat", parts, {"axis": -1})


def _dequantized(graph: _Inserted, use: Use, stored: QuantizedWeight) -> ir.Value:
    form = stored.form
    attributes: dict[str, Any] = {}
    if form.block:
        attributes = {"axis": 1 - use.in_axis if form.transposed else use.in_axis, "block_size": form.block}
    elif not form.per_tensor:
        attributes = {"axis": 1 - use.out_axis if form.transposed else use.out_axis}
    return graph.add("DequantizeLinear", stored.parts, attributes)


def _folded(graph: _Inserted, use: Use, stored: QuantizedWeight) -> ir.Value:
    """Dequantize by operators that a runtime folds into a constant when it loads the model."""
    numbers = graph.add("Cast", [stored.codes], {"to": use.dtype.value})
    shape, block = stored.shape, stored.form.block
    if block:
        split = [*shape[: use.in_axis], shape[use.in_axis] // block, block, *shape[use.in_axis + 1 :]]
        numbers = graph.add("Reshape", [numbers, graph.constant("shape", split, ir.DataType.INT64)])
    if stored.zero_point is not None:
        points = graph.add("Cast", [stored.zero_point], {"to": use.dtype.value})
        numbers = graph.add("Sub", [numbers, points])
    dense = graph.add("Mul", [numbers, stored.scale])
    if block:
        dense = graph.add("Reshape", [dense, graph.constant("shape", shape, ir.DataType.INT64)])
    return dense


def _as_seen(graph: _Inserted, use: Use, dense: ir.Value) -> ir.Value:
    """Return a weight that lies as the old one did in the order of axes that the node takes."""
    for node in use.chain:
        if node.op_type == "Transpose":
            dense = graph.add("Transpose", [dense], {name: a.value for name, a in node.attributes.items()})
    return dense
