"""One ranking of weights that no memory holds at once: the exact cut from counts of the digits of their magnitudes.

The first pass over the tiles counts the top digit of every magnitude. The bin that holds the last weight to go is split
by its next digit in another pass, until its magnitude is known to the last bit: one pass for 16-bit floats, two for
float32, four for float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Bf16
from modelopt_rs.files import Source, TensorInfo
from modelopt_rs.files.model import FLOATS, Array
from modelopt_rs.files.safetensors import numpy_dtype
from modelopt_rs.pipeline.tiles import Road, located, tile_bytes

__all__ = ["Cut", "bytes_to_rank", "find_cut"]

DIGITS = {16: (15,), 32: (15, 16), 64: (15, 16, 16, 16)}


@dataclass(slots=True)
class Cut:
    """Which weights go: those of a smaller magnitude, and the first `ties` of those that have it.

    Attributes
    ----------
    bits : int
        Of the float whose magnitudes are compared.
    key : int
        The bits of the magnitude.
    ties : int
        How many of an equal magnitude are still to go.
    """

    bits: int
    key: int
    ties: int

    def __call__(self, array: Array, dtype: Bf16, threads: int | None) -> None:
        """Prune the next tile, in place."""
        self.ties -= _core.apply_cut(array, (self.bits, self.key, self.ties), dtype, threads)


def key_bits(tensors: Sequence[TensorInfo]) -> int:
    """Return the bits of the narrowest float that holds the numbers of all tensors."""
    dtypes = {info.dtype for info in tensors}
    bits = max(8 * numpy_dtype(dtype).itemsize for dtype in dtypes)
    return bits if len(dtypes) == 1 else max(bits, 32)


def bytes_to_rank(tensors: Sequence[TensorInfo]) -> int:
    """Return how many bytes `find_cut` reads."""
    return len(DIGITS[key_bits(tensors)]) * sum(info.nbytes for info in tensors) if tensors else 0


def find_cut(source: Source, tensors: Sequence[TensorInfo], sparsity: float, nan: str, road: Road) -> Cut:
    """Find the cut by which exactly ``round(sparsity * n)`` of all `n` weights go.

    Parameters
    ----------
    source : Source
    tensors : sequence of TensorInfo
        At least one, none of them empty; in the order in which the cut will be applied.
    sparsity : float
        From 0 to 1.
    nan : {"raise", "largest"}
    road : Road

    Raises
    ------
    ValueError
        If there is a NaN, and `nan` is "raise".
    """
    bits = key_bits(tensors)
    size = sum(info.rows * info.columns for info in tensors)
    rank, prefix, shift = round(sparsity * size), 0, bits - 1
    for width in DIGITS[bits]:
        shift -= width
        counts = _count(source, tensors, (bits, prefix, shift, width), nan, road)
        ends = np.cumsum(counts)
        # Of those that go the last is number `rank` among the weights with the prefix, counted from 1; with none
        # that goes, it is the first.
        value = int(np.searchsorted(ends, max(rank, 1)))
        rank -= int(ends[value] - counts[value])
        prefix = prefix << width | value
    return Cut(bits, prefix, rank)


def _count(
    source: Source, tensors: Sequence[TensorInfo], digit: tuple[int, int, int, int], nan: str, road: Road
) -> Array:
    counts = np.zeros(1 << digit[-1], np.int64)
    for info in tensors:
        options = (nan, FLOATS[info.dtype], road.threads)
        for tile in source.tiles(info.name, tile_bytes(info, 0, road.max_memory)):
            with located(source, info.name, tile):
                _core.count_magnitudes(tile.array, digit, counts, options)
            road.advance(tile.array.nbytes, info.name)
    return counts
