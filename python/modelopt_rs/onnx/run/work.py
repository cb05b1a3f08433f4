"""What a run of a model takes, counted in products, not in seconds: these differ from machine to machine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from modelopt_rs._types import Array

__all__ = ["Work"]

LOOKED_UP: Final = ("Gather", "GatherElements", "GatherND", "GatherBlockQuantized", "EmbedLayerNormalization")
"""What takes rows of a table, and multiplies with none."""
WHOLE: Final = ("Flatten", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
"""Behind these there is one position."""
STRIDED: Final = ("Conv", "MaxPool", "AveragePool", "LpPool", "ConvInteger", "QLinearConv")
SIZED: Final = ("Resize", "Upsample")


@dataclass(frozen=True, slots=True)
class Work:
    """The products with weights that a run of a model takes, about.

    Each element of a weight is multiplied once for each position (pixel, token, row) of what its node takes. Products
    of two values, and how often the body of a loop is run, are not counted.

    Attributes
    ----------
    weights : tuple of (int, float)
        Of each use the elements, and how many positions it has for one of the inputs: of a convolution with a stride
        of 2 a quarter.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.run.work import Work
    >>> x = ir.val("x", ir.DataType.FLOAT, ["n", 8])
    >>> w = ir.val("w", const_value=ir.tensor(np.ones((8, 4), np.float32), name="w"))
    >>> node = ir.node("MatMul", [x, w])
    >>> work = Work.of(ir.Model(ir.Graph([x], node.outputs, nodes=[node], initializers=[w]), ir_version=8))
    >>> work({"x": np.ones((5, 8), np.float32)}, {"x": ("n", 8)})
    160.0
    """

    weights: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, model: ir.Model) -> "Work":
        """Count those of a model."""
        constants: dict[ir.Value, int] = {}
        share: dict[ir.Value, float] = {}
        found = []
        for node in model.graph.all_nodes():
            taken = [value for value in node.inputs if value is not None]
            elements = [constants.get(value, _elements(value)) for value in taken]
            moving = [share.get(value, 1.0) for value, n in zip(taken, elements, strict=True) if n is None]
            weights = max((n for n in elements if n is not None), default=0)
            if not moving:  # all constants, such as a weight that is decoded
                constants |= dict.fromkeys(node.outputs, weights)
                continue
            there = max(moving)
            after = _positions_after(node, there)
            share |= dict.fromkeys(node.outputs, after)
            if weights and node.op_type not in LOOKED_UP:
                found.append((weights, min(after, there)))
        return cls(tuple(found))

    def __call__(self, feed: Mapping[str, Array], shapes: Mapping[str, Sequence[int | str | None]]) -> float:
        """Return the products of a run on these inputs, whose axes the model has so."""
        positions = max((_positions(array, shapes[name]) for name, array in feed.items()), default=1)
        return sum(elements * max(share * positions, 1.0) for elements, share in self.weights)


def _elements(value: ir.Value) -> int | None:
    """Return the elements of a constant of two axes or more, 0 of another; None: it is none."""
    tensor = value.const_value
    if tensor is None:
        return None
    return int(tensor.size) if len(tensor.shape) > 1 else 0


def _positions(array: Array, shape: Sequence[int | str | None]) -> int:
    """Return the pixels, tokens or rows of an input.

    Of images all but the channels. Else the longest axis of a fixed length, but for the first, has what stands at one.
    """
    if array.dtype.kind in "iu" or array.ndim < 2:
        return max(array.size, 1)
    fixed = [n for n in shape[1:] if isinstance(n, int) and n > 0] or [1]
    return max(array.size // (min(fixed) if array.ndim > 3 else max(fixed)), 1)


def _positions_after(node: ir.Node, there: float) -> float:
    """Return how many positions a node makes of those that it takes, both for one of the inputs."""
    steps = max(math.prod(node.attributes.get_ints("strides", ())), 1)
    block = node.attributes.get_int("blocksize", 1) ** 2
    if node.op_type in WHOLE:
        return 0.0
    if node.op_type in STRIDED:
        return there / steps
    if node.op_type == "ConvTranspose":
        return there * steps
    if node.op_type in ("DepthToSpace", "SpaceToDepth"):
        return there * block if node.op_type == "DepthToSpace" else there / max(block, 1)
    if node.op_type in SIZED:  # to sizes that are computed it is mostly back to those of the input
        return next((there * scale for scale in map(_scale, node.inputs[1:]) if scale is not None), 1.0)
    return there


def _scale(value: ir.Value | None) -> float | None:
    """Return the product of constant factors; None of what are none."""
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.size not in (3, 4, 5) or not tensor.dtype.is_floating_point():
        return None
    return float(tensor.numpy().prod())
