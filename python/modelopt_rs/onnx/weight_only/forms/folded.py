"""Cast, Sub and Mul of constants, which a runtime folds into one when it loads the model."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from modelopt_rs.onnx.weight_only.coders import Coder
from modelopt_rs.onnx.weight_only.coding import Coding, Outputs
from modelopt_rs.onnx.weight_only.forms.form import SCALES, Form, StorageOptions, as_is, in_words
from modelopt_rs.onnx.weight_only.forms.in_place import coder_in_place, outputs_in_place, row_codes_in_place
from modelopt_rs.onnx.weight_only.nodes import InsertedNodes, QuantizedWeight
from modelopt_rs.onnx.weights import Use
from modelopt_rs.stream.model import TensorInfo

__all__ = ["Folded"]


@dataclass(frozen=True, slots=True)
class Folded:
    """Codes of the weight's own shape, scales and zero points (a byte each) that broadcast.

    Attributes
    ----------
    block : int
        Elements along the input axis that share a scale, and divide it; 0: all.
    dtype : DataType
        Of the scales, and of what the node takes.
    opset : int
        The least opset that has this form.
    axis : int or None
        The axis that is cut into blocks; None: there are none, and nodes that sum over another axis can share it.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.weight_only.forms.folded import Folded
    >>> from modelopt_rs.onnx.weights import Use
    >>> use = Use(ir.node("Conv", [None, None]), 1, "conv", (), 1, 0, ir.DataType.FLOAT)
    >>> form = Folded(32, ir.DataType.FLOAT, 21, axis=1)
    >>> form.words, form.shape_of_scales(use, (64, 96, 3, 3))
    ('Cast and Mul, blocks of 32', (64, 3, 1, 3, 3))
    """

    block: int
    dtype: ir.DataType
    opset: int = field(compare=False)
    axis: int | None
    domain: ClassVar[str] = ""

    @property
    def words(self) -> str:
        """The form in words."""
        return in_words("Cast and Mul", self.block)

    def stored_as(self, others: Collection[Form]) -> Form:
        """Return the form itself."""
        return self

    def outputs(self, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
        """Return the tensors that stand for a weight."""
        scale = SCALES[self.dtype], self.shape_of_scales(use, info.shape)
        return outputs_in_place(info, scale, ("U8", as_is), row_codes_in_place(use, self.block, info.shape), storing)

    def shape_of_scales(self, use: Use, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return a shape that broadcasts: to that of the weight, or to that with its blocks as an axis."""
        if self.axis is None:
            return tuple(n if i == use.out_axis else 1 for i, n in enumerate(shape))
        return (*shape[: self.axis], shape[self.axis] // self.block, 1, *shape[self.axis + 1 :])

    def coder(self, use: Use, coding: Coding, keep: int) -> Coder:
        """Return what makes them."""
        return coder_in_place(use, coding)

    def rewrite(self, use: Use, weight: QuantizedWeight, nodes: InsertedNodes) -> None:
        """Let a node take the product."""
        numbers = nodes.add("Cast", [weight.codes], {"to": use.dtype.value})
        shape, axis = weight.shape, self.axis
        if axis is not None:
            split = [*shape[:axis], shape[axis] // self.block, self.block, *shape[axis + 1 :]]
            numbers = nodes.add("Reshape", [numbers, nodes.constant("shape", split, ir.DataType.INT64)])
        if weight.zero_point is not None:
            points = nodes.add("Cast", [weight.zero_point], {"to": use.dtype.value})
            numbers = nodes.add("Sub", [numbers, points])
        dense = nodes.add("Mul", [numbers, weight.scale])
        if axis is not None:
            dense = nodes.add("Reshape", [dense, nodes.constant("shape", shape, ir.DataType.INT64)])
        use.node.replace_input_with(use.index, nodes.as_seen(dense))
