"""`RowQuantizer`: rows of one tensor in; packed codes, scales and zero points out, in buffers made once.

Ranges of channels and of groups lie within rows, so that any way of cutting a tensor into tiles gives the
same bytes. What is held for each row besides the input is counted in one place, `bytes_per_row`.
"""

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Parts
from modelopt_rs.dtypes import FLOATS
from modelopt_rs.layouts.packed_spec import PackedSpec, words
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo

__all__ = ["RowQuantizer", "bytes_per_row"]


def bytes_per_row(info: TensorInfo, spec: PackedSpec) -> int:
    """Return how many bytes a `RowQuantizer` holds for each row that it takes at a time."""
    columns = info.shape[1]
    codes = 4 * words(columns, spec.bits) + -(-columns * spec.bits // 8)
    scales = (4 if spec.symmetric else 8) * spec.groups(columns)
    return codes + scales + 4 * columns


class RowQuantizer:
    """Quantizes tiles of one tensor; what a call returns is valid until the next call.

    Parameters
    ----------
    info : TensorInfo
        A matrix of floats.
    spec : PackedSpec
        How its rows are coded.
    rows : int
        The most rows of a tile.
    threads : int or None
    nonfinite : {"raise", "saturate"}

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.stream.model import TensorInfo
    >>> from modelopt_rs.layouts.packed_spec import PackedSpec
    >>> from modelopt_rs.layouts.row_quantizer import RowQuantizer
    >>> info = TensorInfo("fc.weight", "F32", (2, 8), 64)
    >>> quantizer = RowQuantizer(info, PackedSpec(8), rows=2, threads=None)
    >>> packed, scale, zero_point = quantizer(np.ones((2, 8), np.float32))
    >>> packed.shape, scale.shape, zero_point
    ((2, 2), (2, 1), None)
    """

    def __init__(
        self, info: TensorInfo, spec: PackedSpec, rows: int, threads: int | None, nonfinite: str = "raise"
    ) -> None:
        columns = info.shape[1]
        self._dtype = info.dtype
        self._threads = threads
        self._nonfinite = nonfinite
        self._symmetric = spec.symmetric
        # A whole row is one group: so there is one form of scale, [rows, groups].
        self._spec = (spec.bits, spec.scheme, None, spec.group_size or columns)
        self._packed = np.zeros((rows, words(columns, spec.bits)), np.int32)
        row_bytes = -(-columns * spec.bits // 8)
        # The bytes of the codes are those of the words, but where a row does not fill its last word.
        self._padded = row_bytes < 4 * self._packed.shape[1]
        self._codes = np.empty((rows, row_bytes), np.uint8) if self._padded else self._packed.view(np.uint8)
        groups = spec.groups(columns)
        self._scale = np.empty((rows, groups), np.float32)
        self._zero_point = None if self._symmetric else np.empty((rows, groups), np.uint8)
        self._dense = np.empty((rows, columns), np.float32)

    def __call__(self, array: Array) -> tuple[Array, Array, Array | None]:
        """Return (packed codes, scale, zero points or None) of the rows of `array`."""
        parts = self._parts(len(array))
        dtype = FLOATS[self._dtype]
        _core.quantize(array, parts, self._spec, self._nonfinite, self._symmetric, dtype, self._threads)
        packed = self._packed[: len(array)]
        if self._padded:
            np.copyto(packed.view(np.uint8)[:, : self._codes.shape[1]], self._codes[: len(array)])
        return packed, parts[1], parts[2]

    def figures(self, array: Array) -> ErrorFigures:
        """Return how far the codes of the last call, dequantized, are from `array`, that call's input."""
        rows = len(array)
        dense = self._dense[:rows]
        _core.dequantize(self._parts(rows), self._spec, dense, self._symmetric, None, self._threads)
        return ErrorFigures(*_core.error_stats(array, dense, FLOATS[self._dtype], self._threads))

    def _parts(self, rows: int) -> Parts:
        zero_point = None if self._zero_point is None else self._zero_point[:rows]
        return self._codes[:rows], self._scale[:rows], zero_point, None
