"""Tensors that lie in a file with strides, read in the order of their rows."""

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from modelopt_rs._types import Array

__all__ = ["PIECE", "boxes", "gather", "is_contiguous"]

PIECE: Final = 1 << 20
"""The most bytes that are read at a time."""

_SMALL = 64 << 10  # bytes that are read whole, whatever part of them is wanted


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a tensor lies without gaps in the order of its rows."""
    expected = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n > 1 and stride != expected:
            return False
        expected *= n
    return True


def gather(
    array: Array, first: int, shape: tuple[int, ...], strides: tuple[int, ...], read: Callable[[Array, int], None]
) -> None:
    """Fill an array with consecutive elements of a tensor, counted along its last axis.

    What is read is at most twice what is wanted, but for pieces of less than 64 KiB.

    Parameters
    ----------
    array : ndarray
        One-dimensional, of the tensor's dtype.
    first : int
        The first element.
    shape, strides : tuple of int
        Of the tensor; strides count elements.
    read : callable
        Fills an array with elements that lie beside each other, from one of them on.
    """
    at = 0
    for starts, box in boxes(shape, first, first + len(array)):
        n = math.prod(box)
        begin = sum(start * stride for start, stride in zip(starts, strides, strict=True))
        _fill(array[at : at + n].reshape(box), begin, strides, read)
        at += n


def boxes(shape: tuple[int, ...], begin: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield consecutive elements of a tensor as boxes: where each begins, and its shape."""
    if len(shape) == 1:
        yield (begin,), (end - begin,)
        return
    inner = math.prod(shape[1:])
    while begin < end:
        index, within = divmod(begin, inner)
        n = (end - begin) // inner
        if within == 0 and n:
            yield (index, *(0 for _ in shape[1:])), (n, *shape[1:])
            begin += n * inner
        else:
            stop = min(end, (index + 1) * inner)
            for starts, box in boxes(shape[1:], within, stop - index * inner):
                yield (index, *starts), (1, *box)
            begin = stop


def _fill(out: Array, begin: int, strides: tuple[int, ...], read: Callable[[Array, int], None]) -> None:
    """Fill a box, in parts where it lies far apart or is large: split along the axis with the longest stride."""
    span = 1 + sum((n - 1) * stride for n, stride in zip(out.shape, strides, strict=True))
    nbytes = span * out.itemsize
    if nbytes <= _SMALL or (nbytes <= PIECE and span <= 2 * out.size):
        piece = np.empty(span, out.dtype)
        read(piece, begin)
        out[...] = as_strided(piece, out.shape, [stride * out.itemsize for stride in strides], writeable=False)
        return
    axis = max((axis for axis, n in enumerate(out.shape) if n > 1), key=lambda axis: strides[axis])
    half = out.shape[axis] // 2
    ahead = (slice(None),) * axis
    _fill(out[(*ahead, slice(half))], begin, strides, read)
    _fill(out[(*ahead, slice(half, None))], begin + half * strides[axis], strides, read)
