"""What quantization makes: `QuantizedArray`, and its numbers again."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, GroupSize, Scheme
from modelopt_rs.arguments import shown

__all__ = ["QuantizedArray", "dequantize"]


# Not frozen: a frozen dataclass takes three times as long to make, and small calls would show it.
@dataclass(slots=True, eq=False)
class QuantizedArray:
    """An array as small codes with the scales that turn them back into numbers: a scheme or a format, and named parts.

    Of a scheme ``x ≈ (code - zero_point) * scale + offset``, computed in the dtype of `scale`; of a format
    ``x ≈ number(code) * scale``, computed in float32.

    Attributes
    ----------
    codes : ndarray
        8 bits: int8 (symmetric) or uint8, in the shape of the array. 4 and 2 bits: uint8, the last axis packed:
        element 0 in the low bits, each row begins on a byte, padding bits are zero, negative codes in two's
        complement. Of a format always uint8: the bits of its numbers.
    scale : ndarray of float32 (float64 for a float64 array with a scheme; uint8 for some formats)
        Shape () for one scale, (C,) for an axis, ``shape[:-1] + (ceil(shape[-1] / group_size),)`` for groups, the last
        two axes divided so for tiles.
    zero_point : ndarray of uint8 or None
        In the shape of `scale`; scheme "asymmetric" only.
    offset : ndarray or None
        As `scale`; scheme "minmax" only.
    bits : {8, 4, 2}
        Bits of a code.
    scheme : {"symmetric", "asymmetric", "minmax"} or None
        How the codes were made; see `quantize`. None of a format.
    shape : tuple of int
        The shape of the array.
    axis, group_size : int or None
        Which elements share a scale; both None: all of them. `group_size` may be a pair: rows and columns of a tile.
    format : str or None
        The name of the format, see `modelopt_rs.quant.formats`; None of a scheme.
    global_scale : ndarray of float32 or None
        Shape (); format "nvfp4" only.
    """

    codes: Array
    scale: Array
    zero_point: Array | None
    offset: Array | None
    bits: int
    scheme: Scheme | None
    shape: tuple[int, ...]
    axis: int | None
    group_size: GroupSize
    format: str | None = None
    global_scale: Array | None = None

    @property
    def parts(self) -> dict[str, Array]:
        """The arrays that it is made of, by name."""
        named = {name: getattr(self, name) for name in ("codes", "scale", "zero_point", "offset", "global_scale")}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.nbytes for part in self.parts.values())

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
        group_size = self.group_size
        by_row = axis == 0 or group_size is not None
        scale_rows = rows
        if isinstance(rows, slice):
            shape = (len(range(*rows.indices(self.shape[0]))), *self.shape[1:])
        else:
            # One row: an axis that was the first becomes one scale for all.
            shape = self.shape[1:]
            axis = None if axis in (None, 0) else axis - 1
        if isinstance(group_size, tuple) and len(self.shape) == 2:
            scale_rows, group_size = _rows_of_tiles(rows, self.shape[0], group_size)

        def take(part: Array | None) -> Array | None:
            return part[scale_rows, ...] if part is not None and by_row else part

        scale = self.scale[scale_rows, ...] if by_row else self.scale
        parts = (self.codes[rows], scale, take(self.zero_point), take(self.offset))
        cut = (shape, axis, group_size)
        return QuantizedArray(*parts, self.bits, self.scheme, *cut, self.format, self.global_scale)

    def __repr__(self) -> str:
        cut = "whole array"
        if self.axis is not None:
            cut = f"axis={self.axis}"
        elif self.group_size is not None:
            cut = f"group_size={self.group_size}"
        kind = f"bits={self.bits}, scheme={self.scheme!r}" if self.format is None else f"format={self.format!r}"
        return f"QuantizedArray(shape={self.shape}, {kind}, {cut})"


def _rows_of_tiles(rows: int | slice, height: int, size: tuple[int, int]) -> tuple[int | slice, int | tuple[int, int]]:
    """Return which rows of scales belong to rows of a matrix in tiles, and how they are grouped."""
    if not isinstance(rows, slice):
        return range(height)[rows] // size[0], size[1]
    start, stop, step = rows.indices(height)
    if step != 1 or (start < stop and start % size[0]):
        what = f"step by 1 and start at a multiple of {size[0]}, the rows of a tile"
        raise ValueError(f"QuantizedArray: index must {what}, got {rows}")
    return slice(start // size[0], -(-max(start, stop) // size[0])), size


def dequantize(
    q: QuantizedArray,
    *,
    dtype: DTypeLike | Literal["bf16"] = np.float32,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Return the numbers that the codes stand for.

    ``x = (code - zero_point) * scale + offset``, in the dtype of the scale, of a format ``number(code) * scale`` in
    float32, then rounded once to `dtype`.

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
        wanted = np.dtype(np.uint16) if bf16 else _float_dtype(dtype)
        out = np.empty(q.shape, wanted)
    if isinstance(out, np.ndarray) and out.shape != q.shape:
        raise ValueError(f"dequantize: out must have shape {q.shape}, got {out.shape}")
    parts = (q.codes, q.scale, q.zero_point, q.offset, q.global_scale)
    format = q.format if q.format is not None else (q.bits, q.scheme)
    _core.dequantize(parts, (format, q.axis, q.group_size), out, bf16, threads)
    return out


def _float_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        wanted: np.dtype[Any] = np.dtype(dtype)
        got = None
    except (AttributeError, KeyError, SyntaxError, TypeError, ValueError):  # NumPy's words for what is no dtype
        wanted, got = np.dtype(bool), shown(dtype)
    if wanted.char not in "fde" and wanted.name != "bfloat16":  # a name takes as long as all the rest
        floats = "float32, float64, float16, bfloat16 or 'bf16'"
        raise TypeError(f"dequantize: dtype must be {floats}, got {got or wanted}")
    return wanted
