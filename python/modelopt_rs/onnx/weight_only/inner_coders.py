"""Coders whose codes lie as the weight does, where what shares a scale does not lie together."""

import math
from collections.abc import Sequence

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.dtypes import widened
from modelopt_rs.layouts.packed_spec import PackedSpec
from modelopt_rs.onnx.weight_only.coders import Written
from modelopt_rs.onnx.weight_only.coding import Coding, packed_bytes, packed_rows, unpacked_rows
from modelopt_rs.planning.quantize import QUANTIZED
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["AxisBlocks", "AxisRanges", "NarrowAxisBlocks"]


class AxisBlocks(Transform):
    """Blocks along an axis that is not the last: a block is `coding.block` rows of all the elements behind that axis.

    Parameters
    ----------
    coding : Coding
    axis : int
        The axis; where it is not the first, a multiple of the block.
    """

    def __init__(self, coding: Coding, axis: int) -> None:
        self._coding = coding
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        shape = coding.info.shape
        self._behind = math.prod(shape[axis + 1 :])
        each = self._behind // coding.info.columns  # rows of the tile for one index of the axis
        self.row_multiple = coding.block * each
        blocks = math.prod(shape[:axis]) * -(-shape[axis] // coding.block)
        self._zero_points_shape = (0 if coding.symmetric else blocks, self._behind)
        self.buffers = [
            Buffer("u1", coding.info.columns),  # codes
            Buffer("f4", coding.info.columns),  # numbers again
            Buffer("f4", self._behind, per=self.row_multiple),
            Buffer("u1", math.prod(self._zero_points_shape), per=0),
        ]
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        n = -(-rows * self._coding.info.columns // self._behind)
        self._codes = np.empty((n, packed_bytes(self._behind, self._coding.bits)), np.uint8)
        self._scale = np.empty((-(-n // self._coding.block), self._behind), np.float32)
        self._zero_points = np.empty(self._zero_points_shape, np.uint8)
        self._dense = np.empty((n, self._behind), np.float32)
        self._done = 0

    def __call__(self, array: Array) -> Written:
        """Quantize a tile, block by block."""
        coding = self._coding
        rows = array.reshape(-1, self._behind)
        how, dtype = (PackedSpec(coding.bits, coding.symmetric).format, 1, None), QUANTIZED[coding.info.dtype]
        blocks = -(-len(rows) // coding.block)
        for i in range(blocks):
            at = slice(i * coding.block, min((i + 1) * coding.block, len(rows)))
            zero_points = None if coding.symmetric else self._zero_points[self._done + i]
            parts = (self._codes[at], self._scale[i], zero_points, None, None)
            _core.quantize(rows[at], parts, how, coding.options.nonfinite, None, dtype, coding.threads)
            _core.dequantize(parts, how, self._dense[at], None, coding.threads)
        self._done += blocks
        self.figures += ErrorFigures(*_core.error_stats(rows, self._dense[: len(rows)], dtype, coding.threads))
        outputs = coding.outputs
        return [*outputs.codes_written(self._codes[: len(rows)]), *outputs.scale_written(self._scale[:blocks])]

    def end(self) -> Written:
        """Return the zero points; let go of the buffers."""
        written = self._coding.outputs.zero_points_written(self._zero_points)
        del self._codes, self._scale, self._zero_points, self._dense
        return written


class NarrowAxisBlocks(Transform):
    """As `AxisBlocks`, where few elements stand behind the axis: they are turned so that blocks lie together, and back.

    Parameters
    ----------
    coding : Coding
    axis : int
        The axis; a multiple of the block.
    """

    def __init__(self, coding: Coding, axis: int) -> None:
        self._coding = coding
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        shape, columns = coding.info.shape, coding.info.columns
        self._behind = math.prod(shape[axis + 1 :])
        self.row_multiple = coding.block * self._behind // columns
        self._zero_points_shape = (
            0 if coding.symmetric else math.prod(shape[: axis + 1]) // coding.block,
            self._behind,
        )
        self.buffers = [
            *coding.row_buffers(coding.block, self._behind, self.row_multiple),
            Buffer("u1", 2 * columns),  # codes, a byte each, as they are made and as they lie
            Buffer("u1", math.prod(self._zero_points_shape), per=0),
        ]
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        block = self._coding.block
        self._quantizer = self._coding.row_quantizer(rows * self._coding.info.columns // block, block)
        self._zero_points = np.empty(self._zero_points_shape, np.uint8)
        self._done = 0

    def __call__(self, array: Array) -> Written:
        """Quantize a tile."""
        coding, outputs, behind = self._coding, self._coding.outputs, self._behind
        turned = np.ascontiguousarray(array.reshape(-1, coding.block, behind).transpose(0, 2, 1))
        rows = turned.reshape(-1, coding.block)
        packed, scale, zero_points = self._quantizer(rows)
        self.figures += self._quantizer.figures(rows)
        packed = packed.view(np.uint8)[:, : packed_bytes(coding.block, coding.bits)]
        codes = unpacked_rows(packed, coding.bits, coding.block, coding.threads).reshape(turned.shape)
        blocks = codes.transpose(0, 2, 1).reshape(len(turned), -1)
        if zero_points is not None:
            self._zero_points[self._done : self._done + len(turned)] = zero_points.reshape(-1, behind)
            self._done += len(turned)
        stored = packed_rows(blocks, coding.bits, coding.threads)
        return [*outputs.codes_written(stored), *outputs.scale_written(scale.reshape(-1, behind))]

    def end(self) -> Written:
        """Return the zero points; let go of the buffers."""
        written = self._coding.outputs.zero_points_written(self._zero_points)
        del self._quantizer, self._zero_points
        return written


class AxisRanges(Transform):
    """A scale for each index of an axis, or one for all, of what lies all over the file: a first sweep finds ranges.

    Parameters
    ----------
    coding : Coding
    axis : int or None
        The axis that keeps its own scales; None: one scale.
    """

    sweeps = 2

    def __init__(self, coding: Coding, axis: int | None) -> None:
        self._coding = coding
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        shape, columns = coding.info.shape, coding.info.columns
        # (before, channels, behind); a channel axis that is the last, or none: (before, columns).
        self._view: tuple[int, ...] = (-1, columns)
        if axis is not None and axis < len(shape) - 1:
            self._view = (-1, shape[axis], math.prod(shape[axis + 1 :]))
        self._axis = None if axis is None else 1
        slice_elements = math.prod(self._view[1:])
        self._codes_columns = self._view[-1]
        whole = 1 if slice_elements * coding.bits % 8 == 0 else 8 // coding.bits
        self.row_multiple = slice_elements // columns * whole
        self._channels = () if axis is None else (shape[axis],)
        self.buffers = [
            Buffer("f4", 3 * columns),  # widened, joined with the extremes, and numbers again
            Buffer("u1", 2 * columns),  # codes
            Buffer("f4", 6 * math.prod(self._channels), per=0),  # ranges, scales and zero points
            Buffer("u1", 18 * slice_elements, per=0),  # the extremes, joined and coded
        ]
        self._range: tuple[Array, Array] | None = None
        self._looked = False
        self.figures = ErrorFigures()

    def __call__(self, array: Array) -> Written:
        """Look at a tile; quantize it in the second sweep."""
        x = widened(array, self._coding.info.dtype).reshape(self._view)
        if not self._looked:
            self._look(x)
            return []
        return self._quantize(x)

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

    def _quantize(self, x: Array) -> Written:
        """Quantize with the smallest and the largest elements of all tiles behind the tile's own."""
        assert self._range is not None
        coding, n = self._coding, len(x)
        joined = np.empty((n + 2, *x.shape[1:]), x.dtype)
        joined[:n] = x
        for i, extreme in enumerate(self._range):
            joined[n + i] = extreme[:, None] if x.ndim == 3 else extreme
        codes = np.empty((*joined.shape[:-1], packed_bytes(joined.shape[-1], coding.bits)), np.uint8)
        scale = np.empty(self._channels, np.float32)
        self._zero_points = None if coding.symmetric else np.empty(self._channels, np.uint8)
        parts = (codes, scale, self._zero_points, None, None)
        how = (PackedSpec(coding.bits, coding.symmetric).format, self._axis, None)
        _core.quantize(joined, parts, how, coding.options.nonfinite, None, None, coding.threads)
        dense = np.empty(joined.shape, np.float32)
        _core.dequantize(parts, how, dense, None, coding.threads)
        self.figures += ErrorFigures(*_core.error_stats(joined[:n], dense[:n], None, coding.threads))
        self._scale = scale
        return coding.outputs.codes_written(codes[:n].reshape(-1, codes.shape[-1]))

    def end(self) -> Written:
        """Return scales and zero points after the second sweep."""
        if not self._looked:
            self._looked = True
            return []
        outputs = self._coding.outputs
        written = outputs.scale_written(self._scale)
        return written if self._zero_points is None else [*written, *outputs.zero_points_written(self._zero_points)]
