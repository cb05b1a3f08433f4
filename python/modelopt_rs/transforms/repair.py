"""A weight whose inputs that stay make up for those that go, before these are cropped."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modelopt_rs._types import Array
from modelopt_rs.dtypes import rounded, widened
from modelopt_rs.prune.repair import InputStats, least_squares
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["Repair"]

# Of the mean of the diagonal: sums over few samples say little of what is small.
RIDGE = 0.01


class Repair(Transform):
    """A whole weight by `prune.least_squares` on the inputs that stay, then another transform, which crops it.

    Parameters
    ----------
    info : TensorInfo
        Of floats.
    axes : (int, int)
        Which axis has the outputs, and which the inputs.
    stays : ndarray of bool
        The inputs that stay.
    stats : callable
        Returns the sums over the inputs: of a convolution by kernel positions, of each the channels. None: nothing is
        known of them, and nothing is repaired.
    then : Transform
        What becomes of the repaired weight.
    """

    def __init__(
        self,
        info: TensorInfo,
        axes: tuple[int, int],
        stays: NDArray[np.bool_],
        stats: Callable[[], InputStats | None],
        then: Transform,
    ) -> None:
        self._info, self._axes, self._stays, self._stats, self._then = info, axes, stays, stats, then
        self.outputs: Sequence[TensorInfo] = then.outputs
        columns = math.prod(info.shape) // info.shape[axes[0]]
        # The weight in float64, before and after; the sums, those of what stays, and what is solved.
        held = [Buffer("f8", 2 * math.prod(info.shape), per=0), Buffer("f8", 3 * columns**2, per=0)]
        self.buffers = (*then.buffers, *held)
        self.row_multiple = info.rows
        self.sweeps = then.sweeps

    def begin(self, rows: int) -> None:
        """Get the other transform ready."""
        self._then.begin(rows)

    def __call__(self, array: Array) -> Rows:
        """Repair the weight."""
        stats = self._stats()
        if stats is None or not stats.count:
            return self._then(array)
        wide = np.array(widened(array, self._info.dtype), np.float64 if self._info.dtype == "F64" else np.float32)
        outputs = np.moveaxis(wide.reshape(self._info.shape), self._axes, (0, -1))
        matrix = np.ascontiguousarray(outputs).reshape(len(outputs), -1)
        stays = np.flatnonzero(np.tile(self._stays, matrix.shape[1] // len(self._stays)))
        matrix[:, stays] = least_squares(matrix, stays, stats, ridge=RIDGE)[0]
        outputs[...] = matrix.reshape(outputs.shape)
        return self._then(rounded(wide, self._info.dtype))

    def end(self) -> Rows:
        """Return what the other transform has left."""
        return self._then.end()

    def starts(self, row: int) -> Mapping[str, int] | None:
        """Return where the other transform begins; it is repaired whole."""
        return self._then.starts(row) if row == 0 else None
