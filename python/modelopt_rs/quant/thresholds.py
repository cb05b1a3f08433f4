"""Where to clip: ranges out of a histogram by percentile, entropy and mean-squared error."""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.quant.dyadic import DyadicHistogram

__all__ = ["entropy_threshold", "mse_range", "percentile_range"]

Floats: TypeAlias = NDArray[np.float64]
# Grids are tried at so many ranges for each power of two, over so many powers; then between the neighbours of the best.
_STEPS, _OCTAVES, _FINER = 16, 10, 8
# Candidates whose errors are computed together: some megabytes.
_TOGETHER = 64


def percentile_range(histogram: DyadicHistogram, percentile: float, *, symmetric: bool) -> tuple[float, float]:
    """Return the range outside which at most ``100 - percentile`` percent of the numbers lie.

    Symmetric: of the magnitudes; else half of them on each side. Within a bin of the exact order statistic, outwards.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.quant.dyadic import DyadicHistogram
    >>> histogram = DyadicHistogram(128)
    >>> histogram.update(np.arange(100.0), 0.0, 99.0)
    >>> percentile_range(histogram, 90, symmetric=False)
    (5.0, 95.0)
    """
    cut = (100 - Fraction(repr(float(percentile)))) / 100 * histogram.total
    if symmetric:
        counts, width = histogram.magnitudes()
        bound = min(width * _kept(counts, math.floor(cut)), max(-histogram.low, histogram.high))
        return -bound, bound
    clipped, edges = math.floor(cut / 2), histogram.edges()
    low = edges[len(edges) - 1 - _kept(histogram.counts[::-1], clipped)]
    high = edges[_kept(histogram.counts, clipped)]
    return max(float(low), histogram.low), min(float(high), histogram.high)


def _kept(counts: NDArray[np.int64], clipped: int) -> int:
    """Return the fewest first bins outside which at most `clipped` numbers lie."""
    outside = counts.sum() - counts.cumsum()
    return int(np.argmax(outside <= clipped)) + 1


def entropy_threshold(counts: NDArray[np.int64], levels: int) -> int:
    """Return how many first bins of magnitudes to keep, so that `levels` levels lose the least information.

    ``argmin KL(P || Q)`` over ``i >= levels``: P is the first i bins with all that lies beyond in the last of them; Q
    the same bins, without what lies beyond, merged evenly into the levels, each spread evenly over its bins that are
    not empty. Of equal ones the largest. Zero is a point of every grid: its bin counts as much as the next. The last
    bin of Q, if it is empty where P's is not, gets one number, so that a range may end in a gap.

    Parameters
    ----------
    counts : ndarray of int64
        Magnitudes in bins of equal width from 0 on, the last not empty.
    levels : int
        ``2**(bits - 1)`` of a signed grid, ``2**bits`` of an unsigned.

    References
    ----------
    Migacz 2017, "8-bit inference with TensorRT", GPU Technology Conference, slides 26 to 38.

    Examples
    --------
    >>> import numpy as np
    >>> bell = (1e6 * np.exp(-0.5 * (np.arange(200) / 50) ** 2)).astype(int)
    >>> entropy_threshold(np.r_[bell, np.zeros(300, int), 1], 16)
    187
    """
    if len(counts) <= levels:
        return len(counts)
    counts = counts.copy()
    counts[0] = counts[1]
    total = float(counts.sum())
    bins = np.arange(levels, len(counts) + 1)
    sums, filled = np.r_[0, counts.cumsum()], np.r_[0, (counts > 0).cumsum()]
    starts = -(-np.arange(levels + 1) * bins[:, None] // levels)
    mass, spread = np.diff(sums[starts]).astype(np.float64), np.diff(filled[starts])
    last, beyond = counts[bins - 1].astype(np.float64), total - sums[bins]
    # Sum of p log p - p log q, not normalized: all but the last bin, in which p has more than q.
    own = np.r_[0.0, _xlogx(counts.astype(np.float64)).cumsum()][bins - 1] + _xlogx(last + beyond)
    density = np.log(np.where(spread > 0, mass, 1.0) / np.maximum(spread, 1))
    stretched = (last == 0) & (beyond > 0)
    cross = (mass * density).sum(axis=1) + beyond * np.where(stretched, 0.0, density[:, -1])
    divergence = (own - cross) / total - np.log(total) + np.log(np.maximum(sums[bins] + stretched, 1))
    # What is equal must not differ by the last bits of a logarithm.
    rounded = divergence.round(9)
    return int(bins[len(bins) - 1 - np.argmin(rounded[::-1])])


def _xlogx(x: Floats) -> Floats:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)))


