"""Which form a weight has for a node: the operators, the blocks and the opset.

What is chosen here has been run in onnxruntime 1.32 on a CPU (1024 x 1024 and a vector, float32 MatMul 48 us):

- `MatMulNBits` at level 4: 8 bits 16 us, 4 bits 10 to 16, 2 bits 10 to 22; 2 bits in blocks of 16 or 256 take 1,400 to
  2,300 us, so they are not made. `DequantizeLinear` before a MatMul is fused to the same, with the same exceptions.
- `MatMulNBits` is slower than float32 where a small matrix meets many rows (257 x 64, us at 1, 32, 128, 2,048 rows: 4,
  8, 21, 286; 8 bits 4, 11, 29, 410), faster where it is large (1024 x 1024 at 128 rows: 1,557; 8 bits 924, 4 bits
  1,278).
- A model with a `DequantizeLinear` before a MatMul in the body of an If or a Loop is not loaded.
- `DequantizeLinear` of int2 or uint2 is fused wrongly where the columns are no multiple of 4.
- `DequantizeLinear` before Conv, ConvTranspose, LSTM and GRU is computed in every call (Conv of 512 x 256 x 5: 3.7 ms
  instead of 2.7; of 2048 x 2048 x 3 x 3 on few pixels: 11 instead of 3.5). Cast, Sub, Mul of constants is folded when
  the model is loaded, and costs nothing in a call: that is the form for the target onnxruntime.
- A table of 30,522 x 384, us for 20 and for 128 ids: float32 4.3 and 6.8; 8 bits, a scale for each row, as Gather,
  Cast, Mul: 5.7 and 13.1. 4 bits in blocks of 32: `GatherBlockQuantized` of uint8 9.6 and 43, of int4 or uint4 56 and
  340; Gather, shifts and masks, Concat: 11.5 and 44 (with Div and Mod 16.6 and 76; through a table of codes 17.5 and
  88). 2 bits, blocks of 32: `GatherBlockQuantized` 10.0 and 46, shifts and masks 13.7 and 52.
"""

import math
from dataclasses import replace
from typing import Final

import onnx_ir as ir

from modelopt_rs.onnx.weight_only.forms.dequantize_linear import DequantizeLinear
from modelopt_rs.onnx.weight_only.forms.folded import Folded
from modelopt_rs.onnx.weight_only.forms.form import SCALES, Form
from modelopt_rs.onnx.weight_only.forms.gather_block_quantized import GatherBlockQuantized
from modelopt_rs.onnx.weight_only.forms.gather_codes import GatherCodes
from modelopt_rs.onnx.weight_only.forms.mat_mul_nbits import MatMulNBits
from modelopt_rs.onnx.weights import Use, Weight
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions, why_never
from modelopt_rs.stream.model import TensorInfo

__all__ = ["BLOCKED", "BLOCKS", "choose", "folded"]

# At 8 bits the blocks of MatMulNBits may be long: 128 make the weights 0.26 of their size (32: 0.29) and the product
# faster, and the error stays that of 8 bits. DequantizeLinear needs none.
NBITS_BLOCK: Final = {8: 128, 4: 32, 2: 32}
BLOCK: Final = {8: 0, 4: 32, 2: 32}
BLOCKS: Final = {8: (16, 32, 64, 128, 256), 4: (16, 32, 64, 128, 256), 2: (32, 64, 128)}
# A matrix of so few elements stays in the caches as floats: folded, it costs what it did for any number of rows.
SMALL_MATRIX: Final = 32768
# The opsets in which DequantizeLinear, or Cast, has a form; 7 is the least that there is.
PER_AXIS, HALF, BLOCKED, TWO_BITS, BITWISE, ANY = 13, 19, 21, 25, 18, 7


