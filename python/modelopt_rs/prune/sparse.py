"""Storage of pruned weights that is really smaller: a bitmask, N:M, compressed rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16
from modelopt_rs.arguments import shown
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import former, renamed
from modelopt_rs.prune.unstructured import packed_shape

__all__ = ["BitmaskArray", "GroupsArray", "compress", "to_csr"]


@dataclass(frozen=True, eq=False)
class BitmaskArray:
    """An array as its non-zero elements and a bit for each element.

    Attributes
    ----------
    values : ndarray
        The elements that are not zero, in C order.
    bitmask : ndarray of uint8
        Lowest bit first, each row of the last axis beginning on a byte (`numpy.packbits`, ``bitorder="little"``).
    row_offsets : ndarray of int64
        Where the values of each row begin; one more at the end.
    shape : tuple of int
        The shape of the array.
    """

    values: Array
    bitmask: NDArray[np.uint8]
    row_offsets: NDArray[np.int64]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.values.nbytes + self.bitmask.nbytes + self.row_offsets.nbytes

    def decompress(self, *, out: Array | None = None, dtype: Bf16 = None, threads: int | None = None) -> Array:
        """Return the array, bit for bit but for -0, which became 0.

        Raises
        ------
        ValueError
            If the parts do not go together, or `out` has another shape; nothing is written.
        """
        result = np.empty(self.shape, self.values.dtype) if out is None else out
        _check_shape(result, self.shape)
        _core.decompress((self.row_offsets, self.values, self.bitmask), result, dtype, threads)
        return result


@dataclass(frozen=True, eq=False)
class GroupsArray:
    """An array of N:M sparsity as `n` values of each `m` and their places.

    Attributes
    ----------
    values : ndarray
        ``shape[:-1] + (shape[-1] // m * n,)``.
    indices : ndarray of uint8
        The place of each value in its group, ascending, packed by `modelopt_rs.quant.pack` to 2 bits (m to 4), 4
        bits (to 16) or 8 (to 32).
    n, m : int
        `n` values of each `m` elements.
    shape : tuple of int
        The shape of the array.
    """

    values: Array
    indices: NDArray[np.uint8]
    n: int
    m: int
    shape: tuple[int, ...]

    keep = former("n")
    group = former("m")

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.values.nbytes + self.indices.nbytes

    def decompress(self, *, out: Array | None = None, dtype: Bf16 = None, threads: int | None = None) -> Array:
        """Return the array, bit for bit but for -0, which may have become 0.

        Raises
        ------
        ValueError
            If the parts do not go together, or `out` has another shape; nothing is written.
        """
        result = np.empty(self.shape, self.values.dtype) if out is None else out
        _check_shape(result, self.shape)
        places = np.empty(self.values.shape, np.uint8)
        _core.unpack(self.indices, _index_bits(self.m), self.values.shape[-1], places, threads)
        _core.decompress_groups((self.values, places, self.n, self.m), result, dtype, threads)
        return result


def _check_shape(out: Array, shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"decompress: out must be a NumPy array, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"decompress: out must have shape {shape}, got {out.shape}")


def _index_bits(m: int) -> int:
    return 2 if m <= 4 else 4 if m <= 16 else 8


def compress_rows(w: Array, dtype: Bf16, threads: int | None) -> BitmaskArray:
    """Store an array as a bitmask; see `compress`."""
    offsets = _core.row_offsets(w, False, dtype, threads)
    values = np.empty(int(offsets[-1]), w.dtype)
    bitmask = np.empty(packed_shape(w.shape), np.uint8)
    _core.compress(w, (offsets, values, bitmask, None), dtype, threads)
    return BitmaskArray(values, bitmask, offsets, w.shape)


@renamed(keep="n", group="m")
def compress(
    w: Array,
    *,
    n: int | None = None,
    m: int | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> BitmaskArray | GroupsArray:
    """Store a pruned array without its zeros.

    By default as a bitmask: the weights that are not zero and a bit for each weight; a float32 matrix of half zeros
    takes 0.53 of its size, of 90 % zeros 0.13. With `n` and `m` as N:M: `n` values of each `m` and their
    places; 2 of 4 takes 0.53 of the size in float32, 0.56 in 16 bits.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides. Not written. NaN counts as not zero, -0 as zero.
    n, m : int, optional
        Store N:M, along the last axis; no `m` may have more than `n` weights that are not zero.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    BitmaskArray or GroupsArray
        With `decompress` and `nbytes`.

    Raises
    ------
    TypeError
        If `w` is no array of floats.
    ValueError
        If `m` consecutive ones have more than `n` weights that are not zero, or `m` does not divide the last axis.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> small = mo.prune.compress(np.array([[0.0, 7.0, 0.0, 5.0]]))
    >>> small.values, small.bitmask
    (array([7., 5.]), array([[10]], dtype=uint8))
    >>> small.decompress()
    array([[0., 7., 0., 5.]])
    """
    w = as_array(w, "compress: w")
    if (n is None) != (m is None):
        raise ValueError(f"compress: n and m must come together, got n={shown(n)}, m={shown(m)}")
    if n is None or m is None:
        return compress_rows(w, dtype, threads)
    for name, number in (("n", n), ("m", m)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise TypeError(f"compress: {name} must be an integer, got {shown(number)}")
    if not (2 <= m <= 32 and 1 <= n < m):
        raise ValueError(f"compress: m must be from 2 to 32 and n from 1 to below it, got {n} of {m}")
    if not w.ndim or w.shape[-1] % m:
        raise ValueError(f"compress: w must have a multiple of {m} elements in its last axis, got shape {w.shape}")
    values = np.empty((*w.shape[:-1], w.shape[-1] // m * n), w.dtype)
    places = np.empty(values.shape, np.uint8)
    _core.compress_groups(w, (values, places, n, m), dtype, threads)
    bits = _index_bits(m)
    indices = np.empty((*values.shape[:-1], -(-values.shape[-1] * bits // 8)), np.uint8)
    _core.pack(places, bits, indices, threads)
    return GroupsArray(values, indices, n, m, w.shape)


def to_csr(
    w: Array, *, dtype: Bf16 = None, threads: int | None = None
) -> tuple[Array, NDArray[np.int32], NDArray[np.int64]]:
    """Return the compressed rows of a matrix, as SciPy takes them.

    ``scipy.sparse.csr_array((data, indices, indptr), shape=w.shape)``

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        (rows, columns), any strides. Not written. NaN counts as not zero, -0 as zero.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    data : ndarray
        The elements that are not zero, row by row.
    indices : ndarray of int32
        The column of each.
    indptr : ndarray of int64
        Where each row begins; one more at the end.

    Raises
    ------
    TypeError
        If `w` is no array of floats.
    ValueError
        If `w` is no matrix, or has 2**31 columns or more.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.prune.to_csr(np.array([[0.0, 7.0], [5.0, 0.0]]))
    (array([7., 5.]), array([1, 0], dtype=int32), array([0, 1, 2]))
    """
    w = as_array(w, "to_csr: w")
    if w.ndim != 2 or w.shape[1] >= 2**31:
        raise ValueError(f"to_csr: w must be a matrix of fewer than 2**31 columns, got shape {w.shape}")
    offsets = _core.row_offsets(w, True, dtype, threads)
    values = np.empty(int(offsets[-1]), w.dtype)
    columns = np.empty(len(values), np.int32)
    _core.compress(w, (offsets, values, None, columns), dtype, threads)
    return values, columns, offsets
