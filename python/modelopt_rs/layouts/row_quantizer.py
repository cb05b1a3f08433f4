"""`RowQuantizer`: rows of one tensor in; packed codes, scales and zero points out, in buffers made once.

Ranges of channels and of groups lie within rows, so that any way of cutting a tensor into tiles gives the
same bytes.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Parts, ScaleDtype
from modelopt_rs.dtypes import FLOATS
from modelopt_rs.layouts.decoder import Decoder
from modelopt_rs.layouts.packed_spec import PackedSpec, as_matrix, packed_words
from modelopt_rs.quant.search import Scales
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo

__all__ = ["ROUNDED", "RowQuantizer", "quantizer_buffers", "scales_of"]

# What scales are rounded to before codes are made; those that are computed in the dtype that is stored are not.
ROUNDED: Final[Mapping[str, ScaleDtype]] = {"F32": None, "F16": "float16", "BF16": "bfloat16"}


PLAIN: Final = Scales()


def scales_of(search: Any, dtype: str) -> Scales:
    """Return where scales come from that are stored in a dtype of files."""
    return Scales(search, ROUNDED[dtype])


def quantizer_buffers(columns: int, spec: PackedSpec) -> list[Buffer]:
    """Return what a `RowQuantizer` holds: packed codes, codes without padding, scales, numbers, zero points."""
    groups = spec.groups(columns)
    buffers = [
        Buffer("i4", packed_words(columns, spec.bits)),
        Buffer("u1", -(-columns * spec.bits // 8)),
        Buffer("f4", groups),
        Buffer("f4", columns),
    ]
    return buffers if spec.symmetric else [*buffers, Buffer("u1", groups)]


class RowQuantizer:
    """Quantizes tiles of one tensor; what a call returns is valid until the next call.

    Parameters
    ----------
    info : TensorInfo
        A weight of floats; all of its axes but the first are one.
    spec : PackedSpec
        How its rows are coded.
    rows : int
        The most rows of a tile.
    threads : int or None
    nonfinite : {"raise", "saturate"}
    scales : Scales
        Where scales come from.
    precision : {"F32", "F16", "BF16"}
        The dtype in which its loader multiplies.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.stream.buffer import Buffer
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
        self,
        info: TensorInfo,
        spec: PackedSpec,
        rows: int,
        threads: int | None,
        nonfinite: str = "raise",
        scales: Scales = PLAIN,
        precision: str = "F32",
    ) -> None:
        columns = as_matrix(info.shape)[1]
        self._dtype = info.dtype
        self._threads = threads
        self._nonfinite = nonfinite
        self._scales = scales
        # A whole row is one group: so there is one form of scale, [rows, groups].
        self._spec = (spec.format, None, spec.group_size or columns)
        packed, codes, scale, dense, *zero_point = quantizer_buffers(columns, spec)
        self._packed = packed.empty(rows)
        self._packed[:, -1:] = 0
        # The bytes of the codes are those of the words, but where a row does not fill its last word.
        self._padded = codes.elements < 4 * packed.elements
        self._codes = codes.empty(rows) if self._padded else self._packed.view(np.uint8)
        self._scale, self._dense = scale.empty(rows), dense.empty(rows)
        self._zero_point = zero_point[0].empty(rows) if zero_point else None
        self._decode = Decoder(self._spec, precision, "F32", threads)

    def __call__(self, array: Array) -> tuple[Array, Array, Array | None]:
        """Return (packed codes, scale, zero points or None) of the rows of `array`."""
        parts = self._parts(len(array))
        dtype = FLOATS[self._dtype]
        self._scales.quantize(array, parts, self._spec, self._nonfinite, dtype, self._threads)
        packed = self._packed[: len(array)]
        if self._padded:
            np.copyto(packed.view(np.uint8)[:, : self._codes.shape[1]], self._codes[: len(array)])
        return packed, parts[1], parts[2]

    def figures(self, array: Array) -> ErrorFigures:
        """Return how far the codes of the last call, dequantized, are from `array`, that call's input."""
        rows = len(array)
        dense = self._decode.numbers(self._parts(rows), self._dense[:rows])
        return ErrorFigures(*_core.error_stats(array, dense, FLOATS[self._dtype], self._threads))

    def _parts(self, rows: int) -> Parts:
        zero_point = None if self._zero_point is None else self._zero_point[:rows]
        return self._codes[:rows], self._scale[:rows], zero_point, None, None
