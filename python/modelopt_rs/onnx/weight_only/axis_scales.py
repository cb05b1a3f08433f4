"""A coder of a scale for each index of an axis, or one for all, of what lies all over the file."""

import math
from collections.abc import Sequence

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16
from modelopt_rs.dtypes import widened
from modelopt_rs.onnx.weight_only.coders import Written
from modelopt_rs.onnx.weight_only.coding import Coding, packed_bytes
from modelopt_rs.planning.quantize import QUANTIZED
from modelopt_rs.quant.search import Scales
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["AxisScales"]


class AxisScales(Transform):
    """First sweeps find scales, by ranges or by a search of channels that are gathered; the last one makes codes.

    Parameters
    ----------
    coding : Coding
    axis : int or None
        The axis that keeps its own scales; None: one scale, of the plain formula whatever is asked for, for a search
        would have to hold the whole weight.
    keep : int
        The most bytes of channels to gather at a time, but of one.
    """

    def __init__(self, coding: Coding, axis: int | None, keep: int) -> None:
        self._coding = coding
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        shape, columns = coding.info.shape, coding.info.columns
        # (before, channels, behind); a channel axis that is the last, or none: (before, columns).
        self._view: tuple[int, ...] = (-1, columns)
        if axis is not None and axis < len(shape) - 1:
            self._view = (-1, shape[axis], math.prod(shape[axis + 1 :]))
        self._axis = None if axis is None else 1
        slice_elements = math.prod(self._view[1:])
        whole = 1 if slice_elements * coding.bits % 8 == 0 else 8 // coding.bits
        self.row_multiple = slice_elements // columns * whole
        self._channels: tuple[int, ...] = () if axis is None else (shape[axis],)
        self.buffers = [
            Buffer("f4", 2 * columns),  # widened, and numbers again
            Buffer("u1", 2 * columns),  # codes
            Buffer("f4", 8 * math.prod(self._channels), per=0),  # ranges, twice, scales and zero points
        ]
        self._stripe = 0
        self.sweeps = 2
        if axis is not None and coding.scales.search is not None:
            self._length = math.prod(shape) // shape[axis]
            self._stripe = max(min(keep // (self._length * coding.item), shape[axis]), 1)
            self.sweeps = -(-shape[axis] // self._stripe) + 1
            self.buffers.append(Buffer(f"u{coding.item}", self._stripe * self._length, per=0))
        self._range: tuple[Array, Array] | None = None
        self._sweep = 0
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        self._scale = np.empty(self._channels, np.float32)
        self._zero_point = None if self._coding.symmetric else np.empty(self._channels, np.uint8)
        self._gathered: Array | None = None
        self._done = 0

    def __call__(self, array: Array) -> Written:
        """Look at a tile; quantize it in the last sweep."""
        if self._sweep == self.sweeps - 1:
            return self._quantize(widened(array, self._coding.info.dtype).reshape(self._view))
        if self._stripe:
            self._gather(array.reshape(self._view))
        else:
            self._look(widened(array, self._coding.info.dtype).reshape(self._view))
        return []

    def _look(self, x: Array) -> None:
        others = None if self._axis is None else tuple(i for i in range(x.ndim) if i != 1)
        if self._coding.options.nonfinite == "saturate":
            x = np.where(np.isfinite(x), x, x.dtype.type(0))
        low, high = (np.asarray(v) for v in _core.minmax(x, others, False, "propagate", None, self._coding.threads))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError('quantize: x has non-finite values; pass nonfinite="saturate" to map them')
        if self._range is not None:
            low, high = np.minimum(low, self._range[0]), np.maximum(high, self._range[1])
        self._range = low, high

    def _gather(self, x: Array) -> None:
        """Lay the elements of this sweep's channels behind those that came before."""
        if self._gathered is None:
            self._gathered = np.empty((self._stripe, self._length), x.dtype)
        first = self._sweep * self._stripe
        part = x.reshape(len(x), self._channels[0], -1)[:, first : first + self._stripe].transpose(1, 0, 2)
        count = math.prod(part.shape[1:])
        np.copyto(self._gathered[: len(part), self._done : self._done + count], part.reshape(len(part), count))
        self._done += count

    def _find(self) -> None:
        """Find the scales of the channels that were looked at, or of this sweep's."""
        coding = self._coding
        if self._gathered is None:
            assert self._range is not None
            ends = np.stack([end.reshape(-1) for end in self._range], axis=-1)
            scales = Scales(None, coding.scales.dtype)
            self._find_in(ends if self._channels else ends.reshape(-1), scales, slice(None), None)
            return
        first = self._sweep * self._stripe
        at = slice(first, min(first + self._stripe, self._channels[0]))
        self._find_in(self._gathered[: at.stop - first], coding.scales, at, QUANTIZED[coding.info.dtype])
        self._done = 0

    def _find_in(self, x: Array, scales: Scales, at: slice, dtype: Bf16) -> None:
        of_axis = bool(self._channels)
        scale = self._scale[at] if of_axis else self._scale
        zero_point = self._zero_point[at] if of_axis and self._zero_point is not None else self._zero_point
        how = (self._coding.format, 0 if of_axis else None, None)
        scales.find(x, (scale, zero_point), how, dtype, self._coding.threads)

    def _quantize(self, x: Array) -> Written:
        coding = self._coding
        codes = np.empty((*x.shape[:-1], packed_bytes(x.shape[-1], coding.bits)), np.uint8)
        how = (coding.format, self._axis, None)
        found = (self._scale, self._zero_point)
        _core.quantize_given(x, codes, found, how, coding.options.nonfinite, None, coding.threads)
        dense = np.empty(x.shape, np.float32)
        _core.dequantize((codes, *found, None, None), how, dense, None, coding.threads)
        self.figures += ErrorFigures(*_core.error_stats(x, dense, None, coding.threads))
        return coding.outputs.codes_written(codes.reshape(-1, codes.shape[-1]))

    def end(self) -> Written:
        """Find scales; return them and zero points after the last sweep."""
        if self._sweep < self.sweeps - 1:
            self._find()
            self._sweep += 1
            if self._sweep == self.sweeps - 1:
                self._gathered = None
            return []
        outputs = self._coding.outputs
        written = outputs.scale_written(self._scale)
        return written if self._zero_point is None else [*written, *outputs.zero_points_written(self._zero_point)]