def choose(use: Use, weight: Weight, info: TensorInfo, options: QuantizeOptions, onnx: OnnxOptions) -> Form | str:
    """Return the form for one use of a weight, or why there is none.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.onnx.weight_only.forms.choice import choose
    >>> from modelopt_rs.onnx.weights import find_weights
    >>> from modelopt_rs.planning.onnx import OnnxOptions
    >>> from modelopt_rs.planning.quantize import QuantizeOptions
    >>> w = ir.val("w", const_value=ir.tensor(np.ones((64, 64), np.float32), name="w"))
    >>> node = ir.node("MatMul", [ir.val("x"), w])
    >>> graph = ir.Graph([], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17})
    >>> [weight] = find_weights(ir.Model(graph, ir_version=8))
    >>> info = TensorInfo("w", "F32", (64, 64), 16384)
    >>> choose(weight.uses[0], weight, info, QuantizeOptions(bits=4), OnnxOptions()).words
    'MatMulNBits, blocks of 32'
    """
    if use.reason is not None:
        return use.reason
    if (reason := why_never(info)) is not None:
        return reason
    if use.dtype not in SCALES:
        return f"{use.where} computes in {use.dtype}: onnxruntime has no such kernel for quantized weights"
    if use.kind == "gather":
        return _table(use, weight, info, options, onnx)
    if use.kind in ("matmul", "gemm"):
        return _matrix(use, info, options, onnx)
    return _array(use, info, options, onnx)


def folded(use: Use, weight: Weight, info: TensorInfo, options: QuantizeOptions, onnx: OnnxOptions) -> Form | str:
    """Return the form of Cast and Mul, which at 8 bits every opset has, or why it can't be had."""
    if use.kind == "gather" or isinstance(choose(use, weight, info, options, onnx), str):
        return f"{use.where} has no other form"
    return _array(use, info, options, replace(onnx, target="onnxruntime", per_tensor=False))


def _matrix(use: Use, info: TensorInfo, options: QuantizeOptions, onnx: OnnxOptions) -> Form | str:
    inputs, outputs = info.shape[use.in_axis], info.shape[use.out_axis]
    by_columns = use.in_axis == 1
    if onnx.target == "onnxruntime" and options.group_size != 0:
        if _is_small(info, options):
            return _array(use, info, options, onnx)
        block = smallest_block(inputs, options.group_size or NBITS_BLOCK[options.bits], options.bits)
        return MatMulNBits(block, use.dtype, onnx.accuracy_level, transposed=not by_columns)
    if use.inner:
        # Its loader looks for the codes in the body, and does not find them.
        return _array(use, info, options, replace(onnx, target="onnxruntime", per_tensor=False))
    if options.bits == 2 and outputs % 4:
        return f"{outputs} outputs, no multiple of 4: onnxruntime multiplies by 2-bit weights of that width wrongly"
    wanted = BLOCK[options.bits] if options.group_size is None else options.group_size
    # An axis that has to be turned is quantized where its rows lie together: by channels.
    one_scale = onnx.per_tensor and not by_columns
    block = smallest_block(inputs, wanted, options.bits) if wanted and not onnx.per_tensor else 0
    opset = _dequantize_opset(options.bits, block, use.dtype)
    axis = None if one_scale else use.in_axis if block else use.out_axis
    return DequantizeLinear(block, use.dtype, opset, axis, transposed=by_columns)


def _is_small(info: TensorInfo, options: QuantizeOptions) -> bool:
    """Whether a matrix is folded into floats when it is loaded."""
    return options.bits == 8 and math.prod(info.shape) <= SMALL_MATRIX


