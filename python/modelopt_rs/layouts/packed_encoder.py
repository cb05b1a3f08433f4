"""Tiles of a weight to the tensors of the pack-quantized layout."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.dtypes import rounded
from modelopt_rs.layouts.compressed_tensors import dense_on_loading, ignored, targets_of
from modelopt_rs.layouts.decoder import Decoder
from modelopt_rs.layouts.modules import Modules
from modelopt_rs.layouts.pack_quantized import packed_metadata, packed_tensors, quantization_config
from modelopt_rs.layouts.packed_spec import PackedSpec, as_matrix, packed_words
from modelopt_rs.layouts.packed_weight import PackedWeight, find_packed, is_packed_weight
from modelopt_rs.layouts.row_quantizer import RowQuantizer, quantizer_buffers, scales_of
from modelopt_rs.quant.by_inputs import ByInputs, Moments
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import Source, TensorInfo, may_be_weight
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["PACK_QUANTIZED", "Quantize", "pack_zero_points"]

# Elements of a row that share a scale where nothing is said; 0: the whole row.
DEFAULT_GROUP = {8: 0, 4: 32, 2: 32}


class Quantize(Transform):
    """Rows to packed codes, scales and zero points.

    Parameters
    ----------
    info : TensorInfo
        A weight of floats that the layout can hold.
    spec : PackedSpec
        How it is packed.
    options : QuantizeOptions
        What to do with NaN and infinities, and where scales come from.
    threads : int or None

    Attributes
    ----------
    figures : ErrorFigures
        How far the codes so far are from what they were made of.
    """

    def __init__(self, info: TensorInfo, spec: PackedSpec, options: Any, threads: int | None) -> None:
        self._info, self._spec, self._nonfinite, self._threads = info, spec, options.nonfinite, threads
        self._scale_dtype: str = options.stored_scales(spec.bits, info)
        self._scales = scales_of(options.sought, self._scale_dtype)
        self.outputs: Sequence[TensorInfo] = packed_tensors(info.name, info.shape, spec, self._scale_dtype)
        # Rows of a tile are along the last axis; one output of a convolution has several.
        self._columns = as_matrix(info.shape)[1]
        self._per_output = info.rows // info.shape[0]
        rounded = Decoder((spec.format, None, None), self._scale_dtype, "F32", threads).buffers(self._columns)
        buffers = [*quantizer_buffers(self._columns, spec), *rounded]
        self.buffers = [each.times(1, self._per_output) for each in buffers]
        # Zero points are packed along the first axis: a word of them has those of 32 / bits outputs.
        self.row_multiple = self._per_output * (1 if spec.symmetric else 32 // spec.bits)
        self.figures = ErrorFigures()

    def weigh_by(self, moments: Moments) -> None:
        """Search scales by the mean squares of the inputs, which are held: of each row by itself."""
        self._scales = ByInputs(self._scales.search, self._scales.dtype, moments)

    def round_by(self, moments: Moments) -> None:
        """Make codes by what is known of the inputs: of the whole matrix at once."""
        self.weigh_by(moments)
        self.row_multiple = self._info.rows
        # A matrix of second moments, as it is handed over, its factor and panels; weights as they are corrected.
        self.buffers = [*self.buffers, Buffer("f8", 3 * self._columns**2, per=0), Buffer("f4", self._columns)]

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        rows = min(rows, self._info.rows)
        outputs = rows // self._per_output
        how = (outputs, self._threads, self._nonfinite, self._scales, self._scale_dtype)
        self._quantizer = RowQuantizer(self._info, self._spec, *how)

    def __call__(self, array: Array) -> Rows:
        """Quantize a tile."""
        name = self._info.name
        array = array.reshape(-1, self._columns)
        packed, scale, zero_point = self._quantizer(array)
        self.figures += self._quantizer.figures(array)
        parts = [(f"{name}_packed", packed), (f"{name}_scale", rounded(scale, self._scale_dtype))]
        if zero_point is not None:
            parts.append((f"{name}_zero_point", pack_zero_points(zero_point, self._spec.bits, self._threads)))
        return parts

    def end(self) -> Rows:
        """Let go of the buffers, or there would be some for each tensor; return the shape."""
        del self._quantizer
        return [(f"{self._info.name}_shape", np.array(self._info.shape, np.int64))]

    def starts(self, row: int) -> Mapping[str, int] | None:
        """Return the row of each output: zero points are packed along the rows."""
        name, spec, row = self._info.name, self._spec, row // self._per_output
        starts = {f"{name}_packed": row, f"{name}_scale": row, f"{name}_shape": 0}
        return starts if spec.symmetric else {**starts, f"{name}_zero_point": row * spec.bits // 32}


class _PackQuantized:
    name: Final = "pack-quantized"
    state: Final = "quantized"
    formats: Final = ()
    names_weights: Final = True

    def mark(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        return next((name for name in tensors if is_packed_weight(name)), None)

    def find(self, source: Source) -> Iterator[PackedWeight]:
        return find_packed(source)

    def spec(self, options: Any) -> PackedSpec:
        size = DEFAULT_GROUP[options.bits] if options.group_size is None else options.group_size
        symmetric = options.bits == 8 if options.scheme is None else options.scheme == "symmetric"
        return PackedSpec(options.bits, symmetric, size or None)

    def can_hold(self, info: TensorInfo) -> bool:
        return len(info.shape) >= 2 and may_be_weight(info.name)

    def why_not(self, info: TensorInfo, spec: PackedSpec) -> str | None:
        size = spec.group_size
        columns = as_matrix(info.shape)[1]
        if size and columns % size:
            return f"rows of {columns:,} are no multiple of the group size {size:,}"
        return None

    def encode(self, info: TensorInfo, spec: PackedSpec, options: Any, threads: int | None) -> Quantize:
        return Quantize(info, spec, options, threads)

    def describe(
        self, specs: Mapping[str, PackedSpec], modules: Modules
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        targets = targets_of(specs, modules)
        config = quantization_config(targets, ignore=ignored(specs, modules)) | dense_on_loading(targets)
        return packed_metadata(specs) if specs else {}, config


PACK_QUANTIZED: Final = _PackQuantized()
"""The layout of uniform codes."""


def pack_zero_points(zero_points: Array, bits: int, threads: int | None) -> Array:
    """Pack unsigned zero points [out, groups] along the first axis, as the layout wants them.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.layouts.packed_encoder import pack_zero_points
    >>> pack_zero_points(np.full((4, 1), 1, np.uint8), 8, None)
    array([[16843009]], dtype=int32)
    """
    columns = np.ascontiguousarray(zero_points.T)
    stream = np.zeros((len(columns), packed_words(len(zero_points), bits)), np.int32)
    packed = np.empty((len(columns), -(-len(zero_points) * bits // 8)), np.uint8)
    _core.pack(columns, bits, packed, threads)
    np.copyto(stream.view(np.uint8)[:, : packed.shape[1]], packed)
    return np.ascontiguousarray(stream.T)
