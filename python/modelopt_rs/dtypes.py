"""The one table of dtypes: how formats spell them, their bits, and the arrays that hold them.

What NumPy has no dtype for is in arrays of unsigned integers of its size; where several elements share a byte, in
arrays of bytes.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.errors import quote

__all__ = [
    "BY_ONNX_NUMBER",
    "BY_WORD",
    "DTYPES",
    "FLOATS",
    "INTEGERS",
    "STORED",
    "Dtype",
    "array_dtype",
    "bf16_to_float32",
    "is_packed",
    "nbytes",
    "numpy_dtype",
    "rounded",
    "twin_of",
    "widened",
]


@dataclass(frozen=True, slots=True)
class Dtype:
    """One dtype.

    Attributes
    ----------
    name : str
        As this package spells it for every format: as safetensors does, where it has the dtype.
    bits : int
        Of an element.
    numpy : str
        The NumPy dtype of arrays of it.
    onnx : int
        Its `TensorProto.data_type`.
    word : str or None
        As NumPy and torch spell it, where users name it.
    twin : str or None
        The dtype of `ml_dtypes` with the same bits.
    in_safetensors : bool
        Whether safetensors files have it.
    """

    name: str
    bits: int
    numpy: str
    onnx: int
    word: str | None = None
    twin: str | None = None
    in_safetensors: bool = True


DTYPES: Final = {
    dtype.name: dtype
    for dtype in (
        Dtype("F32", 32, "<f4", 1, "float32"),
        Dtype("U8", 8, "<u1", 2, "uint8"),
        Dtype("I8", 8, "<i1", 3, "int8"),
        Dtype("U16", 16, "<u2", 4, "uint16"),
        Dtype("I16", 16, "<i2", 5, "int16"),
        Dtype("I32", 32, "<i4", 6, "int32"),
        Dtype("I64", 64, "<i8", 7, "int64"),
        Dtype("BOOL", 8, "?", 9, "bool"),
        Dtype("F16", 16, "<f2", 10, "float16"),
        Dtype("F64", 64, "<f8", 11, "float64"),
        Dtype("U32", 32, "<u4", 12, "uint32"),
        Dtype("U64", 64, "<u8", 13, "uint64"),
        Dtype("C64", 64, "<c8", 14, "complex64"),
        Dtype("C128", 128, "<c16", 15, "complex128", in_safetensors=False),
        Dtype("BF16", 16, "<u2", 16, "bfloat16", "bfloat16"),
        Dtype("F8_E4M3", 8, "<u1", 17, "float8_e4m3fn", "float8_e4m3fn"),
        Dtype("F8_E4M3FNUZ", 8, "<u1", 18, "float8_e4m3fnuz", "float8_e4m3fnuz"),
        Dtype("F8_E5M2", 8, "<u1", 19, "float8_e5m2", "float8_e5m2"),
        Dtype("F8_E5M2FNUZ", 8, "<u1", 20, "float8_e5m2fnuz", "float8_e5m2fnuz"),
        Dtype("U4", 4, "<u1", 21, in_safetensors=False),
        Dtype("I4", 4, "<u1", 22, in_safetensors=False),
        Dtype("F4E2M1", 4, "<u1", 23, in_safetensors=False),
        Dtype("F8_E8M0", 8, "<u1", 24, "float8_e8m0fnu", "float8_e8m0fnu"),
        Dtype("U2", 2, "<u1", 25, in_safetensors=False),
        Dtype("I2", 2, "<u1", 26, in_safetensors=False),
        Dtype("F6E2M3", 6, "<u1", 27, in_safetensors=False),
        Dtype("F6E3M2", 6, "<u1", 28, in_safetensors=False),
    )
}
FLOATS: Final[dict[str, Literal["bf16"] | None]] = {"F64": None, "F32": None, "F16": None, "BF16": "bf16"}
"""The dtypes that the array functions compute with, and the `dtype=` that they need for them."""

INTEGERS: Final = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
"""The dtypes of whole numbers and truth values, one an item."""

BY_ONNX_NUMBER: Final = {dtype.onnx: dtype.name for dtype in DTYPES.values()}
"""The dtypes of ONNX tensors by `TensorProto.data_type`; strings, which have no bytes of their own, are left out."""

BY_WORD: Final = {dtype.word: dtype.name for dtype in DTYPES.values() if dtype.word is not None}
"""The same by the names that NumPy, `ml_dtypes` and torch have for them."""

STORED: Final = {word: BY_WORD[word] for word in ("float32", "float16", "bfloat16")}
"""The dtypes that weights, and the scales of their codes, are stored in, by the names that users have for them."""


def is_packed(dtype: str) -> bool:
    """Whether several elements share a byte; rows of such a tensor are the bytes of the flat tensor."""
    return DTYPES[dtype].bits < 8 if dtype in DTYPES else False


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of the arrays of a dtype that safetensors files have.

    Raises
    ------
    ValueError
        If they don't have it.

    Examples
    --------
    >>> from modelopt_rs.dtypes import numpy_dtype
    >>> numpy_dtype("BF16"), numpy_dtype("F8_E4M3")
    (dtype('uint16'), dtype('uint8'))
    """
    known = DTYPES.get(dtype)
    if known is None or not known.in_safetensors:
        raise ValueError(f"dtype {quote(dtype)} is not supported")
    return np.dtype(known.numpy)


def array_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of the arrays of a dtype: uint8 where several elements share a byte.

    Examples
    --------
    >>> from modelopt_rs.dtypes import array_dtype
    >>> array_dtype("I4"), array_dtype("F32")
    (dtype('uint8'), dtype('float32'))
    """
    return np.dtype(DTYPES[dtype].numpy)


def twin_of(dtype: str) -> str | None:
    """Return the name of the dtype of `ml_dtypes` that has the same bits, if there is one."""
    return DTYPES[dtype].twin if dtype in DTYPES else None


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor has; the last one is filled up with zero bits.

    Examples
    --------
    >>> from modelopt_rs.dtypes import nbytes
    >>> nbytes("I4", (3, 3)), nbytes("BF16", (3, 3))
    (5, 18)
    """
    return -(-prod(shape) * DTYPES[dtype].bits // 8)


def bf16_to_float32(bits: Array) -> Array:
    """Make float32 of bfloat16 bits in uint16: they are its upper half."""
    return np.asarray(bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(array: Array, dtype: str) -> Array:
    """Return finite numbers as a dtype of floats stores them, rounded half to even.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.dtypes import rounded
    >>> rounded(np.array([1.005859375], np.float32), "BF16"), rounded(np.array([1.0], np.float32), "F16")
    (array([16257], dtype=uint16), array([1.], dtype=float16))
    """
    if dtype != "BF16":
        return array.astype(DTYPES[dtype].numpy, copy=False)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def widened(array: Array, dtype: str) -> Array:
    """Return values of a bfloat16 tensor, which come as uint16, as float32; any others as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.dtypes import widened
    >>> widened(np.array([0x3F80], np.uint16), "BF16")
    array([1.], dtype=float32)
    """
    return bf16_to_float32(array) if dtype == "BF16" else array
