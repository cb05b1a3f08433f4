"""`DequantizeLinear` before the node."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import onnx_ir as ir

from modelopt_rs.onnx.weight_only.axis_scales import AxisScales
from modelopt_rs.onnx.weight_only.coders import Coder, Rows, TransposedCodes
from modelopt_rs.onnx.weight_only.coding import Arrange, Coding, Outputs, packed_rows
from modelopt_rs.onnx.weight_only.forms.form import SCALES, Form, StorageOptions, as_is, in_words
from modelopt_rs.onnx.weight_only.forms.in_place import (
    coder_in_place,
    flat_shape,
    outputs_in_place,
    row_codes_in_place,
)
from modelopt_rs.onnx.weight_only.nodes import InsertedNodes, QuantizedWeight
from modelopt_rs.onnx.weights import Use
from modelopt_rs.stream.model import TensorInfo

__all__ = ["DequantizeLinear"]


@dataclass(frozen=True, slots=True)
class DequantizeLinear:
    """Codes of the weight's own shape, or (before a product) of [inputs, outputs].

    Attributes
    ----------
    block : int
        Elements along the input axis that share a scale; 0: all.
    dtype : DataType
        Of the scales, and of what the node takes.
    opset : int
        The least opset that has this form.
    axis : int or None
        The axis of the weight that is cut into blocks, or has a scale for each index; None: there is one scale.
    transposed : bool
        Whether the weight lies as [outputs, inputs], and its codes do not.
    flat : bool
        Whether blocks are cut from all elements of an output in a row: there are only two axes, and the last is cut.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.weight_only.forms.dequantize_linear import DequantizeLinear
    >>> form = DequantizeLinear(32, ir.DataType.FLOAT, 21, axis=1)
    >>> form.words, form.shape_of_scales((64, 96, 3, 3))
    ('DequantizeLinear, blocks of 32', (64, 3, 3, 3))
    """

    block: int
    dtype: ir.DataType
    opset: int = field(compare=False)
    axis: int | None
    transposed: bool = False
    flat: bool = False
    domain: ClassVar[str] = ""

    @property
    def words(self) -> str:
        """The form in words."""
        otherwise = "one scale" if self.axis is None else "a scale for each output"
        return in_words("DequantizeLinear", self.block, otherwise)

    def stored_as(self, others: Collection[Form]) -> Form:
        """Return the form itself."""
        return self

    def outputs(self, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
        """Return the tensors that stand for a weight."""
        bits = storing.options.bits
        shape = (info.shape[1], info.shape[0]) if self.transposed else info.shape
        shape = flat_shape(use, shape) if self.flat else shape
        scale = SCALES[self.dtype], self.shape_of_scales(shape)
        stored: Arrange = (
            as_is if bits == 8 else lambda points: packed_rows(points.reshape(1, -1), bits, storing.threads)
        )
        codes = self._row_codes(use, info.shape)
        return outputs_in_place(replace(info, shape=shape), scale, (f"U{bits}", stored), codes, storing)

    def shape_of_scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the scales of codes of a shape."""
        axis = self._axis
        if axis is None:
            return ()
        if not self.block:
            return (shape[axis],)
        return (*shape[:axis], -(-shape[axis] // self.block), *shape[axis + 1 :])

    @property
    def _axis(self) -> int | None:
        """Where the axis is among those of the codes."""
        return 1 - self.axis if self.transposed and self.axis is not None else self.axis

    def _row_codes(self, use: Use, shape: tuple[int, ...]) -> int:
        """Return how many codes the rows have that the coder makes."""
        if self.transposed:
            return shape[0]
        if self.flat:
            return flat_shape(use, shape)[1]
        return shape[-1] if self.axis is None else row_codes_in_place(use, self.block, shape)

    def coder(self, use: Use, coding: Coding, keep: int) -> Coder:
        """Return what makes them."""
        if self.transposed:
            return TransposedCodes(coding, keep)
        if self.flat:
            length = flat_shape(use, coding.info.shape)[1]
            return Rows(coding, length, length)
        return AxisScales(coding, None, keep) if self.axis is None else coder_in_place(use, coding, keep)

    def rewrite(self, use: Use, weight: QuantizedWeight, nodes: InsertedNodes) -> None:
        """Let a node take what it gives."""
        attributes: dict[str, Any] = {} if self.axis is None else {"axis": self._axis}
        if self.block:
            attributes["block_size"] = self.block
        dense = nodes.add("DequantizeLinear", weight.parts, attributes)
        if self.flat:
            dense = nodes.add("Reshape", [dense, nodes.constant("shape", weight.shape, ir.DataType.INT64)])
        if use.kind == "gemm":
            # Before a Gemm it would not be fused.
            nodes.take_product(nodes.add("MatMul", [use.node.inputs[0], dense]))
        elif use.kind == "matmul":
            use.node.replace_input_with(use.index, dense)
        else:
            use.node.replace_input_with(use.index, nodes.as_seen(dense))
