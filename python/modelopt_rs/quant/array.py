"""What quantization makes: `QuantizedArray`, and its numbers again."""

import html
import math
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, Format, GroupSize, Parts, Scheme, Spec
from modelopt_rs.arguments import shown
from modelopt_rs.arrays import as_array
from modelopt_rs.quant import products
from modelopt_rs.quant.codes import float_dtype
from modelopt_rs.quant.packed_weight import PackedWeight, prepacked
from modelopt_rs.quant.rows import AS_THEY_ARE, as_indices, outside, rows_of_tiles, wanted

__all__ = ["QuantizedArray", "dequantize"]


class _LookedUp:
    """What a look-up leaves for the next one; no part of the array."""

    __slots__ = ("_table",)
    _table: _core.Table | None


# Not frozen: a frozen dataclass takes three times as long to make, and small calls would show it.
@dataclass(slots=True, eq=False)
class QuantizedArray(_LookedUp):
    """An array as small codes with the scales that turn them back into numbers: a scheme or a format, and named parts.

    It can be made of parts too: what is left out is found (`scheme` by the parts that there are, `shape` by the codes,
    whole bytes of them), and numbers become arrays. `np.asarray` gives its numbers, and so `numpy.savez` saves those;
    `save` and pickle keep the codes.

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
        In the shape of `scale`; scheme "asymmetric" only. Of int8 where codes are signed, see `quantize`.
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
    zero_point: Array | None = None
    offset: Array | None = None
    bits: int = 8
    scheme: Scheme | None = None
    shape: tuple[int, ...] = ()
    axis: int | None = None
    group_size: GroupSize = None
    format: str | None = None
    global_scale: Array | None = None

    def __post_init__(self) -> None:
        self._table = None  # type: ignore[misc]  # a slot of the base
        # What `quantize` makes is complete: that must cost nothing.
        if not self.shape or type(self.scale) is not np.ndarray or self.scheme is self.format:
            self._complete()

    def _complete(self) -> None:
        """Make arrays of numbers, and find shape and scheme where they were left out."""
        self.codes = as_array(self.codes, "QuantizedArray: codes")
        for name in ("scale", "zero_point", "offset", "global_scale"):
            part = getattr(self, name)
            if part is not None and not isinstance(part, np.ndarray):
                setattr(self, name, _part(name, part, self.codes.dtype))
        if self.scheme is None and self.format is None:
            kinds: dict[Scheme, Array | None] = {"asymmetric": self.zero_point, "minmax": self.offset}
            self.scheme = next((scheme for scheme, part in kinds.items() if part is not None), "symmetric")
        if not self.shape and self.codes.ndim and (self.bits == 8 or self.codes.shape != (1,)):
            *rest, last = self.codes.shape
            self.shape = (*rest, last * 8 // self.bits)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the numbers, which codes are computed in: that of scales that are floats, else float32."""
        return self.scale.dtype if self.scale.dtype.kind == "f" else np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

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

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is np.matmul and method == "__call__" and not options:
            a, b = inputs
            if isinstance(a, QuantizedArray) and len(a.shape) == 2:
                return products.rows(a._given, np.asarray(b) if isinstance(b, QuantizedArray) else b)
            if isinstance(b, QuantizedArray) and len(b.shape) == 2:
                return products.columns(np.asarray(a) if isinstance(a, QuantizedArray) else a, b._given)
        arrays = [np.asarray(each) if isinstance(each, QuantizedArray) else each for each in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __matmul__(self, other: Any) -> Array:
        """Return the product with a vector or a matrix: that of `quant.linear`, "int24" or else "float32"."""
        product: Array = np.matmul(self, other)
        return product

    def __rmatmul__(self, other: Any) -> Array:
        """Return the product of vectors or a matrix with this one: sums in float32, in the order of the rows."""
        product: Array = np.matmul(other, self)
        return product

    def __reduce__(self) -> tuple[Any, ...]:
        return QuantizedArray, tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("QuantizedArray: a 0-d array has no length")
        return self.shape[0]

    def prepack(self, *, threads: int | None = None) -> PackedWeight:
        """Bring it into the form that `modelopt_rs.quant.linear` reads fastest: once for many products.

        Parameters
        ----------
        threads : int, optional
            Threads of this call; never changes the result.

        Returns
        -------
        PackedWeight
            About as many bytes; it doesn't need this array any more.

        Raises
        ------
        ValueError
            If it is no matrix, or has codes that are not evenly spaced, or scales for its columns or for tiles.

        Examples
        --------
        >>> import numpy as np, modelopt_rs as mo
        >>> mo.quantize(np.eye(32, dtype=np.float32), bits=4, group_size=16).prepack()
        PackedWeight(shape=(32, 32), bits=4, scheme='symmetric', group_size=16)
        """
        scheme = self.scheme
        if scheme is None:
            schemes: dict[str, Scheme] = {"asymmetric": "asymmetric", "minmax": "minmax"}
            scheme = schemes.get(str(self.format).rpartition("_")[2], "symmetric")
        return prepacked(self._given, self.bits, scheme, threads)

    @property
    def _given(self) -> tuple[Parts, Spec, tuple[int, ...]]:
        """Its parts, how they are to be read, and its shape: as kernels take it."""
        format: Format = self.format if self.format is not None else (self.bits, self.scheme)
        parts = (self.codes, self.scale, self.zero_point, self.offset, self.global_scale)
        return parts, (format, self.axis, self.group_size), self.shape

    def take(
        self,
        indices: Any,
        dtype: DTypeLike | Literal["bf16"] = np.float32,
        *,
        out: Array | None = None,
        threads: int | None = None,
    ) -> Array:
        """Return the numbers of rows, gathered and dequantized in one pass: the look-up of an embedding.

        The bits of ``dequantize(q, dtype=dtype)[indices]``, of which nothing but these rows is made.

        Parameters
        ----------
        indices : int, array of integers or mask
            Of the first axis, from its end where negative; a mask of bools has its length.
        dtype : dtype
            As for `modelopt_rs.dequantize`.
        out : ndarray, optional
            C-contiguous, ``indices.shape + q.shape[1:]``: written and returned.
        threads : int, optional
            Threads of this call; never changes the result.

        Raises
        ------
        IndexError
            If there is no such row, or a mask has another length.
        TypeError, ValueError
            As for `modelopt_rs.dequantize`.

        Examples
        --------
        >>> import numpy as np, modelopt_rs as mo
        >>> q = mo.quantize(np.eye(3, dtype=np.float32), axis=0)
        >>> q.take([2, 0])
        array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
        """
        # Small calls show every step here.
        if type(indices) is not int and (type(indices) is not np.ndarray or indices.dtype not in AS_THEY_ARE):
            indices = as_indices(indices, len(self), "take: indices")
        bf16: Bf16 = None
        if dtype is not np.float32:
            bf16 = "bf16" if isinstance(dtype, str) and dtype == "bf16" else None
            if out is None:
                out = np.empty(np.shape(indices) + self.shape[1:], float_dtype("take", dtype))
        given = (
            self.codes, self.scale, self.zero_point, self.offset, self.global_scale,
            self.bits, self.scheme, self.format, self.axis, self.group_size, self.shape,
        )  # fmt: skip
        table = self._table
        rows = None if table is None else table.take(given, indices, out, bf16, threads)
        if rows is None:
            table = self._table = _core.Table(given)  # type: ignore[misc]  # a slot of the base
            rows = table.take(given, indices, out, bf16, threads)
            if rows is None:
                raise ValueError("take: q must not be changed by another thread meanwhile")
        return rows

    def __getitem__(self, rows: Any) -> "QuantizedArray":
        """Take rows of the first axis as codes: an index or a slice (a view), integers or a mask (a copy)."""
        if isinstance(rows, tuple):
            raise TypeError("QuantizedArray: index must be of the first axis, got a tuple; np.asarray(q) has all axes")
        height = len(self)
        rows = wanted(rows, height)
        is_row = not isinstance(rows, slice | np.ndarray)
        if len(self.shape) < 2:
            raise ValueError(f"QuantizedArray: index takes rows of 2 or more axes, got shape {self.shape}")
        if isinstance(rows, np.ndarray):
            return self._gathered(rows)
        axis, group_size = self.axis, self.group_size
        if axis is not None and axis < 0:
            axis += len(self.shape)
        by_row = axis == 0 or group_size is not None
        scale_rows = rows
        if isinstance(group_size, tuple) and len(self.shape) == 2:
            scale_rows, group_size = rows_of_tiles(rows, height, group_size)
        if is_row:
            # An axis that was the first becomes one scale for all.
            shape, axis = self.shape[1:], axis - 1 if axis else None
        else:
            shape = (len(range(*rows.indices(height))), *self.shape[1:])
        scale, zero_point, offset = self.scale, self.zero_point, self.offset
        if by_row:
            scale = scale[scale_rows, ...]
            zero_point = zero_point if zero_point is None else zero_point[scale_rows, ...]
            offset = offset if offset is None else offset[scale_rows, ...]
        parts, cut = (self.codes[rows], scale, zero_point, offset), (shape, axis, group_size)
        return QuantizedArray(*parts, self.bits, self.scheme, *cut, self.format, self.global_scale)

    def _gathered(self, rows: Array) -> "QuantizedArray":
        """Rows of any order; of tiles only where each is a row."""
        if rows.ndim != 1:
            raise ValueError(
                f"QuantizedArray: index must have one axis, got shape {rows.shape}; take gives its numbers"
            )
        if isinstance(self.group_size, tuple) and len(self.shape) == 2:
            raise ValueError("QuantizedArray: index must be a slice for tiles, got integers; take gives their numbers")
        by_row = self.group_size is not None or (self.axis is not None and self.axis % len(self.shape) == 0)
        try:
            made = {
                name: part[rows] if name == "codes" or (by_row and name != "global_scale") else part
                for name, part in self.parts.items()
            }
        except IndexError:
            raise outside("QuantizedArray: index", len(self), rows) from None
        shape = (len(rows), *self.shape[1:])
        cut = (shape, self.axis, self.group_size)
        parts = (made["codes"], made["scale"], made.get("zero_point"), made.get("offset"))
        return QuantizedArray(*parts, self.bits, self.scheme, *cut, self.format, self.global_scale)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file, codes as they are; `load` reads it again.

        Examples
        --------
        >>> import tempfile, numpy as np, modelopt_rs as mo
        >>> q = mo.quantize(np.eye(3, dtype=np.float32), bits=4)
        >>> with tempfile.TemporaryDirectory() as d:
        ...     q.save(f"{d}/q.safetensors")
        ...     again = mo.QuantizedArray.load(f"{d}/q.safetensors")
        >>> again, bool((again.codes == q.codes).all())
        (QuantizedArray(shape=(3, 3), bits=4, scheme='symmetric', whole array), True)
        """
        from modelopt_rs.quant.checkpoint import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str], *, mmap: bool = False) -> "QuantizedArray":
        """Read what `save` has written.

        Parameters
        ----------
        path : path
            The file.
        mmap : bool
            Whether its parts are the file's own memory, read-only: nothing is read before it is looked at, and
            processes share it, forked or not. It stays readable when the file is removed or replaced, but who looks
            behind the end of a file that was cut short is killed by the system.

        Raises
        ------
        TypeError
            If `mmap` is no bool.
        FormatError
            If it is no such file.
        OSError
            If it can't be read.

        Examples
        --------
        >>> import tempfile, numpy as np, modelopt_rs as mo
        >>> with tempfile.TemporaryDirectory() as d:
        ...     mo.quantize(np.eye(3, dtype=np.float32), axis=0).save(f"{d}/table.safetensors")
        ...     table = mo.QuantizedArray.load(f"{d}/table.safetensors", mmap=True)
        >>> table.take(1), table.codes.flags.writeable
        (array([0., 1., 0.], dtype=float32), False)
        """
        from modelopt_rs.quant.checkpoint import load

        if not isinstance(mmap, bool):
            raise TypeError(f"load: mmap must be a bool, got {shown(mmap)}")
        return load(path, mapped=mmap)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{part.dtype}</td><td>{part.shape}</td><td>{part.nbytes:,}</td></tr>"
            for name, part in self.parts.items()
        )
        head = "<tr><th>part</th><th>dtype</th><th>shape</th><th>bytes</th></tr>"
        return f"<table><caption>{html.escape(repr(self))}</caption>{head}{rows}</table>"

    def __repr__(self) -> str:
        cut = "whole array"
        if self.axis is not None:
            cut = f"axis={self.axis}"
        elif self.group_size is not None:
            cut = f"group_size={self.group_size}"
        kind = f"bits={self.bits}, scheme={self.scheme!r}" if self.format is None else f"format={self.format!r}"
        return f"QuantizedArray(shape={self.shape}, {kind}, {cut})"


def _part(name: str, given: Any, codes: np.dtype[Any]) -> Array:
    """Return a part that is a number, or an array of another library, as an array."""
    if hasattr(given, "__dlpack__"):
        return as_array(given, f"QuantizedArray: {name}")
    try:
        part = np.asarray(given)
        if name == "zero_point":
            return part.astype(codes, casting="unsafe" if part.dtype.kind in "iu" else "safe")
        return (
            part if part.dtype in (np.float64, np.uint8) and isinstance(given, np.generic) else part.astype(np.float32)
        )
    except (TypeError, ValueError):
        raise TypeError(f"QuantizedArray: {name} must be a number or an array, got {type(given).__name__}") from None


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
        out = np.empty(q.shape, float_dtype("dequantize", dtype))
    if isinstance(out, np.ndarray) and out.shape != q.shape:
        raise ValueError(f"dequantize: out must have shape {q.shape}, got {out.shape}")
    parts = (q.codes, q.scale, q.zero_point, q.offset, q.global_scale)
    format = q.format if q.format is not None else (q.bits, q.scheme)
    _core.dequantize(parts, (format, q.axis, q.group_size), out, bf16, threads)
    return out
