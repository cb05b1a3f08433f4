"""Codes that lie as the weight does: what DequantizeLinear, and Cast and Mul, have in common."""

import math

from modelopt_rs.onnx.weight_only.axis_scales import AxisScales
from modelopt_rs.onnx.weight_only.coders import Coder, Rows
from modelopt_rs.onnx.weight_only.coding import Arrange, Coding, Outputs, flat
from modelopt_rs.onnx.weight_only.convolution import ChannelBlocks
from modelopt_rs.onnx.weight_only.forms.form import StorageOptions, tensor
from modelopt_rs.onnx.weight_only.inner_coders import AxisBlocks, NarrowAxisBlocks, WholeColumns
from modelopt_rs.onnx.weights import Use
from modelopt_rs.stream.model import TensorInfo

__all__ = ["coder_in_place", "flat_shape", "outputs_in_place", "row_codes_in_place"]

# Fewer elements than this behind the axis of a block, and the block is too small for a call of its own.
NARROW = 64


def coder_in_place(use: Use, coding: Coding, keep: int) -> Coder:
    """Return what makes blocks along the axis that a node sums over, or a scale for each of its outputs."""
    shape, block = coding.info.shape, coding.block
    if coding.moments is not None and use.in_axis == 0:
        return WholeColumns(coding, row_codes_in_place(use, block, shape))
    if not block:
        length = math.prod(shape[use.out_axis + 1 :])
        first = math.prod(shape[: use.out_axis]) == 1
        return Rows(coding, length, length) if first else AxisScales(coding, use.out_axis, keep)
    if math.prod(shape[use.in_axis + 1 :]) == 1:
        return Rows(coding, shape[use.in_axis], shape[use.in_axis])
    if coding.moments is not None:
        return ChannelBlocks(coding, row_codes_in_place(use, block, shape))
    narrow = _is_narrow(use, block, shape)
    return NarrowAxisBlocks(coding, use.in_axis) if narrow else AxisBlocks(coding, use.in_axis)


def flat_shape(use: Use, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a weight as rows of all that makes one output, which lie together.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.weight_only.forms.in_place import flat_shape
    >>> from modelopt_rs.onnx.weights import Use
    >>> use = Use(ir.node("Conv", [None, None]), 1, "conv", (), 1, 0, ir.DataType.FLOAT)
    >>> flat_shape(use, (64, 3, 7, 7))
    (64, 147)
    """
    return math.prod(shape[: use.out_axis + 1]), math.prod(shape[use.out_axis + 1 :])


def row_codes_in_place(use: Use, block: int, shape: tuple[int, ...]) -> int:
    """Return how many codes the rows have that the coder makes."""
    if not block:
        return shape[-1] if use.out_axis == len(shape) - 1 else math.prod(shape[use.out_axis + 1 :])
    behind = math.prod(shape[use.in_axis + 1 :])
    if behind == 1:
        return shape[use.in_axis]
    return block * behind if _is_narrow(use, block, shape) else behind


def _is_narrow(use: Use, block: int, shape: tuple[int, ...]) -> bool:
    """Whether calls for single blocks, each of all that stands behind an axis, would take too long."""
    return math.prod(shape[use.in_axis + 1 :]) < NARROW and shape[use.in_axis] % block == 0


def outputs_in_place(
    info: TensorInfo, scale: tuple[str, tuple[int, ...]], points: tuple[str, Arrange], row_codes: int, s: StorageOptions
) -> Outputs:
    """Return the tensors: flat codes, and scales.

    Parameters
    ----------
    info : TensorInfo
        The weight, its axes in the order of the codes.
    scale : (str, tuple of int)
        Dtype and shape of the scales.
    points : (str, callable)
        Dtype of the zero points, and what makes them of a byte each.
    row_codes : int
        How many codes the rows have that the coder makes.
    s : StorageOptions
    """
    signed, bits, name = s.options.spec.symmetric, s.options.bits, s.unused
    return Outputs(
        codes=tensor(name(f"{info.name}_quantized"), f"{'I' if signed else 'U'}{bits}", info.shape),
        scale=tensor(name(f"{info.name}_scale"), *scale),
        zero_point=None if signed else tensor(name(f"{info.name}_zero_point"), points[0], scale[1]),
        codes_stored=flat(bits, row_codes, signed, s.threads),
        zero_points_stored=points[1],
    )