def _array(use: Use, info: TensorInfo, options: QuantizeOptions, onnx: OnnxOptions) -> Form | str:
    wanted = BLOCK[options.bits] if options.group_size is None else options.group_size
    inputs = info.shape[use.in_axis]
    block = 0 if onnx.per_tensor else dividing_block(inputs, wanted)
    each = math.prod(info.shape) // info.shape[use.out_axis]
    flat = False
    if options.bits < 8 and not block and not onnx.per_tensor and 0 < wanted < each:
        # One scale for so many is too coarse for so few bits: the last block is a shorter one.
        block, flat = wanted, use.in_axis > use.out_axis
        if not flat and math.prod(info.shape[: use.in_axis]) > 1:
            return f"no block of 16 or more divides its {inputs} inputs"
    if onnx.target == "onnxruntime":
        opset = {8: ANY, 4: BLOCKED, 2: TWO_BITS}[options.bits]
        axis = 1 if flat else use.in_axis if block else None
        return Folded(block, use.dtype, opset, axis=axis, flat=flat)
    opset = _dequantize_opset(options.bits, block, use.dtype)
    axis = None if onnx.per_tensor else 1 if flat else use.in_axis if block else use.out_axis
    return DequantizeLinear(block, use.dtype, opset, axis, flat=flat)


def _table(use: Use, weight: Weight, info: TensorInfo, options: QuantizeOptions, onnx: OnnxOptions) -> Form | str:
    if use.in_axis != 1:
        return "a table that is turned before Gather"
    columns = info.shape[1]
    if columns * options.bits % 8:
        return f"rows of {columns} codes of {options.bits} bits do not end on a byte"
    # A head that shares the table is a MatMulNBits, or folded with a scale for each row; one copy serves both.
    shared = onnx.target == "onnxruntime" and any(other.kind in ("matmul", "gemm") for other in weight.uses)
    shared = shared and not (options.group_size is None and _is_small(info, options))
    default = NBITS_BLOCK if shared else BLOCK
    wanted = default[options.bits] if options.group_size is None else options.group_size
    block = dividing_block(columns, wanted)
    if not block and wanted and (shared or (options.bits < 8 and wanted < columns)):
        # Its last block may be shorter; those of Gather, Cast and Mul may not, but be of any size.
        ragged = onnx.target == "onnxruntime"
        block = smallest_block(columns, wanted, options.bits) if ragged else _divisor(columns, wanted)
    if block and onnx.target == "onnxruntime":
        return GatherBlockQuantized(block, use.dtype, BLOCKED if columns % block else ANY)
    indices = use.node.inputs[1]
    if block and (indices is None or indices.shape is None):
        return f"{use.where} takes indices of a rank that the graph does not tell"
    return GatherCodes(block, use.dtype, ANY if options.bits == 8 else BITWISE)


def _dequantize_opset(bits: int, block: int, dtype: ir.DataType) -> int:
    by_bits = {8: PER_AXIS, 4: BLOCKED, 2: TWO_BITS}[bits]
    return max(by_bits, BLOCKED if block else 0, HALF if dtype == ir.DataType.FLOAT16 else 0)


def smallest_block(inputs: int, wanted: int, bits: int) -> int:
    """Return the block of at most `wanted` that takes the least bytes: the last one of a row is filled up.

    Examples
    --------
    >>> from modelopt_rs.onnx.weight_only.forms.choice import smallest_block
    >>> smallest_block(1024, 128, 8), smallest_block(257, 128, 8), smallest_block(64, 128, 8)
    (128, 32, 64)
    """
    sizes = [size for size in reversed(BLOCKS[bits]) if size <= wanted]
    return min(sizes, key=lambda size: -(-inputs // size) * (size * bits // 8 + 4))


def dividing_block(inputs: int, wanted: int) -> int:
    """Return the largest block of at most `wanted`, halved as often as needed, that divides; 0 where none does.

    Examples
    --------
    >>> from modelopt_rs.onnx.weight_only.forms.choice import dividing_block
    >>> dividing_block(96, 64), dividing_block(3, 32)
    (32, 0)
    """
    while wanted >= 16 and inputs % wanted:
        wanted //= 2
    return wanted if wanted >= 16 else 0


def _divisor(columns: int, most: int) -> int:
    """Return the largest divisor of at most `most`; 0 where it would be less than 8."""
    return next((size for size in range(most, 7, -1) if columns % size == 0), 0)
