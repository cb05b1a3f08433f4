"""Initializers whose values are yet to come."""

from typing import Final

import onnx_ir as ir

__all__ = ["ONNX_DTYPES", "placeholder"]

ONNX_DTYPES: Final = {
    "U8": ir.DataType.UINT8,
    "I8": ir.DataType.INT8,
    "U4": ir.DataType.UINT4,
    "I4": ir.DataType.INT4,
    "U2": ir.DataType.UINT2,
    "I2": ir.DataType.INT2,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
}


def placeholder(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """Return a tensor that has no values yet."""

    def refuse() -> ir.TensorProtocol:
        raise ValueError(f"placeholder: tensor {name!r} has no values before it is written")

    return ir.LazyTensor(refuse, dtype, ir.Shape(shape, frozen=True), name=name)
