"""One ranking of weights that no memory holds at once: the exact threshold from counts of digits of their magnitudes.

The first pass over the tiles counts the top digit of every magnitude. The bin that holds the last weight to go is split
by its next digit in another pass, until its magnitude is known to the last bit: one pass for 16-bit floats, two for
float32, four for float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16
from modelopt_rs.dtypes import DTYPES, FLOATS
from modelopt_rs.stream.execution import Execution, located
from modelopt_rs.stream.memory import tile_bytes
from modelopt_rs.stream.model import Source, TensorInfo

__all__ = ["Ranking", "SharedThreshold", "Threshold", "bytes_to_rank", "rank_together"]

DIGITS = {16: (15,), 32: (15, 16), 64: (15, 16, 16, 16)}


@dataclass(slots=True)
class Threshold:
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

    def prune(self, array: Array, dtype: Bf16, threads: int | None) -> None:
        """Prune the next tile, in place."""
        self.ties -= _core.apply_cut(array, (self.bits, self.key, self.ties), dtype, threads)


class SharedThreshold(Threshold):
    """One threshold of several tensors, which must be pruned in their order: it counts the ties of all."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("SharedThreshold: tensors that are ranked together must be pruned in one process")


class Ranking:
    """Finds the threshold by which exactly ``round(sparsity * n)`` of `n` weights go, a digit in each pass over them.

    Parameters
    ----------
    tensors : sequence of TensorInfo
        At least one, none of them empty.
    sparsity : float
        From 0 to 1.
    nan : {"raise", "largest"}
    threads : int or None
    """

    def __init__(self, tensors: Sequence[TensorInfo], sparsity: float, nan: str, threads: int | None) -> None:
        self._bits = key_bits(tensors)
        self._nan, self._threads = nan, threads
        self._rank = round(sparsity * sum(info.rows * info.columns for info in tensors))
        self._prefix, self._shift, self._digits = 0, self._bits - 1, iter(DIGITS[self._bits])
        self.sweeps = len(DIGITS[self._bits])
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._width = next(self._digits, 0)
        self._shift -= self._width
        self._counts = np.zeros(1 << self._width, np.int64)

    def count(self, array: Array, dtype: Bf16) -> None:
        """Take in a tile.

        Raises
        ------
        ValueError
            If there is a NaN, and `nan` is "raise".
        """
        digit = (self._bits, self._prefix, self._shift, self._width)
        _core.count_magnitudes(array, digit, self._counts, (self._nan, dtype, self._threads))

    def end_pass(self) -> None:
        """Find the digit of the last weight that goes."""
        ends = np.cumsum(self._counts)
        # Of those that go the last is number `rank` among the weights with the prefix, counted from 1; with none
        # that goes, it is the first.
        value = int(np.searchsorted(ends, max(self._rank, 1)))
        self._rank -= int(ends[value] - self._counts[value])
        self._prefix = self._prefix << self._width | value
        self._begin_pass()

    def threshold(self) -> tuple[int, int, int]:
        """Return bits, key and ties of the threshold, after the last pass."""
        return self._bits, self._prefix, self._rank


def key_bits(tensors: Sequence[TensorInfo]) -> int:
    """Return the bits of the narrowest float that holds the numbers of all tensors."""
    dtypes = {info.dtype for info in tensors}
    bits = max(DTYPES[dtype].bits for dtype in dtypes)
    return bits if len(dtypes) == 1 else max(bits, 32)


def bytes_to_rank(tensors: Sequence[TensorInfo]) -> int:
    """Return how many bytes `rank_together` reads."""
    return len(DIGITS[key_bits(tensors)]) * sum(info.nbytes for info in tensors) if tensors else 0


def rank_together(
    source: Source, tensors: Sequence[TensorInfo], sparsity: float, nan: str, execution: Execution
) -> tuple[int, int, int]:
    """Return the threshold of all tensors together, in the order in which it will be applied.

    Raises
    ------
    ValueError
        If there is a NaN, and `nan` is "raise".
    """
    ranking = Ranking(tensors, sparsity, nan, execution.threads)
    for _ in range(ranking.sweeps):
        for info in tensors:
            for tile in source.tiles(info.name, tile_bytes(info, (), execution.max_memory)):
                with located(source, info.name, tile):
                    ranking.count(tile.array, FLOATS[info.dtype])
                execution.advance(tile.array.nbytes, info.name)
        ranking.end_pass()
    return ranking.threshold()
