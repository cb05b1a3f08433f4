"""Tiles of a weight to codes, scales and zero points, in the order of axes that the new graph wants.

Every coder is a `Transform`. They differ in what shares a scale and in whether the axes change
places; whatever way a tensor is cut into tiles, the bytes are the same.
"""

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.onnx.weight_only.coding import Coding, packed_bytes, packed_rows, unpacked_rows
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Transform

__all__ = ["Coder", "Rows", "SeveralForms", "Transposed", "TransposedCodes", "Written"]

Written: TypeAlias = Sequence[tuple[str, Array]]


class Coder(Transform, Protocol):
    """A transform that knows how far its codes are from what they were made of."""

    @property
    def figures(self) -> ErrorFigures:
        """How far they are so far."""


# Rows that are turned at a time: the lines of one column in more rows than a cache has ways would drive each other out
# where a row is a power of two long (9 GB/s instead of 2 for rows of 4,096 floats).
TRANSPOSED = 8


class Rows(Transform):
    """Rows that lie whole in the file: `length` consecutive elements, cut into blocks.

    Parameters
    ----------
    coding : Coding
    length : int
        Elements of a row.
    padded : int
        Codes of a row: those past the elements are the codes of zeros.
    """

    def __init__(self, coding: Coding, length: int, padded: int) -> None:
        self._coding, self._length, self._padded = coding, length, padded
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        self._tile_rows = length // coding.info.columns
        # Where a row of codes ends within a byte, eight or fewer of them end on one.
        whole = 1 if padded * coding.bits % 8 == 0 else 8 // coding.bits
        self.row_multiple = coding.rows_together(self._tile_rows * whole)
        groups = -(-padded // coding.block) if coding.block else 1
        self._zero_points_shape = (0 if coding.symmetric else math.prod(coding.info.shape) // length, groups)
        zero_points = Buffer("u1", math.prod(self._zero_points_shape), per=0)
        self.buffers = [*coding.row_buffers(padded, 1, self._tile_rows), zero_points]
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        self._most = -(-rows // self._tile_rows)
        self._quantizer = self._coding.row_quantizer(self._most, self._padded)
        self._input: Array | None = None
        self._zero_points = np.empty(self._zero_points_shape, np.uint8)
        self._done = 0

    def __call__(self, array: Array) -> Written:
        """Quantize a tile."""
        rows = array.reshape(-1, self._length)
        if self._padded > self._length:
            rows = self._with_zeros(rows)
        packed, scale, zero_points = self._quantizer(rows)
        self.figures += self._quantizer.figures(rows)
        if zero_points is not None:
            self._zero_points[self._done : self._done + len(rows)] = zero_points
            self._done += len(rows)
        codes = packed.view(np.uint8)[:, : packed_bytes(self._padded, self._coding.bits)]
        outputs = self._coding.outputs
        return [*outputs.codes_written(codes), *outputs.scale_written(scale)]

    def _with_zeros(self, rows: Array) -> Array:
        if self._input is None:
            self._input = np.zeros((self._most, self._padded), rows.dtype)
        self._input[: len(rows), : self._length] = rows
        return self._input[: len(rows)]

    def end(self) -> Written:
        """Return the zero points; let go of the buffers."""
        written = self._coding.outputs.zero_points_written(self._zero_points)
        del self._quantizer, self._input, self._zero_points
        return written


class Transposed(Transform):
    """A matrix whose rows are what a node sums over, to one whose columns are: [in, out] to [out, in].

    The result is kept, in as many sweeps over the tensor as `keep` bytes make necessary.

    Parameters
    ----------
    coding : Coding
    keep : int
        The most bytes of the result to keep.
    """

    def __init__(self, coding: Coding, keep: int) -> None:
        self._coding = coding
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        inputs, columns = coding.info.shape
        self.row_multiple = coding.rows_together(coding.block)
        self._groups = -(-inputs // coding.block)
        self._row_bytes = packed_bytes(self._groups * coding.block, coding.bits)
        of_column = [Buffer("u1", self._row_bytes), Buffer("f4", self._groups)]
        if not coding.symmetric:
            of_column.append(Buffer("u1", self._groups))
        self._columns = columns
        self._stripe = max(min(keep // sum(each.nbytes(1) for each in of_column), columns), 1)
        self.sweeps = -(-columns // self._stripe)
        held = [each.times(self._stripe, 0) for each in of_column]
        self.buffers = [*coding.row_buffers(self.row_multiple, self._stripe, self.row_multiple), *held]
        self._first = 0
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        rows = min(rows, self._coding.info.shape[0])  # a tile of a small tensor could have more
        self._rows = -(-rows // self._coding.block) * self._coding.block
        self._quantizer = self._coding.row_quantizer(self._stripe, self._rows)
        self._input: Array | None = None
        self._begin_sweep()

    def _begin_sweep(self) -> None:
        width = min(self._stripe, self._columns - self._first)
        self._codes = np.empty((width, self._row_bytes), np.uint8)
        self._scale = np.empty((width, self._groups), np.float32)
        self._zero_points = np.empty((width, 0 if self._coding.symmetric else self._groups), np.uint8)
        self._done = 0  # groups

    def __call__(self, array: Array) -> Written:
        """Quantize a tile's part of this sweep."""
        stripe = array[:, self._first : self._first + len(self._codes)]
        if self._input is None:
            self._input = np.zeros((self._stripe, self._rows), array.dtype)
        turned = self._input[: stripe.shape[1]]
        for i in range(0, len(stripe), TRANSPOSED):
            np.copyto(turned[:, i : min(i + TRANSPOSED, len(stripe))], stripe[i : i + TRANSPOSED].T)
        turned[:, len(stripe) :] = 0
        packed, scale, zero_points = self._quantizer(turned)
        self.figures += self._quantizer.figures(turned)
        groups = -(-len(stripe) // self._coding.block)
        each, to = self._coding.block * self._coding.bits // 8, self._done + groups
        self._codes[:, self._done * each : to * each] = packed.view(np.uint8)[:, : groups * each]
        self._scale[:, self._done : to] = scale[:, :groups]
        if zero_points is not None:
            self._zero_points[:, self._done : to] = zero_points[:, :groups]
        self._done = to
        return []

    def end(self) -> Written:
        """Return the outputs of this sweep."""
        outputs = self._coding.outputs
        written = [*outputs.codes_written(self._codes), *outputs.scale_written(self._scale)]
        written += outputs.zero_points_written(self._zero_points)
        self._first += len(self._codes)
        if self._first < self._columns:
            self._begin_sweep()
        else:
            del self._quantizer, self._input, self._codes, self._scale, self._zero_points
        return written


class TransposedCodes(Transform):
    """A matrix whose columns are what a node sums over, to one whose rows are: [out, in] to [in, out].

    Parameters
    ----------
    coding : Coding
        A block of 0: a scale for each row of the source.
    keep : int
        The most bytes of the result to keep.
    """

    def __init__(self, coding: Coding, keep: int) -> None:
        self._coding = coding
        self.outputs: Sequence[TensorInfo] = coding.outputs.infos()
        self._rows, self._length = coding.info.shape
        self.row_multiple = coding.rows_together(1)
        self._block = coding.block or self._length
        # Whole groups of so many rows of the result end on a byte, and so do their zero points.
        unit = self._block * 8
        whole = 2 * self._rows * -(-self._length // unit) * unit
        self._stripe = max(min(keep, whole) // (2 * self._rows) // unit, 1) * unit
        self.sweeps = -(-self._length // self._stripe)
        groups = -(-self._stripe // self._block)
        self.buffers = [
            *coding.row_buffers(self._length, 1, 1),
            Buffer("u1", self._length),  # the codes of a tile, a byte each
            Buffer("u1", 2 * self._rows * min(self._stripe, self._length), per=0),  # those that are kept, and packed
            Buffer("f4", self._rows * groups, per=0),
            Buffer("u1", self._rows * groups, per=0),
        ]
        self._first = 0
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        self._quantizer = self._coding.row_quantizer(rows, self._length)
        self._begin_sweep()

    def _begin_sweep(self) -> None:
        width = min(self._stripe, self._length - self._first)
        groups = -(-width // self._block)
        self._codes = np.empty((width, self._rows), np.uint8)
        self._scale = np.empty((groups, self._rows), np.float32)
        self._zero_points = np.empty((0 if self._coding.symmetric else groups, self._rows), np.uint8)
        self._done = 0

    def __call__(self, array: Array) -> Written:
        """Quantize a tile, keep its part of this sweep."""
        packed, scale, zero_points = self._quantizer(array)
        if self._first == 0:
            self.figures += self._quantizer.figures(array)
        bits = self._coding.bits
        codes = packed.view(np.uint8)[:, : packed_bytes(self._length, bits)]
        codes = unpacked_rows(codes, bits, self._length, self._coding.threads)
        at, group = slice(self._done, self._done + len(array)), self._first // self._block
        self._codes[:, at] = codes[:, self._first : self._first + len(self._codes)].T
        self._scale[:, at] = scale[:, group : group + len(self._scale)].T
        if zero_points is not None:
            self._zero_points[:, at] = zero_points[:, group : group + len(self._scale)].T
        self._done += len(array)
        return []

    def end(self) -> Written:
        """Return the outputs of this sweep."""
        outputs = self._coding.outputs
        codes = packed_rows(self._codes, self._coding.bits, self._coding.threads)
        written = [*outputs.codes_written(codes), *outputs.scale_written(self._scale)]
        written += outputs.zero_points_written(self._zero_points)
        self._first += len(self._codes)
        if self._first < self._length:
            self._begin_sweep()
        else:
            del self._quantizer, self._codes, self._scale, self._zero_points
        return written


class SeveralForms(Transform):
    """Several forms of one weight, for nodes that want different ones."""

    def __init__(self, coders: Sequence[Coder]) -> None:
        self._coders = coders
        self.outputs: Sequence[TensorInfo] = [info for coder in coders for info in coder.outputs]
        self.row_multiple = math.lcm(*(coder.row_multiple for coder in coders))
        self.buffers = [buffer for coder in coders for buffer in coder.buffers]
        self.sweeps = max(coder.sweeps for coder in coders)
        self._turn = 0

    @property
    def figures(self) -> ErrorFigures:
        """How far all the codes are from what they were made of."""
        return sum((coder.figures for coder in self._coders), ErrorFigures())

    def _active(self) -> list[Coder]:
        return [coder for coder in self._coders if self._turn < coder.sweeps]

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        for coder in self._coders:
            coder.begin(rows)

    def __call__(self, array: Array) -> Written:
        """Take a tile through each."""
        return [part for coder in self._active() for part in coder(array)]

    def end(self) -> Written:
        """Return what is left of each."""
        written = [part for coder in self._active() for part in coder.end()]
        self._turn += 1
        return written
