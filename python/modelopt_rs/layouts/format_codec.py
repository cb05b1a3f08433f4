"""Tiles to codes of a named format and back: what all layouts of such formats share."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.dtypes import FLOATS, nbytes, numpy_dtype, widened
from modelopt_rs.errors import FormatError, UnsupportedError, quote
from modelopt_rs.layouts.decoder import Decoder
from modelopt_rs.layouts.format_spec import FormatSpec
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import Source, TensorInfo, Tile
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["FormatEncoder", "FormatWeight"]

NAN_EXPONENT, EXPONENT_BIAS = 255, 127  # of an E8M0 scale


class FormatEncoder(Transform):
    """A matrix to codes and scales of a named format, in rows that lie as the matrix does.

    Parameters
    ----------
    info : TensorInfo
        A matrix of floats that the layout can hold.
    spec : FormatSpec
    outputs : (TensorInfo, TensorInfo)
        The codes, and the scales.
    nonfinite : {"raise", "saturate"}
    threads : int or None

    Attributes
    ----------
    figures : ErrorFigures
        How far the codes so far are from what they were made of.
    """

    def __init__(
        self,
        info: TensorInfo,
        spec: FormatSpec,
        outputs: Sequence[TensorInfo],
        nonfinite: str,
        threads: int | None,
    ) -> None:
        self._info, self._spec, self._nonfinite, self._threads = info, spec, nonfinite, threads
        self.outputs: Sequence[TensorInfo] = outputs
        self._codes_info, self._scale_info = outputs[:2]
        columns = info.columns
        self.row_multiple = spec.group_size[0] if isinstance(spec.group_size, tuple) else 1
        self._row_bytes = self._codes_info.nbytes // info.rows
        scales = int(np.prod(spec.scale_shape(self.row_multiple, columns)))
        self._held = (
            Buffer("u1", self._row_bytes),
            Buffer(numpy_dtype(self._scale_info.dtype).str, scales, per=self.row_multiple),
            Buffer("f4", columns),
        )
        self.buffers: Sequence[Buffer] = self._held
        self._global: Array | None = None
        self.figures = ErrorFigures()

    def _absmax(self) -> float | None:
        """The largest magnitude of the whole tensor, where scales depend on it."""
        return None

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        self._codes, self._scale, self._dense = (buffer.empty(rows) for buffer in self._held)

    def __call__(self, array: Array) -> Rows:
        """Quantize a tile."""
        rows, columns = array.shape
        shape = self._spec.scale_shape(rows, columns)
        scale = self._scale.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        parts = (self._codes[:rows], scale, None, None, self._global)
        spec, dtype = (self._spec.format, self._spec.axis, self._spec.group_size), FLOATS[self._info.dtype]
        _core.quantize(array, parts, spec, self._nonfinite, self._absmax(), dtype, self._threads)
        dense = self._dense[:rows]
        _core.dequantize(parts, spec, dense, None, self._threads)
        self.figures += ErrorFigures(*_core.error_stats(array, dense, dtype, self._threads))
        columns_of_scale = self._scale_info.columns
        return [(self._codes_info.name, parts[0]), (self._scale_info.name, scale.reshape(-1, columns_of_scale))]

    def end(self) -> Rows:
        """Let go of the buffers."""
        del self._codes, self._scale, self._dense
        return []

    def starts(self, row: int) -> Mapping[str, int] | None:
        """Return the row of each output."""
        of_rows = {self._codes_info.name: row, self._scale_info.name: row // self.row_multiple}
        return {**{info.name: 0 for info in self.outputs}, **of_rows}


@dataclass(frozen=True, slots=True)
class FormatWeight:
    """One weight that a source has as codes, and scales that lie as its matrix does or none.

    Attributes
    ----------
    source : Source
    name : str
        Its plain name.
    shape : tuple of int
        Two axes where there are scales for parts of it.
    spec : FormatSpec
    coded : sequence of str
        The tensors of codes, of scales and, if there is one, of the global scale.
    beside : sequence of str
        Tensors that say how its layer's activations are coded; as floats it has none.
    """

    source: Source
    name: str
    shape: tuple[int, ...]
    spec: FormatSpec
    coded: Sequence[str]
    beside: Sequence[str] = ()

    @property
    def parts(self) -> Sequence[str]:
        """The source's tensors that stand for it; it shows in the place of the codes."""
        return (*self.coded, *self.beside)

    @property
    def words(self) -> str:
        """How it is stored, for people."""
        return self.spec.words

    def info(self, dtype: str) -> TensorInfo:
        """Return the weight as it shows, in this dtype."""
        return TensorInfo(self.name, dtype, self.shape, nbytes(dtype, self.shape))

    def buffers(self, dtype: str) -> Sequence[Buffer]:
        """Return what reading holds besides a tile."""
        codes = self.source.tensors[self.coded[0]]
        if len(self.coded) < 2:
            return (Buffer("u1", codes.row_nbytes),)
        scale = self.source.tensors[self.coded[1]]
        per = self._rows_together()
        # Scales as stored, widened, and where they are finite.
        held = Buffer("u1", codes.row_nbytes), Buffer("u1", 3 * max(scale.row_nbytes, 4), per=per)
        return *held, *self._decoder(dtype, None).buffers(self.info(dtype).columns)

    def _decoder(self, dtype: str, threads: int | None) -> Decoder:
        spec = (self.spec.format, self.spec.axis, self.spec.group_size)
        precision = self.source.tensors[self.coded[1]].dtype if len(self.coded) > 1 else "F32"
        return Decoder(spec, precision, dtype, threads)

    def _rows_together(self) -> int:
        return self.spec.group_size[0] if isinstance(self.spec.group_size, tuple) else 1

    def tiles(self, dtype: str, max_bytes: int, threads: int | None) -> Iterator[Tile]:
        """Yield the weight's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        rows, columns = self.info(dtype).rows, self.info(dtype).columns
        decode, whole, together = self._decoder(dtype, threads), self._global_scale(), self._rows_together()
        step = max(1, min(rows, max_bytes // self.info(dtype).row_nbytes) // together) * together
        out = np.empty((min(step, rows), columns), numpy_dtype(dtype))
        codes_info = self.source.tensors[self.coded[0]]
        scales = self._scales(step)
        for tile in self.source.tiles(codes_info.name, step * codes_info.row_nbytes):
            dense = out[: len(tile.array)]
            decode((np.ascontiguousarray(tile.array).view(np.uint8), next(scales), None, None, whole), dense)
            yield Tile(tile.first_row, dense)

    def quantized(self, threads: int | None) -> QuantizedArray:
        """Return the codes and scales as they are; no floats are made."""
        shape, spec = self.info("F32").shape, self.spec
        if 0 in shape:
            raise UnsupportedError(f"{self.source.path}: tensor {quote(self.name)} is empty")
        codes = np.array(self.source.read(self.coded[0])).view(np.uint8).reshape(shape[0], -1)
        scale = np.array(next(self._scales(self.info("F32").rows)))
        return QuantizedArray(
            codes if spec.group_size is not None else codes.reshape(shape),
            scale,
            shape=tuple(shape),
            axis=spec.axis,
            group_size=spec.group_size,
            format=spec.format,
            global_scale=self._global_scale(),
        )

    def _scales(self, step: int) -> Iterator[Array]:
        """Yield the scales of each `step` rows, as the array functions want them; they must be finite."""
        if len(self.coded) < 2:
            yield from itertools.repeat(np.ones((), np.float32))
        info, shown = self.source.tensors[self.coded[1]], self.info("F32")
        rows, columns = shown.rows, shown.columns
        if self.spec.axis is None and self.spec.group_size is None:
            whole = self._checked(Tile(0, self.source.read(info.name).reshape(1, -1)), info).reshape(())
            while True:
                yield whole
        together = self._rows_together()
        for tile in self.source.tiles(info.name, step // together * info.row_nbytes):
            first = tile.first_row * together
            shape = self.spec.scale_shape(min(step, rows - first), columns)
            yield self._checked(tile, info).reshape(shape)

    def _checked(self, tile: Tile, info: TensorInfo) -> Array:
        where = f"{self.source.path}: tensor {quote(info.name)}"
        if info.dtype in FLOATS:
            scale = np.ascontiguousarray(widened(tile.array, info.dtype), np.float32)
            bad = ~np.isfinite(scale)
        else:
            scale = np.ascontiguousarray(tile.array)
            bad = scale % 128 == 127 if info.dtype == "F8_E4M3" else scale == NAN_EXPONENT  # E4M3 and E8M0 have one NaN
            if self.spec.format.startswith("fp8"):  # whose scales are floats
                scale = np.ldexp(np.float32(1), scale.astype(np.int32) - EXPONENT_BIAS)
        if bad.any():
            row = tile.first_row + int(bad.any(axis=-1).argmax())
            raise FormatError(f"{where} row {row:,}: scale is not a finite number")
        return scale

    def _global_scale(self) -> Array | None:
        if len(self.coded) < 3:
            return None
        return np.array(self.source.read(self.coded[2]), np.float32).reshape(())
