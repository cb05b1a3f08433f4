"""What calibration data say of the values of a model: ranges, peaks and means of channels, ranks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from modelopt_rs import reduce
from modelopt_rs._types import Array
from modelopt_rs.errors import quote
from modelopt_rs.quant.calibrator import Calibrator, Method

__all__ = ["Factor", "Seen", "Statistics"]


@dataclass(frozen=True, slots=True)
class Factor:
    """What the channels of a value, along an axis, are multiplied by."""

    axis: int
    values: NDArray[np.float32]

    def __call__(self, array: Array) -> Array:
        """Return the product."""
        shape = [1] * array.ndim
        shape[self.axis] = -1
        return np.asarray(array * self.values.reshape(shape))


@dataclass(slots=True)
class Seen:
    """What was seen of one value.

    Attributes
    ----------
    rank : int
        Its axes.
    peak : ndarray of float32
        The largest magnitude of each channel.
    total : ndarray of float64
        The sum of each channel, of `count` numbers.
    means : ndarray of float64
        The sum of the means of samples, and of their squares.
    samples : int
        Of which means there are.
    """

    rank: int = 0
    peak: NDArray[np.float32] | None = None
    total: NDArray[np.float64] | None = None
    count: int = 0
    means: NDArray[np.float64] | None = None
    samples: int = 0

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of each channel."""
        assert self.total is not None
        return self.total / max(self.count, 1)

    @property
    def likely_mean(self) -> NDArray[np.float64]:
        """The mean of each channel, nearer to zero as means of samples differ: all of what one sample says is chance.

        ``mean * max(0, 1 - v / mean ** 2)``, v the variance of the mean (James and Stein 1961, the positive part).
        """
        assert self.means is not None
        mean, n = self.mean, self.samples
        if n < 2:
            return np.zeros_like(mean)
        variance = np.maximum(self.means[1] - self.means[0] ** 2 / n, 0) / (n * (n - 1))
        kept = np.maximum(1 - variance / np.where(mean == 0, 1, mean**2), 0)
        return np.asarray(mean * kept)


@dataclass(slots=True)
class Statistics:
    """Takes the values of samples in; of each it keeps what was asked for, nothing else.

    Parameters
    ----------
    method : str
        Of `Calibrator`.
    ranges : iterable of Value
        Those whose range is wanted.
    peaks, means : mapping
        Those of whose channels the peaks or means are wanted; the axis of the channels.
    ranks : iterable of Value
        Those of which nothing more is wanted than how many axes they have.
    factors : mapping
        What is made of values before anything else.

    Attributes
    ----------
    seen, calibrators : dict
        What there is by now.
    values : dict
        All that are wanted, by name.
    """

    method: Method
    ranges: Iterable[ir.Value] = ()
    peaks: Mapping[ir.Value, int] = field(default_factory=dict)
    means: Mapping[ir.Value, int] = field(default_factory=dict)
    ranks: Iterable[ir.Value] = ()
    factors: Mapping[ir.Value, Callable[[Array], Array]] = field(default_factory=dict)
    seen: dict[ir.Value, Seen] = field(default_factory=dict)
    calibrators: dict[ir.Value, Calibrator] = field(init=False)
    values: dict[str, ir.Value] = field(init=False)

    def __post_init__(self) -> None:
        self.calibrators = {value: Calibrator(self.method) for value in self.ranges}
        wanted = (*self.calibrators, *self.peaks, *self.means, *self.ranks)
        self.values = {str(value.name): value for value in wanted}

    def take(self, name: str, array: Array) -> None:
        """Take a value of one sample in.

        Raises
        ------
        ValueError
            If it is not finite.
        """
        value = self.values[name]
        if not array.size:
            return
        if value in self.factors:
            array = self.factors[value](array)
        seen = self.seen.setdefault(value, Seen())
        seen.rank = max(seen.rank, array.ndim)
        if value in self.calibrators:
            try:
                self.calibrators[value].update(array)
            except ValueError as error:
                raise ValueError(f"calibrate: value {quote(name)}: {error}") from error
        if value in self.peaks:
            peak = reduce.absmax(array, axis=_others(array, self.peaks[value]))
            seen.peak = peak if seen.peak is None else np.maximum(seen.peak, peak)
        if value in self.means:
            axes = _others(array, self.means[value])
            count = array.size // array.shape[self.means[value]]
            mean = np.asarray(reduce.mean(array, axis=axes), np.float64)
            powers = np.stack([mean, mean**2])
            seen.total = mean * count if seen.total is None else seen.total + mean * count
            seen.means = powers if seen.means is None else seen.means + powers
            seen.count, seen.samples = seen.count + count, seen.samples + 1


def _others(array: Array, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(array.ndim) if i != axis % array.ndim)