def mse_range(histogram: DyadicHistogram, bits: int, *, symmetric: bool) -> tuple[float, float]:
    """Return the range whose grid has the least mean-squared error.

    The error of numbers that lie evenly in their bin, integrated exactly: rounding inside, clipping outside. Symmetric:
    a search over one threshold; else over both ends in turn.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.quant.dyadic import DyadicHistogram
    >>> x = np.r_[np.linspace(-1, 1, 10000), 4.0]
    >>> histogram = DyadicHistogram(4096)
    >>> histogram.update(x, -1.0, 4.0)
    >>> low, high = mse_range(histogram, 2, symmetric=True)
    >>> 0.6 < high < 0.7
    True
    """
    error = _Error(histogram, bits, symmetric=symmetric)
    bottom, top = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        bound = _search(error.around_0, max(-bottom, top))
        return -bound, bound
    low, high = bottom, top
    for _ in range(2 if bottom < 0 < top else 1):
        low = 0.0 - _search(partial(error.down_to, high), -bottom)
        high = _search(partial(error.up_to, low), top)
    return low, high


def _search(error: Callable[[Floats], Floats], largest: float) -> float:
    """Return the threshold up to `largest` with the least error: on a geometric grid, then between its points."""
    if largest == 0:
        return 0.0
    coarse = largest * 2.0 ** (-np.arange(_STEPS * _OCTAVES + 1) / _STEPS)
    best = int(np.argmin(error(coarse)))
    fine = np.linspace(coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)], 2 * _FINER + 1)
    return float(fine[np.argmin(error(fine))])


class _Error:
    """The squared error of quantizing what a histogram counted, for many ranges at once."""

    def __init__(self, histogram: DyadicHistogram, bits: int, *, symmetric: bool) -> None:
        used = np.flatnonzero(histogram.counts)
        edges, width = histogram.edges(), math.ldexp(1.0, histogram.exponent)
        # An edge between two bins ends one and begins the other.
        weights = np.zeros(len(edges))
        weights[used + 1] = histogram.counts[used] / width
        weights[used] -= histogram.counts[used] / width
        between = np.flatnonzero(weights)
        self._edges, self._weights = edges[between], weights[between]
        self._symmetric = symmetric
        self._levels = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1

    def around_0(self, threshold: Floats) -> Floats:
        return self._of(-threshold, threshold)

    def down_to(self, high: float, threshold: Floats) -> Floats:
        return self._of(-threshold, np.full_like(threshold, high))

    def up_to(self, low: float, threshold: Floats) -> Floats:
        return self._of(np.full_like(threshold, low), threshold)

    def _of(self, low: Floats, high: Floats) -> Floats:
        parts = range(0, len(low), _TOGETHER)
        return np.concatenate([self._some(low[i : i + _TOGETHER], high[i : i + _TOGETHER]) for i in parts])

    def _some(self, low: Floats, high: Floats) -> Floats:
        scale = (high if self._symmetric else high - low) / self._levels
        zero = np.full_like(scale, self._levels) if self._symmetric else np.rint(-low / scale)
        top = zero if self._symmetric else self._levels - zero
        integrals = _integral(self._edges, scale[:, None], -zero[:, None], top[:, None])
        # No matrix product: its rounding depends on the machine.
        return np.asarray((integrals * self._weights).sum(axis=1))


def _integral(x: Floats, scale: Floats, least: Floats, most: Floats) -> Floats:
    """Return the antiderivative at `x` of the squared error, which is made of one parabola for each code."""
    code = np.clip(np.rint(x / scale), least, most)
    return np.asarray(code * scale**3 / 12 + (x - code * scale) ** 3 / 3)
