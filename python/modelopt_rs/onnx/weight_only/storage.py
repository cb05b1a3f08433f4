"""The tensors that stand for a weight in each form, and the coder that makes them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from modelopt_rs._types import Array
from modelopt_rs.dtypes import nbytes
from modelopt_rs.onnx.weight_only.coders import Coder, Rows, Transposed, TransposedCodes
from modelopt_rs.onnx.weight_only.coding import Arrange, Coding, Outputs, flat, halves, packed_bytes, packed_rows
from modelopt_rs.onnx.weight_only.forms import SCALES, Form
from modelopt_rs.onnx.weight_only.inner_coders import AxisBlocks, AxisRanges, NarrowAxisBlocks
from modelopt_rs.onnx.weights import Use
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.model import TensorInfo

__all__ = ["StorageOptions", "coder_of", "outputs_of"]

# Fewer elements than this behind the axis of a block, and the block is too small for a call of its own.
NARROW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """What is common to the tensors of one run.

    Attributes
    ----------
    options : QuantizeOptions
    threads : int or None
    keep : int
        The most bytes of a result that is turned to keep at a time.
    unused : callable
        Makes a name that no value of the graph has.
    """

    options: QuantizeOptions
    threads: int | None
    keep: int
    unused: Callable[[str], str]


def outputs_of(form: Form, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
    """Return the tensors that stand for a weight in a form."""
    if form.operation in ("nbits", "gather_block"):
        return _blocks(form, use, info, storing)
    if form.operation == "gather":
        return _table(form, info, storing)
    return _whole(form, use, info, storing)


def coder_of(form: Form, use: Use, coding: Coding, storing: StorageOptions) -> Coder:
    """Return what makes the tensors of a form."""
    shape = coding.info.shape
    if form.transposed:
        return TransposedCodes(coding, storing.keep) if use.in_axis == 1 else Transposed(coding, storing.keep)
    if form.per_tensor:
        return AxisRanges(coding, None)
    if form.block:
        behind, length = math.prod(shape[use.in_axis + 1 :]), shape[use.in_axis]
        if behind == 1:
            return Rows(coding, length, -(-length // form.block) * form.block if form.operation == "nbits" else length)
        return (
            NarrowAxisBlocks(coding, use.in_axis) if _is_narrow(form, use, shape) else AxisBlocks(coding, use.in_axis)
        )
    if math.prod(shape[: use.out_axis]) == 1:
        length = math.prod(shape[use.out_axis + 1 :])
        return Rows(coding, length, length)
    return AxisRanges(coding, use.out_axis)


def _is_narrow(form: Form, use: Use, shape: tuple[int, ...]) -> bool:
    """Whether calls for single blocks, each of all that stands behind an axis, would take too long."""
    return math.prod(shape[use.in_axis + 1 :]) < NARROW and shape[use.in_axis] % form.block == 0


def _info(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, dtype, shape, nbytes(dtype, shape))


def _as_is(array: Array) -> Array:
    return array


def _blocks(form: Form, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
    """Rows of blocks, packed, unsigned: MatMulNBits has them as [out, blocks, bytes]."""
    bits, inputs, outputs = storing.options.bits, info.shape[use.in_axis], info.shape[use.out_axis]
    groups = -(-inputs // form.block)
    name = storing.unused
    if form.operation == "nbits":
        shape: tuple[int, ...] = (outputs, groups, form.block * bits // 8)
    else:
        shape = (outputs, packed_bytes(inputs, bits))
    zero_point = None
    if not storing.options.spec.symmetric:
        zero_point = _info(name(f"{info.name}_zero_point"), "U8", (outputs, packed_bytes(groups, bits)))
    return Outputs(
        codes=_info(name(f"{info.name}_quantized"), "U8", shape),
        scale=_info(name(f"{info.name}_scale"), SCALES[form.dtype], (outputs, groups)),
        zero_point=zero_point,
        codes_stored=_as_is,
        zero_points_stored=lambda points: packed_rows(points, bits, storing.threads),
    )


def _table(form: Form, info: TensorInfo, storing: StorageOptions) -> Outputs:
    """Rows that Gather takes: at 8 bits the codes, below packed so that shifts and masks give consecutive ones."""
    options, (rows, columns) = storing.options, info.shape
    signed = options.bits == 8 and options.spec.symmetric
    groups = columns // form.block if form.block else 1
    scales: tuple[int, ...] = (rows, groups, 1) if form.block else (rows, 1)
    stored: Arrange
    if options.bits == 8:
        shape: tuple[int, ...] = (rows, groups, form.block) if form.block else (rows, columns)
        stored = flat(8, columns, signed, storing.threads)
    else:
        shape, stored = (rows, packed_bytes(columns, options.bits)), halves(options.bits, columns, storing.threads)
    name = storing.unused
    return Outputs(
        codes=_info(name(f"{info.name}_quantized"), "I8" if signed else "U8", shape),
        scale=_info(name(f"{info.name}_scale"), SCALES[form.dtype], scales),
        zero_point=None if options.spec.symmetric else _info(name(f"{info.name}_zero_point"), "U8", scales),
        codes_stored=stored,
        zero_points_stored=_as_is,
    )


def _whole(form: Form, use: Use, info: TensorInfo, storing: StorageOptions) -> Outputs:
    """The weight's own shape, or turned; flat sub-byte codes."""
    options = storing.options
    order = (1, 0) if form.transposed else tuple(range(len(info.shape)))
    shape = tuple(info.shape[i] for i in order)
    in_axis, out_axis = order.index(use.in_axis), order.index(use.out_axis)
    signed, bits = options.spec.symmetric, options.bits
    dtype = f"{'I' if signed else 'U'}{bits}"
    scales = shape_of_scales(form, shape, in_axis, out_axis)
    zero_points = _info(storing.unused(f"{info.name}_zero_point"), "U8" if form.operation == "fold" else dtype, scales)
    columns = _codes_columns(form, use, info.shape)
    return Outputs(
        codes=_info(storing.unused(f"{info.name}_quantized"), dtype, shape),
        scale=_info(storing.unused(f"{info.name}_scale"), SCALES[form.dtype], scales),
        zero_point=None if signed else zero_points,
        codes_stored=flat(bits, columns, signed, storing.threads),
        zero_points_stored=_zero_points_stored(form, bits, storing.threads),
    )


