"""Affine quantization of arrays: `quantize`, `dequantize`, `fake_quantize` and the `QuantizedArray` between them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, Nonfinite, Scheme

__all__ = ["QuantizedArray", "dequantize", "fake_quantize", "quantize"]


# Not frozen: a frozen dataclass takes three times as long to make, and small calls would show it.
@dataclass(slots=True, eq=False)
class QuantizedArray:
    """An array as small integer codes with the scales that turn them back into numbers.

    ``x ≈ (code - zero_point) * scale + offset``, computed in the dtype of `scale`.

    Attributes
    ----------
    codes : ndarray
        8 bits: int8 (symmetric) or uint8, in the shape of the array. 4 and 2 bits: uint8, the last axis packed:
        element 0 in the low bits, each row begins on a byte, padding bits are zero, negative codes in two's
        complement.
    scale : ndarray of float32 (float64 for a float64 array)
        Shape () for one scale, (C,) for an axis, ``shape[:-1] + (ceil(shape[-1] / group_size),)`` for groups.
    zero_point : ndarray of uint8 or None
        In the shape of `scale`; scheme "asymmetric" only.
    offset : ndarray or None
        As `scale`; scheme "minmax" only.
    bits : {8, 4, 2}
        Bits of a code.
    scheme : {"symmetric", "asymmetric", "minmax"}
        How the codes were made; see `quantize`.
    shape : tuple of int
        The shape of the array.
    axis, group_size : int or None
        Which elements share a scale; both None: all of them.
    """

    codes: Array
    scale: Array
    zero_point: Array | None
    offset: Array | None
    bits: int
    scheme: Scheme
    shape: tuple[int, ...]
    axis: int | None
    group_size: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zero points and offsets together."""
        parts = (self.codes, self.scale, self.zero_point, self.offset)
        return sum(part.nbytes for part in parts if part is not None)

    def dequantize(
        self, dtype: DTypeLike | Literal["bf16"] = np.float32, out: Array | None = None, *, threads: int | None = None
    ) -> Array:
        """Return the numbers that the codes stand for; see `modelopt_rs.dequantize`."""
        return dequantize(self, dtype=dtype, out=out, threads=threads)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("QuantizedArray: copy must not be False, got False; the numbers are made from codes")
        return self.dequantize(np.float32 if dtype is None else dtype)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("QuantizedArray: a 0-d array has no length")
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> "QuantizedArray":
        """Take rows: an index or a slice of the first axis, without unpacking (a view)."""
        if not isinstance(rows, (int, np.integer, slice)):
            raise TypeError(f"QuantizedArray: index must be an integer or a slice, got {type(rows).__name__}")
        if len(self.shape) < 2:
            raise ValueError(f"QuantizedArray: index takes rows of 2 or more axes, got shape {self.shape}")
        axis = None if self.axis is None else self.axis % len(self.shape)
        by_row = axis == 0 or self.group_size is not None

        def take(part: Array | None) -> Array | None:
            return part[rows, ...] if part is not None and by_row else part

        if isinstance(rows, slice):
            shape = (len(range(*rows.indices(self.shape[0]))), *self.shape[1:])
        else:
            # One row: an axis that was the first becomes one scale for all.
            shape = self.shape[1:]
            axis = None if axis in (None, 0) else axis - 1
        scale = self.scale[rows, ...] if by_row else self.scale
        parts = (self.codes[rows], scale, take(self.zero_point), take(self.offset))
        return QuantizedArray(*parts, self.bits, self.scheme, shape, axis, self.group_size)

    def __repr__(self) -> str:
        cut = "whole array"
        if self.axis is not None:
            cut = f"axis={self.axis}"
        elif self.group_size is not None:
            cut = f"group_size={self.group_size}"
        return f"QuantizedArray(shape={self.shape}, bits={self.bits}, scheme={self.scheme!r}, {cut})"


