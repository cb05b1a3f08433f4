"""`Gather` of rows of codes, scales and zero points, which are multiplied: only as many as there are indices."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from modelopt_rs.onnx.weight_only.coders import Coder, Rows
from modelopt_rs.onnx.weight_only.coding import Arrange, Coding, Outputs, flat, halves, packed_bytes
from modelopt_rs.onnx.weight_only.forms.folded import Folded
from modelopt_rs.onnx.weight_only.forms.form import SCALES, Form, StorageOptions, as_is, in_words, tensor
from modelopt_rs.onnx.weight_only.nodes import InsertedNodes, QuantizedWeight
from modelopt_rs.onnx.weights import Use
from modelopt_rs.stream.model import TensorInfo

__all__ = ["GatherCodes"]


@dataclass(frozen=True, slots=True)
class GatherCodes:
    """At 8 bits the codes as they are, below packed so that shifts and masks give consecutive ones.

    Attributes
    ----------
    block : int
        Elements of a row that share a scale, and divide it; 0: all.
    dtype : DataType
        Of the scales, and of what the node gives.
    opset : int
        The least opset that has this form.
    """

    block: int
    dtype: ir.DataType
    opset: int = field(compare=False)
    domain: ClassVar[str] = ""

    @property
    def words(self) -> str:
        """The form in words."""
        return in_words("Gather of codes", self.block, "a scale for each row")

    def stored_as(self, others: Collection[Form]) -> Form:
        """Return the form of a head that shares the table, if it has a scale for each row: one copy serves both."""
        by_rows = Folded(self.block, self.dtype, self.opset, axis=None)
        return next((other for other in others if other == by_rows and not self.block), self)

    def outputs(self, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
        """Return the tensors that stand for a table."""
        options, (rows, columns) = storing.options, info.shape
        signed = options.bits == 8 and options.spec.symmetric
        groups = columns // self.block if self.block else 1
        scales: tuple[int, ...] = (rows, groups, 1) if self.block else (rows, 1)
        stored: Arrange
        if options.bits == 8:
            shape: tuple[int, ...] = (rows, groups, self.block) if self.block else (rows, columns)
            stored = flat(8, columns, signed, storing.threads)
        else:
            shape, stored = (rows, packed_bytes(columns, options.bits)), halves(options.bits, columns, storing.threads)
        name = storing.unused
        return Outputs(
            codes=tensor(name(f"{info.name}_quantized"), "I8" if signed else "U8", shape),
            scale=tensor(name(f"{info.name}_scale"), SCALES[self.dtype], scales),
            zero_point=None if options.spec.symmetric else tensor(name(f"{info.name}_zero_point"), "U8", scales),
            codes_stored=stored,
            zero_points_stored=as_is,
        )

    def coder(self, use: Use, coding: Coding, keep: int) -> Coder:
        """Return what makes them."""
        columns = coding.info.shape[1]
        return Rows(coding, columns, columns)

    def rewrite(self, use: Use, weight: QuantizedWeight, nodes: InsertedNodes) -> None:
        """Let a Gather of each part, and a product, stand for a Gather."""
        indices = use.node.inputs[1]
        codes, scale, *points = (nodes.add("Gather", [part, indices]) for part in weight.parts)
        if weight.bits < 8:
            codes = _unpacked(nodes, codes, weight.bits)
        numbers = nodes.add("Cast", [codes], {"to": use.dtype.value})
        rank = 0 if indices is None or indices.shape is None else len(indices.shape)
        if self.block and weight.bits < 8:
            groups = [0] * rank + [weight.shape[1] // self.block, self.block]
            numbers = nodes.add("Reshape", [numbers, nodes.constant("shape", groups, ir.DataType.INT64)])
        if points:
            numbers = nodes.add("Sub", [numbers, nodes.add("Cast", points, {"to": use.dtype.value})])
        elif weight.bits < 8:
            numbers = nodes.add("Sub", [numbers, nodes.constant("zero", 1 << (weight.bits - 1), use.dtype)])
        rows = nodes.add("Mul", [numbers, scale])
        if self.block:
            whole = nodes.constant("shape", [0] * rank + [weight.shape[1]], ir.DataType.INT64)
            rows = nodes.add("Reshape", [rows, whole])
        nodes.take_over(rows)


def _unpacked(nodes: InsertedNodes, codes: ir.Value, bits: int) -> ir.Value:
    """Return the codes of bytes, a byte each: those in the lowest bits first."""
    mask = nodes.constant("mask", (1 << bits) - 1, ir.DataType.UINT8)
    parts = []
    for shift in range(0, 8, bits):
        part = codes
        if shift:
            by = nodes.constant("shift", shift, ir.DataType.UINT8)
            part = nodes.add("BitShift", [codes, by], {"direction": "RIGHT"})
        # Nothing is above the highest.
        parts.append(part if shift + bits == 8 else nodes.add("BitwiseAnd", [part, mask]))
    return nodes.add("Concat", parts, {"axis": -1})