def _zero_points_stored(form: Form, bits: int, threads: int | None) -> Arrange:
    if form.operation == "fold" or bits == 8:
        return _as_is
    return lambda points: packed_rows(points.reshape(1, -1), bits, threads)


def _codes_columns(form: Form, use: Use, shape: tuple[int, ...]) -> int:
    """Return how many codes the rows have that the coder makes."""
    if form.transposed:
        return shape[0]
    if form.per_tensor:
        return shape[-1]
    if form.block:
        behind = math.prod(shape[use.in_axis + 1 :])
        if behind == 1:
            return shape[use.in_axis]
        return form.block * behind if _is_narrow(form, use, shape) else behind
    behind = math.prod(shape[use.out_axis + 1 :])
    return shape[-1] if use.out_axis == len(shape) - 1 else behind


def shape_of_scales(form: Form, shape: tuple[int, ...], in_axis: int, out_axis: int) -> tuple[int, ...]:
    """Return the shape of the scales that DequantizeLinear wants, or (to fold) that broadcasts.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.weight_only.forms import Form
    >>> from modelopt_rs.onnx.weight_only.storage import shape_of_scales
    >>> shape_of_scales(Form("dequantize", 32, ir.DataType.FLOAT), (64, 96, 3, 3), 1, 0)
    (64, 3, 3, 3)
    >>> shape_of_scales(Form("fold", 32, ir.DataType.FLOAT), (64, 96, 3, 3), 1, 0)
    (64, 3, 1, 3, 3)
    """
    fold = form.operation == "fold"
    if form.per_tensor:
        return ()
    if not form.block:
        return tuple(n if i == out_axis else 1 for i, n in enumerate(shape)) if fold else (shape[out_axis],)
    split = [-(-shape[in_axis] // form.block), *([1] if fold else [])]
    return (*shape[:in_axis], *split, *shape[in_axis + 1 :])