def quantize(
    x: Array,
    *,
    bits: int = 8,
    scheme: Scheme = "symmetric",
    axis: int | None = None,
    group_size: int | None = None,
    nonfinite: Nonfinite = "raise",
    out: QuantizedArray | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> QuantizedArray:
    """Quantize an array to 8, 4 or 2 bits.

    ``code = clamp(round((x - offset) / scale) + zero_point)``, rounding half to even, clamped before the cast.

    - "symmetric": ``scale = absmax / (2**(bits-1) - 1)``, codes in ``±(2**(bits-1) - 1)``.
    - "asymmetric": the range is widened to include 0; ``scale = (max - min) / (2**bits - 1)``,
      ``zero_point = round(-min / scale)``, codes from 0 to ``2**bits - 1`` (ONNX, torch).
    - "minmax": the same codes over exactly ``[min, max]``, ``offset = min``: the textbook formula, made safe (an
      int8 cast of codes up to 255 would wrap).

    The range and the scale are computed in float64, the codes in the dtype of the scale. An all-zero (for minmax:
    constant) part has scale 1. A scale is never below the smallest normal number.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    bits : {8, 4, 2}
        Bits of a code; 4 and 2 are packed.
    scheme : {"symmetric", "asymmetric", "minmax"}
        As above.
    axis : int, optional
        The axis that keeps a scale for each of its indices (as in ONNX and torch).
    group_size : int, optional
        A scale for each `group_size` consecutive elements of the last axis; a short last group is a group.
    nonfinite : {"raise", "saturate"}
        What to do with NaN and infinities: refuse them, or map NaN to the code of zero and infinities to the limits,
        with ranges over the finite numbers.
    out : QuantizedArray, optional
        Rewritten and returned; made by a call with the same shape, dtype and options. Costs one more read of `x`
        where `nonfinite` is "raise", because nothing may be written before all is checked.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    QuantizedArray

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If an option is out of its range, `x` is not finite, or `out` does not fit.

    References
    ----------
    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", equation 1 (arXiv 1712.05877).

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> x = np.array([[-1.0, 0.5, 0.25, 1.0]], dtype=np.float32)
    >>> mo.quantize(x).codes
    array([[-127,   64,   32,  127]], dtype=int8)
    >>> q = mo.quantize(x, bits=4, group_size=2)
    >>> q.codes.shape, q.scale.shape
    ((1, 2), (1, 2))
    >>> float(np.abs(np.asarray(q) - x).max()) <= float(q.scale.max()) / 2
    True
    """
    if out is None:
        out = _empty(x, bits, scheme, axis, group_size)
    else:
        _check_out(out, bits, scheme, axis, group_size)
        if nonfinite == "raise":
            nonfinite = "raise-first"  # type: ignore[assignment]  # the core's own name
    parts = (out.codes, out.scale, out.zero_point, out.offset)
    _core.quantize(x, parts, (bits, scheme, axis, group_size), nonfinite, False, dtype, threads)
    return out


@lru_cache(maxsize=256)  # half the time of a small call
def _shapes(
    shape: tuple[int, ...], bits: int, scheme: Scheme, axis: int | None, group_size: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return _core.quantized_shapes(shape, (bits, scheme, axis, group_size))


def _empty(x: Array, bits: int, scheme: Scheme, axis: int | None, group_size: int | None) -> QuantizedArray:
    """Allocate for `x`."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"quantize: x must be a NumPy array, got {type(x).__name__}")
    shape = x.shape
    try:
        codes_shape, parts = _shapes(shape, bits, scheme, axis, group_size)
    except TypeError:  # unhashable: whatever is wrong with it, the core says so
        codes_shape, parts = _core.quantized_shapes(shape, (bits, scheme, axis, group_size))
    wide = np.float64 if x.dtype.char == "d" else np.float32
    codes = np.empty(codes_shape, np.int8 if bits == 8 and scheme == "symmetric" else np.uint8)
    zero_point = np.empty(parts, np.uint8) if scheme == "asymmetric" else None
    offset = np.empty(parts, wide) if scheme == "minmax" else None
    scale = np.empty(parts, wide)
    return QuantizedArray(codes, scale, zero_point, offset, bits, scheme, shape, axis, group_size)


def _check_out(out: QuantizedArray, bits: int, scheme: str, axis: int | None, group_size: int | None) -> None:
    if not isinstance(out, QuantizedArray):
        raise TypeError(f"quantize: out must be a QuantizedArray, got {type(out).__name__}")
    got = (out.bits, out.scheme, out.axis, out.group_size)
    if got != (bits, scheme, axis, group_size):
        names = ("bits", "scheme", "axis", "group_size")
        want = ", ".join(f"{k}={v!r}" for k, v in zip(names, (bits, scheme, axis, group_size), strict=True))
        have = ", ".join(f"{k}={v!r}" for k, v in zip(names, got, strict=True))
        raise ValueError(f"quantize: out must have {want}, got {have}")


def dequantize(
    q: QuantizedArray,
    *,
    dtype: DTypeLike | Literal["bf16"] = np.float32,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Return the numbers that the codes stand for.

    ``x = (code - zero_point) * scale + offset``, in the dtype of the scale, then rounded once to `dtype`.

    Parameters
    ----------
    q : QuantizedArray
        Not written.
    dtype : dtype
        float32, float64, float16, bfloat16 (`ml_dtypes`), or "bf16" for bfloat16 bits as uint16. Not used with `out`,
        but for "bf16".
    out : ndarray, optional
        C-contiguous, of q's shape: written and returned.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `dtype` is not one of these.
    ValueError
        If `out` has another shape, is read-only or not contiguous, or overlaps `q`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> q = mo.quantize(np.linspace(-1, 1, 5, dtype=np.float32), bits=4)
    >>> mo.dequantize(q).round(2)
    array([-1.  , -0.43,  0.  ,  0.43,  1.  ], dtype=float32)
    """
    if not isinstance(q, QuantizedArray):
        raise TypeError(f"dequantize: q must be a QuantizedArray, got {type(q).__name__}")
    bf16: Bf16 = "bf16" if isinstance(dtype, str) and dtype == "bf16" else None
    if out is None:
        wanted = np.dtype(np.uint16 if bf16 else dtype)
        if not bf16 and wanted.char not in "fde" and wanted.name != "bfloat16":  # a name takes as long as all the rest
            floats = "float32, float64, float16, bfloat16 or 'bf16'"
            raise TypeError(f"dequantize: dtype must be {floats}, got {wanted}")
        out = np.empty(q.shape, wanted)
    parts = (q.codes, q.scale, q.zero_point, q.offset)
    if isinstance(out, np.ndarray) and out.shape != q.shape:
        raise ValueError(f"dequantize: out must have shape {q.shape}, got {out.shape}")
    _core.dequantize(parts, (q.bits, q.scheme, q.axis, q.group_size), out, False, bf16, threads)
    return out


def fake_quantize(
    x: Array,
    *,
    bits: int = 8,
    scheme: Scheme = "symmetric",
    axis: int | None = None,
    group_size: int | None = None,
    nonfinite: Nonfinite = "raise",
    out: Array | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Quantize and dequantize at once: `x` as it would come back, in its own dtype.

    The same bits as ``quantize(x, ...).dequantize(x.dtype)``, without the codes. See `quantize` for the parameters.

    Parameters
    ----------
    x, bits, scheme, axis, group_size, nonfinite, dtype, threads
        As for `quantize`.
    out : ndarray, optional
        C-contiguous, of x's shape and dtype, apart from `x`: written and returned.

    Raises
    ------
    TypeError, ValueError
        As for `quantize`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.fake_quantize(np.array([0.0, 0.3, 1.0], dtype=np.float32), bits=2)
    array([0., 0., 1.], dtype=float32)
    """
    given: Literal["raise", "saturate", "raise-first"] = nonfinite
    if out is None:
        if not isinstance(x, np.ndarray):
            raise TypeError(f"fake_quantize: x must be a NumPy array, got {type(x).__name__}")
        out = np.empty(x.shape, x.dtype)
    elif nonfinite == "raise":
        given = "raise-first"
    _core.fake_quantize(x, out, (bits, scheme, axis, group_size), given, dtype, threads)
    return out
