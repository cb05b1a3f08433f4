"""A coder of a whole convolution whose inputs are known, in blocks of its channels."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.onnx.weight_only.coders import Written
from modelopt_rs.onnx.weight_only.coding import Coding, packed_bytes, packed_rows, unpacked_rows
from modelopt_rs.quant.by_inputs import Moments
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["ChannelBlocks"]


class ChannelBlocks(Transform):
    """[out, in, kernel ...]: turned so that the channels of a kernel position lie together, rounded, and turned back.

    Parameters
    ----------
    coding : Coding
        Its block divides the channels.
    row_codes : int
        How many codes a row has as they are stored.
    """

    def __init__(self, coding: Coding, row_codes: int) -> None:
        self._coding, self._row_codes = coding, row_codes
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        rows, self._channels, *kernel = coding.info.shape
        self._kernel = math.prod(kernel)
        self._columns = self._channels * self._kernel
        self.row_multiple = coding.rows_together(coding.info.rows)
        self.buffers = [
            *coding.row_buffers(self._columns, rows, coding.info.rows),
            Buffer("f8", self._columns**2, per=0),  # second moments, turned
            Buffer("u1", 3 * rows * self._columns, per=0),
        ]
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Do nothing: there is one tile."""

    def __call__(self, array: Array) -> Written:
        """Quantize the weight."""
        coding, rows, columns = self._coding, self._coding.info.shape[0], self._columns
        assert coding.moments is not None
        turned = array.reshape(rows, self._channels, -1).transpose(0, 2, 1).reshape(rows, columns)
        order = np.arange(columns).reshape(self._channels, -1).T.reshape(-1)
        quantizer = replace(coding, moments=partial(_turned, coding.moments, order)).row_quantizer(rows, columns)
        packed, scale, zero_points = quantizer(turned)
        self.figures += quantizer.figures(turned)
        packed = packed.view(np.uint8)[:, : packed_bytes(columns, coding.bits)]
        codes = self._back(unpacked_rows(packed, coding.bits, columns, coding.threads))
        stored = packed_rows(codes.reshape(-1, self._row_codes), coding.bits, coding.threads)
        written = [*coding.outputs.codes_written(stored), *coding.outputs.scale_written(self._back(scale))]
        points = np.zeros(0, np.uint8) if zero_points is None else self._back(zero_points)
        return [*written, *coding.outputs.zero_points_written(points)]

    def _back(self, turned: Array) -> Array:
        """Return what has kernel positions before channels, or their blocks, with those behind."""
        return np.ascontiguousarray(turned.reshape(len(turned), self._kernel, -1).transpose(0, 2, 1))


def _turned(moments: Moments, order: Array) -> Array:
    found = moments()
    return found if found.ndim < 2 else np.ascontiguousarray(found[..., order[:, None], order])
