"""Weights in the pack-quantized layout: found in a file, checked, decoded tile by tile."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.dtypes import STORED, bf16_to_float32, nbytes, numpy_dtype
from modelopt_rs.errors import FormatError, UnsupportedError, quote
from modelopt_rs.layouts.decoder import Decoder
from modelopt_rs.layouts.pack_quantized import read_specs
from modelopt_rs.layouts.packed_spec import PackedSpec, as_matrix, packed_words
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.quant.formats import BITS
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import Source, TensorInfo, Tile, may_be_weight

__all__ = ["PackedWeight", "find_packed", "is_packed_weight"]

MAX_AXES: Final = 8
_SIGNS: Final = {8: 0x80, 4: 0x88, 2: 0xAA}  # of all codes of a byte


class PackedWeight:
    """One weight that a source has in packed codes.

    Parameters
    ----------
    source : Source
    name : str
        Its plain name.
    allowed : list of PackedSpec
        The ways of packing that the source names; empty: any that the shapes allow.

    Raises
    ------
    FormatError
        If its tensors don't fit each other. `UnsupportedError`: reordered columns, other bits than 2, 4 and 8, or
        experts in one tensor.
    """

    def __init__(self, source: Source, name: str, allowed: list[PackedSpec]) -> None:
        self._source, self._name = source, name
        packed = source.tensors[f"{name}_packed"]
        if name in source.tensors or packed.dtype != "I32":
            raise FormatError(f"{source.path}: tensor {quote(packed.name)} must be I32 and in place of {quote(name)}")
        self._shape = _read_shape(source, name)
        self.spec = _find_spec(source, name, self._shape, allowed)
        parts = ("_packed", "_scale", "_shape", "_zero_point")
        self.parts = tuple(name + part for part in parts if name + part in source.tensors)

    @property
    def words(self) -> str:
        """How it is stored, for people."""
        groups = f"groups of {self.spec.group_size}" if self.spec.group_size else "one scale a row"
        return f"{self.spec.bits} bits, {self.spec.scheme}, {groups}"

    def info(self, dtype: str) -> TensorInfo:
        """Return the weight as it shows, in this dtype."""
        return TensorInfo(self._name, dtype, self._shape, nbytes(dtype, self._shape))

    def buffers(self, dtype: str) -> Sequence[Buffer]:
        """Return what reading holds besides a tile."""
        rows, columns = as_matrix(self._shape)
        groups = self.spec.groups(columns)
        codes = Buffer("i4", 2 * packed_words(columns, self.spec.bits))  # with padding, and without
        scales = Buffer("f4", 3 * groups)  # as stored, widened, and where they are finite
        rounded = self._decoder(dtype, None).buffers(columns)
        if self.spec.symmetric:
            return codes, scales, *rounded
        # Zero points: of a tile; packed and unpacked.
        return codes, scales, *rounded, Buffer("u1", groups), Buffer("u1", 3 * rows * groups, per=0)

    def tiles(self, dtype: str, max_bytes: int, threads: int | None) -> Iterator[Tile]:
        """Yield the weight's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        spec, out = self.spec, None
        decode = self._decoder(dtype, threads)
        info = self.info(dtype)
        per_output = info.rows // info.shape[0]  # rows of a tile are along the last axis
        for first, codes, scale, zero_point in self._parts(max_bytes // (per_output * info.row_nbytes), threads):
            if out is None:
                out = np.empty((len(codes), as_matrix(self._shape)[1]), numpy_dtype(dtype))
            rows = out[: len(codes)]
            if not spec.group_size:
                scale = scale.reshape(-1)
                zero_point = None if zero_point is None else zero_point.reshape(-1)
            decode((codes, scale, zero_point, None, None), rows)
            yield Tile(first * per_output, rows.reshape(-1, info.columns))

    def _decoder(self, dtype: str, threads: int | None) -> Decoder:
        spec = self.spec
        kernel = (spec.format, None if spec.group_size else 0, spec.group_size)
        return Decoder(kernel, self._source.tensors[f"{self._name}_scale"].dtype, dtype, threads)

    def quantized(self, threads: int | None) -> QuantizedArray:
        """Return the codes, scales and zero points as they are, of the matrix that is stored; no floats are made."""
        spec, shape = self.spec, as_matrix(self._shape)
        found = next(self._parts(max(shape[0], 1), threads), None)
        if found is None:
            raise UnsupportedError(f"{self._source.path}: tensor {quote(self._name)} is empty")
        _, codes, scale, zero_point = found
        if spec.symmetric:
            # Codes of the array functions have two's complement, and padding bits of zero.
            codes = codes ^ np.uint8(_SIGNS[spec.bits])
            if left := shape[1] * spec.bits % 8:
                codes[:, -1] &= (1 << left) - 1
        if not spec.group_size:
            scale, zero_point = scale.reshape(-1), None if zero_point is None else zero_point.reshape(-1)
        codes, scale = np.array(codes), np.array(scale)  # what a source reads it may use again
        codes = codes.view(np.int8) if spec.bits == 8 and spec.symmetric else codes
        cut = (shape, None if spec.group_size else 0, spec.group_size)
        return QuantizedArray(codes, scale, zero_point, None, spec.bits, spec.scheme, *cut)

    def _parts(self, rows_at_a_time: int, threads: int | None) -> Iterator[tuple[int, Array, Array, Array | None]]:
        """Yield (first row, codes, scale, zero point) for so many rows, or one."""
        source, (rows, columns) = self._source, as_matrix(self._shape)
        step = max(1, min(rows, rows_at_a_time))
        codes_info, scale_info = (source.tensors[self._name + part] for part in ("_packed", "_scale"))
        zero_points = None if self.spec.symmetric else self._zero_points(threads)
        pairs = zip(
            source.tiles(codes_info.name, step * codes_info.row_nbytes),
            source.tiles(scale_info.name, step * scale_info.row_nbytes),
            strict=True,
        )
        in_codes, in_scale = (f"{source.path}: tensor {quote(info.name)}" for info in (codes_info, scale_info))
        for codes, scale in pairs:
            first, n = codes.first_row, len(codes.array)
            yield (
                first,
                _cut(codes.array, columns * self.spec.bits, in_codes, first),
                _finite(scale, scale_info.dtype, in_scale),
                None if zero_points is None else np.ascontiguousarray(zero_points[first : first + n]),
            )

    def _zero_points(self, threads: int | None) -> Array:
        """Return the zero points [rows, groups]. They are packed down the rows, so they are read at once."""
        rows, bits, name = self._shape[0], self.spec.bits, f"{self._name}_zero_point"
        packed = np.ascontiguousarray(self._source.read(name).T)
        codes = np.empty((len(packed), rows), np.uint8)
        where = f"{self._source.path}: tensor {quote(name)}"
        _core.unpack(_cut(packed, rows * bits, where, 0), bits, rows, codes, threads)
        return codes.T


def find_packed(source: Source) -> Iterator[PackedWeight]:
    """Yield the weights of a source that are packed."""
    named, allowed = read_specs(source)
    for name, info in source.tensors.items():
        weight = name.removesuffix("_packed")
        # Bytes are codes of a named format, which is another layout.
        if is_packed_weight(name) and info.dtype != "U8":
            yield PackedWeight(source, weight, [named[weight]] if weight in named else allowed)


def is_packed_weight(name: str) -> bool:
    """Whether a tensor has the name of codes of a weight."""
    weight = name.removesuffix("_packed")
    return weight != name and may_be_weight(weight)


def _read_shape(source: Source, weight: str) -> tuple[int, ...]:
    name = f"{weight}_shape"
    where = f"{source.path}: tensor {quote(name)}"
    info = source.tensors.get(name)
    if info is None:
        raise FormatError(f"{where} is missing")
    if info.dtype not in ("I64", "I32") or len(info.shape) != 1 or not 2 <= info.shape[0] <= MAX_AXES:
        raise FormatError(f"{where} must be I64 (2,), or of a convolution (axes,), got {info.dtype} {info.shape}")
    if len(source.tensors[f"{weight}_packed"].shape) != 2:
        raise UnsupportedError(f"{where}: experts in one tensor are not supported")
    shape = tuple(int(n) for n in source.read(name))
    if min(shape) < 0:
        raise FormatError(f"{where} is ({', '.join(f'{n:,}' for n in shape)})")
    return shape


def _find_spec(source: Source, weight: str, shape: tuple[int, ...], allowed: list[PackedSpec]) -> PackedSpec:
    """Return the one way of packing that the shapes of the weight's tensors allow, or raise."""
    where = f"{source.path}: tensor {quote(weight + '_packed')}"
    if f"{weight}_g_idx" in source.tensors:
        raise UnsupportedError(f"{where}: reordered columns ({quote(weight + '_g_idx')}) are not supported")
    scale = source.tensors.get(f"{weight}_scale")
    if scale is None or scale.dtype not in STORED.values():
        raise FormatError(f"{where}: {quote(weight + '_scale')} must be there and be F32, F16 or BF16")
    if len(scale.shape) != 2:
        raise UnsupportedError(f"{where}: a scale of shape {scale.shape} is not supported")
    symmetric = f"{weight}_zero_point" not in source.tensors
    candidates = allowed
    if not allowed:
        groups = scale.shape[1]
        size = -(-as_matrix(shape)[1] // groups) if groups > 1 else None
        candidates = [PackedSpec(bits, symmetric, size) for bits in BITS]
    fits = [spec for spec in candidates if _shapes_fit(source, weight, shape, spec)]
    if len(fits) == 1:
        return fits[0]
    shapes = f"{shape} as {source.tensors[weight + '_packed'].shape} with scale {scale.shape}"
    if fits:
        raise FormatError(f"{where}: {shapes} may have {' or '.join(str(s.bits) for s in fits)} bits")
    said = "; ".join(map(str, candidates[:10])) or "no way of packing in the config"
    raise FormatError(f"{where}: {shapes} fits none of: {said}")


def _shapes_fit(source: Source, weight: str, shape: tuple[int, ...], spec: PackedSpec) -> bool:
    rows, columns = as_matrix(shape)
    groups = spec.groups(columns)
    expected = {
        f"{weight}_packed": (rows, packed_words(columns, spec.bits)),
        f"{weight}_scale": (rows, groups),
    }
    zero_point = source.tensors.get(f"{weight}_zero_point")
    if spec.symmetric != (zero_point is None) or (zero_point is not None and zero_point.dtype != "I32"):
        return False
    if not spec.symmetric:
        expected[f"{weight}_zero_point"] = (packed_words(rows, spec.bits), groups)
    return all(source.tensors[name].shape == form for name, form in expected.items())


def _cut(packed: Array, nbits: int, where: str, first_row: int) -> Array:
    """Return each row's bytes without the padding behind its `nbits` bits, which must be zero."""
    stream = packed.view(np.uint8)
    nbytes = -(-nbits // 8)
    dirty = (stream[:, nbytes:] != 0).any(axis=1)
    if nbits % 8:
        dirty |= stream[:, nbytes - 1] >> (nbits % 8) != 0
    if dirty.any():
        raise FormatError(f"{where} row {first_row + int(dirty.argmax()):,}: padding bits are not zero")
    return np.ascontiguousarray(stream[:, :nbytes])


def _finite(tile: Tile, dtype: str, where: str) -> Array:
    """Return scales as float32; they must be finite."""
    scale = tile.array
    if dtype == "BF16":
        scale = bf16_to_float32(scale)
    scale = np.ascontiguousarray(scale, np.float32)
    if not np.isfinite(scale).all():
        row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(scale)))
        value: Any = scale[row, column]
        shown = "NaN" if np.isnan(value) else str(value)
        raise FormatError(f"{where} row {tile.first_row + row:,}: scale is {shown}")
    return scale
