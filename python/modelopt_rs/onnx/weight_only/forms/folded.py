"""Cast, Sub and Mul of constants, which a runtime folds into one when it loads the model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import onnx_ir as ir

from modelopt_rs.onnx.weight_only.coders import Coder, Rows
from modelopt_rs.onnx.weight_only.coding import Coding, Outputs
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

__all__ = ["Folded"]


@dataclass(frozen=True, slots=True)
class Folded:
    """Codes of the weight's own shape, scales and zero points (a byte each) that broadcast.

    Attributes
    ----------
    block : int
        Elements along the axis that share a scale; the last block may be shorter. 0: all.
    dtype : DataType
        Of the scales, and of what the node takes.
    opset : int
        The least opset that has this form.
    axis : int or None
        The axis that is cut into blocks; None: there are none, and nodes that sum over another axis can share it.
    flat : bool
        Whether blocks are cut from all elements of an output in a row: there are only two axes, and the last is cut.

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
    flat: bool = False
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
        shape = self._codes_shape(use, info.shape)
        scale = SCALES[self.dtype], self.shape_of_scales(use, shape)
        codes = shape[1] if self.flat else row_codes_in_place(use, self.block, shape)
        return outputs_in_place(replace(info, shape=shape), scale, ("U8", as_is), codes, storing)

    def _codes_shape(self, use: Use, shape: tuple[int, ...]) -> tuple[int, ...]:
        return flat_shape(use, shape) if self.flat else shape

    def shape_of_scales(self, use: Use, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return a shape that broadcasts: to that of the weight, or to that with its blocks as an axis."""
        if self.axis is None:
            return tuple(n if i == use.out_axis else 1 for i, n in enumerate(shape))
        return (*shape[: self.axis], -(-shape[self.axis] // self.block), 1, *shape[self.axis + 1 :])

    def coder(self, use: Use, coding: Coding, keep: int) -> Coder:
        """Return what makes them."""
        if self.flat:
            length = flat_shape(use, coding.info.shape)[1]
            return Rows(coding, length, length)
        return coder_in_place(use, coding, keep)

    def rewrite(self, use: Use, weight: QuantizedWeight, nodes: InsertedNodes) -> None:
        """Let a node take the product."""
        numbers = nodes.add("Cast", [weight.codes], {"to": use.dtype.value})
        points = weight.zero_point
        points = None if points is None else nodes.add("Cast", [points], {"to": use.dtype.value})
        shape, axis, scale = self._codes_shape(use, weight.shape), self.axis, weight.scale
        ragged = axis is not None and shape[axis] % self.block != 0
        if axis is not None and ragged:
            scale = self._repeated(scale, shape, axis, nodes)
            points = None if points is None else self._repeated(points, shape, axis, nodes)
        elif axis is not None:
            split = [*shape[:axis], shape[axis] // self.block, self.block, *shape[axis + 1 :]]
            numbers = nodes.add("Reshape", [numbers, _ints(nodes, split)])
        if points is not None:
            numbers = nodes.add("Sub", [numbers, points])
        dense = nodes.add("Mul", [numbers, scale])
        if self.flat or (axis is not None and not ragged):
            dense = nodes.add("Reshape", [dense, _ints(nodes, weight.shape)])
        use.node.replace_input_with(use.index, nodes.as_seen(dense))

    def _repeated(self, values: ir.Value, shape: tuple[int, ...], axis: int, nodes: InsertedNodes) -> ir.Value:
        """Return a value for each element of an axis, where the last block is shorter than the others."""
        before, behind, blocks = shape[:axis], shape[axis + 1 :], -(-shape[axis] // self.block)
        values = nodes.add("Expand", [values, _ints(nodes, [*before, blocks, self.block, *behind])])
        values = nodes.add("Reshape", [values, _ints(nodes, [*before, blocks * self.block, *behind])])
        bounds = [_ints(nodes, [n]) for n in (0, shape[axis], axis)]
        return nodes.add("Slice", [values, *bounds])


def _ints(nodes: InsertedNodes, values: Sequence[int]) -> ir.Value:
    return nodes.constant("shape", values, ir.DataType.INT64)
