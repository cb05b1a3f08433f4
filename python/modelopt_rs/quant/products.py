"""`q @ x` and `x @ q` of quantized matrices, without floats of the whole of them."""

from typing import Any, TypeAlias

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Parts, Spec
from modelopt_rs.arrays import as_array

__all__ = ["Weight", "columns", "rows"]

Weight: TypeAlias = tuple[Parts, Spec, tuple[int, ...]]
"""A matrix as kernels take it."""


def rows(w: Weight, x: Any) -> Array:
    """Return ``w @ x`` of a vector, or of matrices, as `quant.linear` of what `x` is transposed."""
    x = _operand(x, w[2][1], -2)
    across = x if x.ndim == 1 else np.swapaxes(x, -1, -2)
    out = np.empty(across.shape[:-1] + w[2][:1], np.float32)
    _core.linear_rows(across, w, None, out, "int24" if _is_even(w) else "float32", None)
    return out if x.ndim == 1 else np.ascontiguousarray(np.swapaxes(out, -1, -2))


def columns(x: Any, w: Weight) -> Array:
    """Return ``x @ w`` of vectors."""
    x = _operand(x, w[2][0], -1, w[2][1])
    out = np.empty(x.shape[:-1] + w[2][1:], np.float32)
    _core.linear_columns(x, w, out, None)
    return out


def _operand(x: Any, n: int, axis: int, other: int | None = None) -> Array:
    """Check what is multiplied; `other`: the length that fits a weight [out, in], as `quant.linear` takes it."""
    array = as_array(x, "matmul: x")
    if array.dtype.kind in "biucOSUmM":
        raise TypeError(f"matmul: x must have dtype float32, float64, float16 or bfloat16, got {array.dtype}")
    if not array.dtype.isnative:
        order = array.dtype.str
        raise TypeError(f"matmul: x has big-endian dtype '{order}'; use x.astype('={order[1:]}')")
    got = array.shape[max(axis, -array.ndim)] if array.ndim else None
    if got != n:
        where = "its last axis" if axis == -1 or array.ndim < 2 else "its last axis but one"
        fix = "; quant.linear(x, q) multiplies with q transposed" if got is not None and got == other else ""
        raise ValueError(f"matmul: x must have {n} in {where}, got shape {array.shape}{fix}")
    return array


def _is_even(w: Weight) -> bool:
    """Whether codes are evenly spaced and have scales of rows, of groups or of the whole."""
    _, (format, axis, group_size), _ = w
    by_name = format[0] if isinstance(format, str) else "i"
    return by_name in "iu" and axis in (None, 0, -2) and not isinstance(group_size, tuple)
