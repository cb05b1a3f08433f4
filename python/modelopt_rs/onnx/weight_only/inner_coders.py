"""Coders whose codes lie as the weight does, where what shares a scale does not lie together."""

import math
from collections.abc import Sequence

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Parts, Spec
from modelopt_rs.onnx.weight_only.coders import Written
from modelopt_rs.onnx.weight_only.coding import Coding, packed_bytes, packed_rows, unpacked_rows
from modelopt_rs.planning.quantize import QUANTIZED
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["AxisBlocks", "NarrowAxisBlocks", "WholeColumns"]


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
            Buffer(f"u{coding.item}", self._behind * coding.block, per=0),  # a block that is turned
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
        how, dtype = (coding.format, 1, None), QUANTIZED[coding.info.dtype]
        blocks = -(-len(rows) // coding.block)
        for i in range(blocks):
            at = slice(i * coding.block, min((i + 1) * coding.block, len(rows)))
            zero_points = None if coding.symmetric else self._zero_points[self._done + i]
            parts = (self._codes[at], self._scale[i], zero_points, None, None)
            self._quantize(rows[at], parts, how)
            _core.dequantize(parts, how, self._dense[at], None, coding.threads)
        self._done += blocks
        self.figures += ErrorFigures(*_core.error_stats(rows, self._dense[: len(rows)], dtype, coding.threads))
        outputs = coding.outputs
        return [*outputs.codes_written(self._codes[: len(rows)]), *outputs.scale_written(self._scale[:blocks])]

    def _quantize(self, rows: Array, parts: Parts, how: Spec) -> None:
        """Quantize a block: what is searched is turned, for a search wants what shares a scale to lie together."""
        coding, dtype = self._coding, QUANTIZED[self._coding.info.dtype]
        scales, nonfinite = coding.scales, coding.options.nonfinite
        if scales.search is None:
            scales.quantize(rows, parts, how, nonfinite, dtype, coding.threads)
            return
        turned, along = np.ascontiguousarray(rows.T), (coding.format, None, coding.block)
        scale, zero_point = parts[1:3]
        found = scale.reshape(-1, 1), None if zero_point is None else zero_point.reshape(-1, 1)
        scales.find(turned, found, along, dtype, coding.threads)
        _core.quantize_given(rows, parts[0], (scale, zero_point), how, nonfinite, dtype, coding.threads)

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


class WholeColumns(Transform):
    """A whole matrix, [in, out], whose inputs are known: its columns are rounded as rows, and lie as columns again.

    Parameters
    ----------
    coding : Coding
        A block of 0: a scale for each column.
    row_codes : int
        How many codes a row has as they are stored.
    """

    def __init__(self, coding: Coding, row_codes: int) -> None:
        self._coding, self._row_codes = coding, row_codes
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        inputs, columns = coding.info.shape
        self.row_multiple = coding.rows_together(inputs)
        self.buffers = [*coding.row_buffers(inputs, columns, inputs), Buffer("u1", 3 * inputs * columns, per=0)]
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Do nothing: there is one tile."""

    def __call__(self, array: Array) -> Written:
        """Quantize the matrix."""
        coding, outputs, turned = self._coding, self._coding.outputs, np.ascontiguousarray(array.T)
        quantizer = coding.row_quantizer(*turned.shape)
        packed, scale, zero_points = quantizer(turned)
        self.figures += quantizer.figures(turned)
        packed = packed.view(np.uint8)[:, : packed_bytes(turned.shape[1], coding.bits)]
        codes = unpacked_rows(packed, coding.bits, turned.shape[1], coding.threads).T
        codes = codes.reshape(-1, self._row_codes)
        written = [*outputs.codes_written(packed_rows(codes, coding.bits, coding.threads))]
        written += outputs.scale_written(np.ascontiguousarray(scale.T))
        points = np.zeros(0, np.uint8) if zero_points is None else np.ascontiguousarray(zero_points.T)
        return [*written, *outputs.zero_points_written(points)]
