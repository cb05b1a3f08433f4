"""`GatherBlockQuantized` of com.microsoft: rows of a table in blocks of packed unsigned codes."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from modelopt_rs.onnx.weight_only.coders import Coder, Rows
from modelopt_rs.onnx.weight_only.coding import Coding, Outputs, packed_bytes
from modelopt_rs.onnx.weight_only.forms.form import SCALES, Form, StorageOptions, in_words
from modelopt_rs.onnx.weight_only.forms.mat_mul_nbits import MatMulNBits, block_outputs
from modelopt_rs.onnx.weight_only.nodes import MICROSOFT, InsertedNodes, QuantizedWeight
from modelopt_rs.onnx.weights import Use
from modelopt_rs.stream.model import TensorInfo

__all__ = ["GatherBlockQuantized"]


@dataclass(frozen=True, slots=True)
class GatherBlockQuantized:
    """Codes of [rows, bytes].

    Attributes
    ----------
    block : int
        Elements of a row that share a scale; the last block may be shorter.
    dtype : DataType
        Of the scales, and of what the node gives.
    opset : int
        The least opset that has this form.
    """

    block: int
    dtype: ir.DataType
    opset: int = field(default=7, compare=False)
    domain: ClassVar[str] = MICROSOFT

    @property
    def words(self) -> str:
        """The form in words."""
        return in_words("GatherBlockQuantized", self.block)

    def stored_as(self, others: Collection[Form]) -> Form:
        """Return the form of a head that shares the table, if its blocks are these: one copy serves both."""
        for other in others:
            alike = (other.block, other.dtype) == (self.block, self.dtype)
            if alike and isinstance(other, MatMulNBits) and not other.transposed:
                return other
        return self

    def outputs(self, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
        """Return the tensors that stand for a table."""
        rows, columns = info.shape
        codes = (rows, packed_bytes(columns, storing.options.bits))
        return block_outputs(info, codes, (rows, -(-columns // self.block)), SCALES[self.dtype], storing)

    def coder(self, use: Use, coding: Coding, keep: int) -> Coder:
        """Return what makes them."""
        columns = coding.info.shape[1]
        return Rows(coding, columns, columns)

    def rewrite(self, use: Use, weight: QuantizedWeight, nodes: InsertedNodes) -> None:
        """Let it stand for a Gather."""
        codes = weight.codes
        columns = weight.shape[1]
        if codes.shape is not None and len(codes.shape) == 3:  # those of a MatMulNBits, its last blocks filled up
            columns = -(-columns // self.block) * self.block
            shape = [weight.shape[0], columns * weight.bits // 8]
            codes = nodes.add("Reshape", [codes, nodes.constant("shape", shape, ir.DataType.INT64)])
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": self.block, "bits": weight.bits}
        inputs = [codes, use.node.inputs[1], *weight.parts[1:]]
        rows = nodes.add("GatherBlockQuantized", inputs, attributes, MICROSOFT)
        if columns > weight.shape[1]:
            bounds = [nodes.constant("bound", [n], ir.DataType.INT64) for n in (0, weight.shape[1], -1)]
            rows = nodes.add("Slice", [rows, *bounds])
        nodes.take_over(rows)
