"""The dtypes of codes, one an item: NumPy's, those of `ml_dtypes`, and by name what NumPy has no dtype for."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.arguments import shown_dtype

__all__ = ["Code", "code_of", "code_of_array", "float_dtype", "params_of"]


@dataclass(frozen=True, slots=True)
class Code:
    """One dtype of codes: its name, the dtype of arrays of it, its limits (of floats the largest number alone)."""

    name: str
    array: np.dtype[Any]
    low: int
    high: int

    @property
    def is_float(self) -> bool:
        """Whether codes are floats, which have no zero points."""
        return self.name.startswith("float")


_LIMITS: Final = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int2": (-2, 1),
    "uint2": (0, 3),
    "float8_e4m3fn": (-448, 448),
    "float8_e5m2": (-57344, 57344),
    "float8_e4m3fnuz": (-240, 240),
    "float8_e5m2fnuz": (-57344, 57344),
    "float4_e2m1fn": (-6, 6),
}
# What is named by a text, and the arrays of NumPy that hold it.
_PLAIN: Final = {"int4": "int8", "int2": "int8"} | {
    name: "uint8" for name in _LIMITS if name.startswith(("uint4", "uint2", "float"))
}


def code_of(function: str, dtype: Any, arg: str = "dtype") -> Code:
    """Return the code that a user names: by a dtype, which arrays then have, or by a text.

    Raises
    ------
    TypeError
        If it is no dtype of codes.

    Examples
    --------
    >>> from modelopt_rs.quant.codes import code_of
    >>> code_of("f", "int4").array, code_of("f", "int4").low
    (dtype('int8'), -8)
    """
    try:
        return _code_of(function, dtype, arg)
    except TypeError as why:
        if "unhashable" not in str(why):
            raise
    raise TypeError(f"{function}: {arg} must be one of {', '.join(_LIMITS)}, got {type(dtype).__name__}")


@lru_cache(maxsize=64)  # a name of a dtype takes as long as all else of a small call
def _code_of(function: str, dtype: Any, arg: str) -> Code:
    plain = _PLAIN.get(dtype) if isinstance(dtype, str) else None
    try:
        array: np.dtype[Any] | None = np.dtype(plain or dtype)
    except (AttributeError, KeyError, SyntaxError, TypeError, ValueError):  # NumPy's words for what is no dtype
        array = None
    name = str(dtype) if plain else getattr(array, "name", "")
    if array is None or name not in _LIMITS or not array.isnative:
        fix = "" if array is None or array.isnative else f"; use '={array.str[1:]}'"
        raise TypeError(f"{function}: {arg} must be one of {', '.join(_LIMITS)}, got {shown_dtype(dtype)}{fix}")
    return Code(name, array, *_LIMITS[name])


def float_dtype(function: str, dtype: Any) -> np.dtype[Any]:
    """Return the dtype of floats that a user names, uint16 for the bits of bfloat16.

    Raises
    ------
    TypeError
        If it is none.
    """
    if isinstance(dtype, str) and dtype == "bf16":
        return np.dtype(np.uint16)
    try:
        wanted: np.dtype[Any] = np.dtype(dtype)
        got = None
    except (AttributeError, KeyError, SyntaxError, TypeError, ValueError):  # NumPy's words for what is no dtype
        wanted, got = np.dtype(bool), shown_dtype(dtype)
    # A name takes as long as all the rest.
    if (wanted.char not in "fde" and wanted.name != "bfloat16") or not wanted.isnative:
        floats = "float32, float64, float16, bfloat16 or 'bf16'"
        fix = "" if wanted.isnative else f"; use '={wanted.str[1:]}'"
        raise TypeError(f"{function}: dtype must be {floats}, got {got or wanted}{fix}")
    return wanted


@lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name


def code_of_array(array: Array) -> str:
    """Return the name of the dtype of an array of codes, as the core takes it."""
    return _name(array.dtype)


def params_of(ends: tuple[Any, Any], code: Code, *, symmetric: bool) -> tuple[Any, Any]:
    """Return scales and zero points of ranges, by the formulas of `quantize`; see `Calibrator.params`."""
    low, high = (np.asarray(end, np.float32).astype(np.float64) for end in ends)
    centered = symmetric or code.is_float
    if centered:
        middle = 0 if code.low < 0 else (code.high + 1) // 2
        steps = code.high - middle
        width = np.maximum(-low, high)
    else:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        steps, width = code.high - code.low, high - low
    scale = np.where(width == 0, 1.0, np.maximum((width / steps).astype(np.float32), np.finfo(np.float32).tiny))
    scale = scale.astype(np.float32)
    if code.is_float:
        return scale[()], None
    zero_point = np.full(scale.shape, middle) if centered else code.low + np.rint(np.minimum(-low / scale, steps))
    zero_point = zero_point.astype(np.int64)
    if code.array.name != code.name:
        return scale[()], int(zero_point) if not zero_point.ndim else zero_point
    return scale[()], zero_point.astype(code.array)[()]
