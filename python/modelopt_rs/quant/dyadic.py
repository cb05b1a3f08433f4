"""A histogram of fixed size for numbers that come in batches of any range."""

import math

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import reduce
from modelopt_rs._types import Array, Bf16

__all__ = ["DyadicHistogram"]

# No bin is narrower than this: far below the smallest float32.
_FINEST = -160
# Nor than the largest magnitude over this power of two: edges stay exact in float64, with room to spare.
_DIGITS = 40


class DyadicHistogram:
    """Counts in at most `bins` bins ``[k * 2**e, (k + 1) * 2**e)``, with the finest `e` that the range allows.

    Every edge of a coarser histogram is one of a finer: bins merge pairwise when the range grows. `e` and the first `k`
    depend on the smallest and largest number alone, so that neither the order of the batches nor their cut changes
    anything.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.quant.dyadic import DyadicHistogram
    >>> histogram = DyadicHistogram(4)
    >>> histogram.update(np.array([0.0, 0.25, 0.75]), 0.0, 0.75)
    >>> histogram.update(np.array([1.75]), 1.75, 1.75)
    >>> histogram.edges(), histogram.counts
    (array([0. , 0.5, 1. , 1.5, 2. ]), array([2, 1, 0, 1]))
    """

    def __init__(self, bins: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.exponent = _FINEST
        self.first = 0
        self.low = math.inf
        self.high = -math.inf

    def update(self, x: Array, low: float, high: float, *, dtype: Bf16 = None, threads: int | None = None) -> None:
        """Count an array whose smallest and largest elements are `low` and `high`, finite."""
        bins = len(self.counts)
        counts, exponent, first = self._covering(low, high)
        width = math.ldexp(1.0, exponent)
        span = (first * width, (first + bins) * width)
        counts += reduce.histogram(x, bins, span, dtype=dtype, threads=threads)[0]
        self._become(counts, exponent, first, low, high)

    def merge(self, other: "DyadicHistogram") -> None:
        """Take in what another of as many bins has counted."""
        if other.low > other.high:
            return
        counts, exponent, first = self._covering(other.low, other.high)
        theirs, _, _ = other._covering(self.low, self.high)
        self._become(counts + theirs, exponent, first, other.low, other.high)

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    def edges(self) -> NDArray[np.float64]:
        """Return the edges of the bins, exact."""
        return np.ldexp(np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64), self.exponent)

    def magnitudes(self) -> tuple[NDArray[np.int64], float]:
        """Return the counts of ``|x|`` in bins from 0 on, the last not empty, and the width of a bin.

        A number on an edge below zero counts with the magnitudes under it.
        """
        bins = len(self.counts)
        k = self.first + np.flatnonzero(self.counts)
        shift = 0
        while len(k) and not -bins <= k[0] >> shift <= k[-1] >> shift < bins:
            shift += 1
        k >>= shift
        k = np.where(k < 0, -1 - k, k)
        folded = np.zeros(int(k.max(initial=-1)) + 1, np.int64)
        np.add.at(folded, k, self.counts[self.counts > 0])
        return folded, math.ldexp(1.0, self.exponent + shift)

    def _covering(self, low: float, high: float) -> tuple[NDArray[np.int64], int, int]:
        """Return the counts in bins that also reach `low` and `high`, the bins' exponent and the first."""
        low, high = min(low, self.low), max(high, self.high)
        bins = len(self.counts)
        exponent = _exponent(low, high, bins)
        first = _bin(low, exponent)
        counts = np.zeros(bins, np.int64)
        used = np.flatnonzero(self.counts)
        # A shift over 63 bits is none in int64, and after 63 no bits are left.
        np.add.at(counts, ((self.first + used) >> min(exponent - self.exponent, 63)) - first, self.counts[used])
        return counts, exponent, first

    def _become(self, counts: NDArray[np.int64], exponent: int, first: int, low: float, high: float) -> None:
        self.counts, self.exponent, self.first = counts, exponent, first
        self.low, self.high = min(low, self.low), max(high, self.high)


def _bin(x: float, exponent: int) -> int:
    return math.floor(math.ldexp(x, -exponent))


def _exponent(low: float, high: float, bins: int) -> int:
    """Return the finest exponent with which the range fits the bins."""
    magnitude = max(-low, high)
    floor = max(_FINEST, math.frexp(magnitude)[1] - _DIGITS) if magnitude else _FINEST
    # Two powers of two under the width over the bins are surely too fine.
    exponent = max(floor, math.frexp((high - low) / bins)[1] - 2) if high > low else floor
    while _bin(high, exponent) - _bin(low, exponent) >= bins:
        exponent += 1
    return exponent
