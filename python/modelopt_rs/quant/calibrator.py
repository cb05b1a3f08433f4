"""Ranges of activations that come in batches and are not kept."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from modelopt_rs import reduce
from modelopt_rs._types import Array, Bf16
from modelopt_rs.arguments import check_flag, check_number, shown
from modelopt_rs.arrays import as_array
from modelopt_rs.dtypes import bf16_to_float32
from modelopt_rs.errors import said_as
from modelopt_rs.quant.codes import code_of, params_of
from modelopt_rs.quant.dyadic import DyadicHistogram
from modelopt_rs.quant.thresholds import entropy_threshold, mse_range, percentile_range

__all__ = ["Calibrator", "Method"]

Method: TypeAlias = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]
_LARGEST = float(np.finfo(np.float32).max)


class Calibrator:
    """The range of numbers that come in batches, for their quantization.

    Only the smallest and largest number and, but for "minmax" and "moving_average", a histogram of fixed size are
    kept: memory does not grow with the data. Its bins merge pairwise as the range grows, so that the order of the
    batches does not matter, and calibrators of parts of the data merge to the same bits.

    - "minmax": all of it.
    - "moving_average": the mean of the batches' smallest and largest numbers; with `momentum` m
      ``low += m * (low_of_batch - low)`` from the first batch on, the same for high.
    - "percentile": outside lie at most ``100 - percentile`` percent of the numbers, half of them on each side
      (symmetric: of the magnitudes); within a bin, outwards.
    - "entropy": clipped magnitudes that lose the least information (Kullback-Leibler), as TensorRT and onnxruntime.
    - "mse": the least mean-squared error of the quantized numbers.

    Parameters
    ----------
    method : str
        As above.
    bits : {8, 4, 2}
        Bits of a code.
    symmetric : bool
        Ranges around zero for signed codes without a zero point; else for unsigned codes with one.
    percentile : float
        Over 0, at most 100.
    momentum : float, optional
        Over 0, at most 1; "moving_average" only. The order of batches matters then, and nothing can be merged.
    bins : int
        Of the histogram, 256 to 16,384; each has 8 bytes.
    axis : int, optional
        A range for each index of this axis; "minmax" only.

    Raises
    ------
    TypeError
        If `bits` or `bins` is no integer.
    ValueError
        If an option is out of its range, or is not of this method.

    References
    ----------
    Migacz 2017, "8-bit inference with TensorRT" (entropy).
    Jacob et al. 2018, arXiv 1712.05877, section 3.1 (moving averages).

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> calibrator = mo.quant.Calibrator("percentile", percentile=99)
    >>> for batch in np.linspace(-1, 3, 4000, dtype=np.float32).reshape(4, 1000):
    ...     calibrator.update(batch)
    >>> low, high = calibrator.range()
    >>> round(low, 2), round(high, 2)
    (-0.98, 2.98)
    >>> scale, zero_point = calibrator.params()
    >>> round(float(scale), 4), int(zero_point)
    (0.0155, 63)
    """

    def __init__(
        self,
        method: Method = "minmax",
        *,
        bits: int = 8,
        symmetric: bool = False,
        percentile: float = 99.99,
        momentum: float | None = None,
        bins: int = 4096,
        axis: int | None = None,
    ) -> None:
        if not isinstance(method, str) or method not in get_args(Method):
            wrong = ValueError if isinstance(method, str) else TypeError
            raise wrong(f"Calibrator: method must be one of {', '.join(get_args(Method))}, got {shown(method)}")
        _check_integer("bits", bits, (8, 4, 2), "8, 4 or 2")
        _check_integer("bins", bins, range(256, 16385), "from 256 to 16,384")
        check_flag("Calibrator", "symmetric", symmetric)
        check_number("Calibrator", "percentile", percentile)
        if momentum is not None:
            check_number("Calibrator", "momentum", momentum)
        if not 0 < percentile <= 100:
            raise ValueError(f"Calibrator: percentile must be over 0 and at most 100, got {shown(percentile)}")
        if momentum is not None and not 0 < momentum <= 1:
            raise ValueError(f"Calibrator: momentum must be over 0 and at most 1, got {shown(momentum)}")
        if momentum is not None and method != "moving_average":
            raise ValueError(f"Calibrator: momentum must come with method='moving_average', got method={method!r}")
        if axis is not None and method != "minmax":
            raise ValueError(f"Calibrator: axis must come with method='minmax', got method={method!r}")
        if axis is not None and (not isinstance(axis, int | np.integer) or isinstance(axis, bool)):
            raise TypeError(f"Calibrator: axis must be an integer, got {type(axis).__name__}")
        self.method: Method = method
        self.axis = axis
        self.bits, self.symmetric, self.percentile, self.momentum = bits, bool(symmetric), percentile, momentum
        self.batches = 0
        self._low, self._high = math.inf, -math.inf
        self._ends: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._histogram = None if method in ("minmax", "moving_average") else DyadicHistogram(bins)
        # Exact, so that their order does not matter; binary fractions stay as short as floats are.
        self._sums = (Fraction(0), Fraction(0))
        self._moving = (0.0, 0.0)

    def update(self, x: Array, *, dtype: Bf16 = None, threads: int | None = None) -> None:
        """Take a batch in, of any shape; nothing is kept of it. An empty one is none.

        Parameters
        ----------
        x : ndarray of float32, float64, float16 or bfloat16
            Any shape and strides; not written.
        dtype : "bf16", optional
            Read a uint16 array as bfloat16 bits.
        threads : int, optional
            Threads of this call; never changes the result.

        Raises
        ------
        TypeError
            If `x` is no array of floats.
        ValueError
            If it has a value that is not finite, or beyond float32: nothing is taken in then.
        """
        x = as_array(x, "Calibrator: x")
        if x.dtype.kind in "biu" and dtype is None:
            want = "float32, float64, float16 or bfloat16"
            raise TypeError(f"Calibrator: x must have dtype {want}, got {x.dtype}; ranges are of floats")
        # At least the dtype of an empty batch is checked.
        low, high = _range(x if x.size else np.zeros(1, x.dtype), dtype, threads)
        if not (math.isfinite(low) and math.isfinite(high)):
            count = reduce.count_nonfinite(x, dtype=dtype, threads=threads)
            raise ValueError(f"Calibrator: x must be finite, has {count} values that are not")
        if max(-low, high) > _LARGEST:
            raise ValueError(f"Calibrator: x must be in the range of float32, goes from {low:.3g} to {high:.3g}")
        if not x.size:
            return
        if self.axis is not None:
            self._take_ends(_ends(x, self.axis, dtype, threads))
        if self._histogram is not None:
            self._histogram.update(x, low, high, dtype=dtype, threads=threads)
        self._take((low, high), 1, (Fraction(low), Fraction(high)))
        if self.momentum is not None:
            before, m = self._moving, 1.0 if self.batches == 1 else self.momentum
            self._moving = (before[0] + m * (low - before[0]), before[1] + m * (high - before[1]))

    def merge(self, other: "Calibrator") -> None:
        """Take in what another has seen, as if its batches had come here.

        Raises
        ------
        TypeError
            If `other` is no Calibrator.
        ValueError
            If its options are others, or `momentum` is set: what comes first matters then.
        """
        if not isinstance(other, Calibrator):
            raise TypeError(f"Calibrator: other must be a Calibrator, got {type(other).__name__}")
        if self.momentum is not None or other.momentum is not None:
            raise ValueError("Calibrator: momentum must be None to merge; the order of batches is not known")
        if self._options() != other._options():
            raise ValueError(f"Calibrator: other must have the options {self._options()}, got {other._options()}")
        if other._ends is not None:
            self._take_ends(other._ends)
        if self._histogram is not None and other._histogram is not None:
            self._histogram.merge(other._histogram)
        self._take((other._low, other._high), other.batches, other._sums)

    def range(self) -> Any:
        """Return the lower and upper end of the range; symmetric: both of one magnitude.

        Two floats; with `axis` two arrays of float32.

        Raises
        ------
        ValueError
            If nothing was taken in yet.
        """
        if not self.batches:
            raise ValueError("Calibrator: range must come after an update, got none")
        if self._ends is not None:
            lows, highs = (end.astype(np.float32) for end in self._ends)
            bounds = np.maximum(np.maximum(-lows, highs), np.float32(0))
            return (-bounds, bounds) if self.symmetric else (lows, highs)
        histogram = self._histogram
        if histogram is None:
            low, high = self._extremes()
        elif self.method == "percentile":
            low, high = percentile_range(histogram, self.percentile, symmetric=self.symmetric)
        elif self.method == "mse":
            low, high = mse_range(histogram, self.bits, symmetric=self.symmetric)
        else:
            counts, width = histogram.magnitudes()
            signed = self.symmetric or self._low < 0 < self._high
            bound = width * entropy_threshold(counts, 2 ** (self.bits - signed))
            low, high = max(-bound, self._low), min(bound, self._high)
        if self.symmetric:
            high = max(-low, high, 0.0)
            low = -high
        return low, high

    def params(self, dtype: DTypeLike | None = None) -> tuple[Any, Any]:
        """Return the scale and the zero point of the range; with `axis` arrays of them.

        Symmetric: ``scale = high / (2**(bits-1) - 1)``, no zero point. Else the range is widened to include 0,
        ``scale = (high - low) / (2**bits - 1)``, ``zero_point = round(-low / scale)``.

        Parameters
        ----------
        dtype : dtype or str, optional
            For codes of `modelopt_rs.quant.quantize_linear` of this dtype, whatever `bits` is: any that it takes. Zero
            points then have that dtype (of a dtype named by a text: int), and the codes of 0 are the dtype's:
            symmetric 0, of unsigned codes ``2**(bits-1)``; else the lowest code and ``round(-low / scale)``. Codes
            that are floats have no zero point, and ``scale = max(-low, high) / largest``.

        Raises
        ------
        TypeError
            If `dtype` is none of these.
        ValueError
            If nothing was taken in yet.

        Examples
        --------
        >>> import numpy as np, modelopt_rs as mo
        >>> calibrator = mo.quant.Calibrator(axis=-1)
        >>> calibrator.update(np.array([[0.0, -1.0], [25.5, 1.55]], np.float32))
        >>> scale, zero_point = calibrator.params(np.int8)
        >>> scale, zero_point
        (array([0.1 , 0.01], dtype=float32), array([-128,  -28], dtype=int8))
        """
        if dtype is None:
            name = f"{'' if self.symmetric else 'u'}int{self.bits}"
            scale, zero_point = params_of(self.range(), code_of("Calibrator", name), symmetric=self.symmetric)
            return scale, None if self.symmetric else np.uint8(zero_point)
        return params_of(self.range(), code_of("Calibrator", dtype), symmetric=self.symmetric)

    def _take_ends(self, ends: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
        if self._ends is not None:
            if len(ends[0]) != len(self._ends[0]):
                got = len(ends[0])
                raise ValueError(f"Calibrator: x must have {len(self._ends[0])} indices of the axis, got {got}")
            ends = (np.minimum(self._ends[0], ends[0]), np.maximum(self._ends[1], ends[1]))
        self._ends = ends

    def _extremes(self) -> tuple[float, float]:
        if self.method == "minmax":
            return self._low, self._high
        if self.momentum is not None:
            return self._moving
        low, high = (float(total / self.batches) for total in self._sums)
        return low, high

    def _take(self, ends: tuple[float, float], batches: int, sums: tuple[Fraction, Fraction]) -> None:
        self._low, self._high = min(self._low, ends[0]), max(self._high, ends[1])
        self.batches += batches
        if self.method == "moving_average":
            self._sums = (self._sums[0] + sums[0], self._sums[1] + sums[1])

    def _options(self) -> str:
        bins = "" if self._histogram is None else f", bins={len(self._histogram.counts)}"
        percentile = f", percentile={self.percentile}" if self.method == "percentile" else ""
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"method={self.method!r}, bits={self.bits}, symmetric={self.symmetric}{percentile}{bins}{axis}"


def _check_integer(name: str, value: int, allowed: Sequence[int], text: str) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"Calibrator: {name} must be an integer, got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"Calibrator: {name} must be {text}, got {shown(value)}")


def _range(x: Array, dtype: Bf16, threads: int | None) -> tuple[float, float]:
    with said_as({"minmax": "Calibrator"}):
        low, high = reduce.minmax(x, dtype=dtype, threads=threads)
    if dtype == "bf16":
        ends = np.array([low, high], np.uint16).astype(np.uint32) << 16
        low, high = ends.view(np.float32)
    return float(low), float(high)


def _ends(x: Array, axis: int, dtype: Bf16, threads: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and the largest number of each index of an axis."""
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"Calibrator: axis must be within the {x.ndim} axes of x, got {axis}")
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    ends = reduce.minmax(x, axis=others, dtype=dtype, threads=threads) if others else (x, x)
    low, high = (bf16_to_float32(end) if dtype == "bf16" else end for end in ends)
    return low.astype(np.float64), high.astype(np.float64)
