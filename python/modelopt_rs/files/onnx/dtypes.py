"""The dtypes of ONNX tensors, by the number that stands in a file."""

from math import prod
from typing import Any, Final

import numpy as np

from modelopt_rs.files.model import PACKED, TensorInfo
from modelopt_rs.files.safetensors import BIT_TWINS, numpy_dtype

__all__ = ["DTYPES", "STRING", "TWINS", "array_dtype", "nbytes", "tensor_info"]

STRING: Final = 8
DTYPES: Final[dict[int, str]] = {
    1: "F32",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    10: "F16",
    11: "F64",
    12: "U32",
    13: "U64",
    14: "C64",
    15: "C128",
    16: "BF16",
    17: "F8_E4M3",
    18: "F8_E4M3FNUZ",
    19: "F8_E5M2",
    20: "F8_E5M2FNUZ",
    21: "U4",
    22: "I4",
    23: "F4E2M1",
    24: "F8_E8M0",
    25: "U2",
    26: "I2",
    27: "F6E2M3",
    28: "F6E3M2",
}
"""How the rest of the package spells `TensorProto.data_type`; STRING, which has no bytes of its own, is left out."""

TWINS: Final = BIT_TWINS


def array_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of the arrays of a dtype: uint8 where several elements share a byte.

    Examples
    --------
    >>> from modelopt_rs.files.onnx.dtypes import array_dtype
    >>> array_dtype("I4"), array_dtype("F32")
    (dtype('uint8'), dtype('float32'))
    """
    if dtype in PACKED:
        return np.dtype(np.uint8)
    return np.dtype("<c16") if dtype == "C128" else numpy_dtype(dtype)


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor has; the last one is filled up with zero bits.

    Examples
    --------
    >>> from modelopt_rs.files.onnx.dtypes import nbytes
    >>> nbytes("I4", (3, 3)), nbytes("BF16", (3, 3))
    (5, 18)
    """
    bits = PACKED.get(dtype) or 8 * array_dtype(dtype).itemsize
    return -(-prod(shape) * bits // 8)


def tensor_info(name: str, dtype: int, shape: tuple[int, ...]) -> TensorInfo:
    """Return what the rest of the package calls a tensor with the number of its dtype."""
    spelled = DTYPES[dtype]
    return TensorInfo(name, spelled, shape, nbytes(spelled, shape))
