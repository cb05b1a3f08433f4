"""Which rows of a table an index names."""

from typing import Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.arguments import shown

__all__ = ["AS_THEY_ARE", "as_indices", "outside", "rows_of_tiles", "wanted"]

_INT64: Final = np.dtype(np.int64)
AS_THEY_ARE: Final = (_INT64, np.dtype(np.int32))  # what the core takes


def outside(name: str, n: int, got: Any) -> IndexError:
    """Return the error about an index, or the first of an array, that names no row."""
    if isinstance(got, np.ndarray):
        got = int(got[(got < -n) | (got >= n)][0])
    return IndexError(f"{name} must be within the {n} rows, got {shown(got)}")


def wanted(rows: Any, n: int) -> Any:
    """Return a slice as it is, an integer that names a row, or an array of int64."""
    if isinstance(rows, slice):
        return rows
    if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
        if -n <= rows < n:
            return rows
        raise outside("QuantizedArray: index", n, int(rows))
    return as_indices(rows, n, "QuantizedArray: index")


def rows_of_tiles(rows: int | slice, height: int, size: tuple[int, int]) -> tuple[int | slice, int | tuple[int, int]]:
    """Return which rows of scales belong to rows of a matrix in tiles, and how they are grouped."""
    if not isinstance(rows, slice):
        return range(height)[rows] // size[0], size[1]
    start, stop, step = rows.indices(height)
    if step != 1 or (start < stop and start % size[0]):
        what = f"step by 1 and start at a multiple of {size[0]}, the rows of a tile"
        raise ValueError(f"QuantizedArray: index must {what}, got {rows}")
    return slice(start // size[0], -(-max(start, stop) // size[0])), size


def as_indices(given: Any, n: int, name: str) -> Array:
    """Return which rows are wanted, as int64."""
    indices = np.asarray(given)
    if indices.dtype is _INT64:
        return indices
    if indices.dtype.kind == "O" and indices.size and all(type(index) is int for index in indices.flat):
        raise outside(name, n, max(indices.flat, key=abs))
    if indices.dtype == bool:
        if indices.shape != (n,):
            raise IndexError(f"{name} must have shape ({n},) as a mask of the rows, got {indices.shape}")
        return np.flatnonzero(indices).astype(np.int64, copy=False)
    if indices.dtype.kind not in "iu" and indices.size:
        got = type(given).__name__ if indices.dtype.kind == "O" or not indices.ndim else indices.dtype
        slices = "" if name.startswith("take") else "a slice, "
        raise TypeError(f"{name} must be an integer, {slices}an array of integers or a mask, got {got}")
    if indices.dtype.kind == "u" and indices.size and int(indices.max()) >= n:
        raise IndexError(f"{name} must be within the {n} rows, got {indices.max()}")  # as int64 it could be negative
    return indices.astype(np.int64, copy=False)
