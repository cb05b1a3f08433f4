"""A view of a source in which packed weights show as plain floats."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import numpy as np

from modelopt_rs import _core
from modelopt_rs._core import FormatError, UnsupportedError
from modelopt_rs.files.bitmask import Decompressed
from modelopt_rs.files.messages import quote
from modelopt_rs.files.model import Array, Source, TensorInfo, Tile, bf16_to_float32
from modelopt_rs.files.pack_quantized import (
    BITS,
    METADATA_KEY,
    PackedSpec,
    is_weight,
    read_specs,
    words,
)
from modelopt_rs.files.safetensors import numpy_dtype

__all__ = ["Dequantized", "check_no_graph", "plain"]

_READ_BYTES = 16 << 20


class Dequantized:
    """A source's tensors with each packed weight in its plain form, dequantized tile by tile as it is read.

    Every other tensor shows as it is. How a weight is packed is what `config.json` or the file's metadata
    say, and the shapes of its tensors must agree; where neither says anything, the shapes decide.

    Parameters
    ----------
    source : Source
        The model; closing the view closes it.
    dtype : {"F32", "F64", "F16", "BF16"}
        Of the plain weights.
    threads : int, optional
        For the arithmetic. The result does not depend on it.

    Attributes
    ----------
    source : Source
        The model as it is.
    specs : mapping of str to PackedSpec
        How each packed weight is packed, by its plain name.

    Raises
    ------
    FormatError
        If the tensors of a packed weight don't fit each other. `UnsupportedError`: reordered columns, other
        bits than 2, 4 and 8, or other than 2 axes.
    """

    def __init__(
        self,
        source: Source,
        *,
        dtype: str = "F32",
        threads: int | None = None,
    ) -> None:
        self.source = source
        self.path: Path = source.path
        self._dtype = dtype
        self._threads = threads
        if dtype not in ("F32", "F64", "F16", "BF16"):
            raise ValueError(f"Dequantized: dtype must be F32, F64, F16 or BF16, got {dtype!r:.80}")
        item = numpy_dtype(dtype).itemsize
        named, allowed = read_specs(source)
        specs = {}
        shown: dict[str, TensorInfo] = {}  # by the name of the codes
        hidden: set[str] = set()
        for name, info in source.tensors.items():
            weight = name.removesuffix("_packed")
            if weight == name or not is_weight(weight):
                continue
            if weight in source.tensors or info.dtype != "I32":
                raise FormatError(f"{self.path}: tensor {quote(name)} must be I32 and in place of {quote(weight)}")
            shape = _read_shape(source, weight)
            specs[weight] = _find_spec(source, weight, shape, [named[weight]] if weight in named else allowed)
            shown[name] = TensorInfo(weight, dtype, shape, item * shape[0] * shape[1])
            hidden |= {f"{weight}_scale", f"{weight}_shape", f"{weight}_zero_point"}
        plain = (shown.get(name, info) for name, info in source.tensors.items() if name not in hidden)
        self._tensors = {info.name: info for info in plain}
        self.specs: Mapping[str, PackedSpec] = MappingProxyType(specs)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, a packed weight under its plain name in the place of its codes."""
        return MappingProxyType(self._tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The source's own metadata, without what they say of packing."""
        return MappingProxyType({k: v for k, v in self.source.metadata.items() if k != METADATA_KEY})

    def origin(self, name: str) -> str:
        """Return the name of the source's tensor that stands for `name`: its codes if it is packed."""
        return f"{name}_packed" if name in self.specs else name

    def read(self, name: str) -> Array:
        """Return one tensor, whole, as a new array of its own shape."""
        if name not in self.specs:
            return self.source.read(name)
        out = np.empty(self._tensors[name].shape, numpy_dtype(self._dtype))
        for first, codes, scale, zero_point in self._parts(name, _READ_BYTES):
            self._dequantize(name, (codes, scale, zero_point), out[first : first + len(codes)])
        return out

    def tiles(self, name: str, max_bytes: int) -> Iterator[Tile]:
        """Yield a tensor's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        if name not in self.specs:
            yield from self.source.tiles(name, max_bytes)
            return
        out = None
        for first, codes, scale, zero_point in self._parts(name, max_bytes):
            if out is None:
                out = np.empty((len(codes), self._tensors[name].shape[1]), numpy_dtype(self._dtype))
            self._dequantize(name, (codes, scale, zero_point), out[: len(codes)])
            yield Tile(first, out[: len(codes)])

    def _dequantize(self, name: str, parts: tuple[Array, Array, Array | None], out: Array) -> None:
        codes, scale, zero_point = parts
        spec = self.specs[name]
        scheme = "symmetric" if spec.symmetric else "asymmetric"
        kernel = (spec.bits, scheme, None if spec.group_size else 0, spec.group_size)
        if not spec.group_size:
            scale = scale.reshape(-1)
            zero_point = None if zero_point is None else zero_point.reshape(-1)
        dtype: Literal["bf16"] | None = "bf16" if self._dtype == "BF16" else None
        _core.dequantize((codes, scale, zero_point, None), kernel, out, spec.symmetric, dtype, self._threads)

    def _parts(self, name: str, max_bytes: int) -> Iterator[tuple[int, Array, Array, Array | None]]:
        """Yield (first row, codes, scale, zero point) for as many rows as fit `max_bytes` as floats."""
        rows, columns = self._tensors[name].shape
        if rows == 0 or columns == 0:
            return
        spec = self.specs[name]
        step = max(1, min(rows, max_bytes // self._tensors[name].row_nbytes))
        codes_info, scale_info = (self.source.tensors[name + part] for part in ("_packed", "_scale"))
        zero_points = None if spec.symmetric else self._zero_points(name, rows)
        pairs = zip(
            self.source.tiles(codes_info.name, step * codes_info.row_nbytes),
            self.source.tiles(scale_info.name, step * scale_info.row_nbytes),
            strict=True,
        )
        in_codes, in_scale = (f"{self.path}: tensor {quote(info.name)}" for info in (codes_info, scale_info))
        for codes, scale in pairs:
            first, n = codes.first_row, len(codes.array)
            yield (
                first,
                _cut(codes.array, columns * spec.bits, in_codes, first),
                _finite(scale, scale_info.dtype, in_scale),
                None if zero_points is None else np.ascontiguousarray(zero_points[first : first + n]),
            )

    def _zero_points(self, name: str, rows: int) -> Array:
        """Return the zero points [rows, groups]. They are packed down the rows, so they are read at once."""
        bits = self.specs[name].bits
        packed = np.ascontiguousarray(self.source.read(f"{name}_zero_point").T)
        where = f"{self.path}: tensor {quote(name + '_zero_point')}"
        codes = np.empty((len(packed), rows), np.uint8)
        _core.unpack(_cut(packed, rows * bits, where, 0), bits, rows, codes, self._threads)
        return codes.T

    def close(self) -> None:
        """Close the source."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


def plain(source: Source, *, dtype: str = "F32", threads: int | None = None) -> Dequantized:
    """Return a view of a source in which all weights show as plain floats, however they are stored."""
    check_no_graph(source)
    return Dequantized(Decompressed(source, threads=threads), dtype=dtype, threads=threads)


def check_no_graph(source: Source) -> None:
    """Refuse ONNX models, in which nodes of the graph dequantize.

    Raises
    ------
    UnsupportedError
        If it is one.
    """
    if getattr(source, "model", None) is not None:
        raise UnsupportedError(
            f"{source.path}: an ONNX model can't be dequantized: its graph computes with the quantized weights; "
            "go back to the model that it was made of"
        )


def _read_shape(source: Source, weight: str) -> tuple[int, int]:
    name = f"{weight}_shape"
    where = f"{source.path}: tensor {quote(name)}"
    info = source.tensors.get(name)
    if info is None:
        raise FormatError(f"{where} is missing")
    if info.dtype not in ("I64", "I32") or info.shape not in ((2,), (3,)):
        raise FormatError(f"{where} must be I64 (2,), got {info.dtype} {info.shape}")
    if info.shape == (3,):
        raise UnsupportedError(f"{where}: weights of 3 axes are not supported")
    rows, columns = source.read(name).tolist()
    if rows < 0 or columns < 0:
        raise FormatError(f"{where} is ({rows:,}, {columns:,})")
    return rows, columns


def _find_spec(source: Source, weight: str, shape: tuple[int, int], allowed: list[PackedSpec]) -> PackedSpec:
    """Return the one way of packing that the shapes of the weight's tensors allow, or raise."""
    where = f"{source.path}: tensor {quote(weight + '_packed')}"
    if f"{weight}_g_idx" in source.tensors:
        raise UnsupportedError(f"{where}: reordered columns ({quote(weight + '_g_idx')}) are not supported")
    scale = source.tensors.get(f"{weight}_scale")
    if scale is None or scale.dtype not in ("F32", "F16", "BF16"):
        raise FormatError(f"{where}: {quote(weight + '_scale')} must be there and be F32, F16 or BF16")
    if len(scale.shape) != 2:
        raise UnsupportedError(f"{where}: a scale of shape {scale.shape} is not supported")
    symmetric = f"{weight}_zero_point" not in source.tensors
    candidates = allowed
    if not allowed:
        groups = scale.shape[1]
        size = -(-shape[1] // groups) if groups > 1 else None
        candidates = [PackedSpec(bits, symmetric, size) for bits in BITS]
    fits = [spec for spec in candidates if _shapes_fit(source, weight, shape, spec)]
    if len(fits) == 1:
        return fits[0]
    shapes = f"{shape} as {source.tensors[weight + '_packed'].shape} with scale {scale.shape}"
    if fits:
        raise FormatError(f"{where}: {shapes} may have {' or '.join(str(s.bits) for s in fits)} bits")
    said = "; ".join(map(str, candidates[:10])) or "no way of packing in the config"
    raise FormatError(f"{where}: {shapes} fits none of: {said}")


def _shapes_fit(source: Source, weight: str, shape: tuple[int, int], spec: PackedSpec) -> bool:
    rows, columns = shape
    groups = spec.groups(columns)
    expected = {
        f"{weight}_packed": (rows, words(columns, spec.bits)),
        f"{weight}_scale": (rows, groups),
    }
    zero_point = source.tensors.get(f"{weight}_zero_point")
    if spec.symmetric != (zero_point is None) or (zero_point is not None and zero_point.dtype != "I32"):
        return False
    if not spec.symmetric:
        expected[f"{weight}_zero_point"] = (words(rows, spec.bits), groups)
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
