"""The `sparse-bitmask` layout that compressed-tensors had up to 0.14: non-zero values and a bit for each weight.

For a weight `NAME.weight` of shape [out, in] the file holds:

- `NAME.compressed` [non-zero]: the values that are not zero, row by row, in the dtype of the weight;
- `NAME.bitmask`, U8 [out, ceil(in / 8)]: a bit for each weight, lowest bit first, each row beginning on a byte;
- `NAME.row_offsets`, I64 [out]: where the values of each row begin;
- `NAME.shape`, I64 [axes].

A weight of more axes, which that library stored in no form of its own, is a matrix [out, the rest] but for its shape.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from modelopt_rs import _core
from modelopt_rs._core import FormatError, UnsupportedError
from modelopt_rs.files.messages import quote
from modelopt_rs.files.model import FLOATS, Array, Source, TensorInfo, Tile
from modelopt_rs.files.safetensors import numpy_dtype

__all__ = ["Decompressed", "bitmask_modules", "bitmask_tensors", "sparsity_config"]

PARTS = ("compressed", "bitmask", "row_offsets", "shape")
_MAX_AXES = 8


def bitmask_modules(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield the modules whose weight is stored as a bitmask."""
    for name in tensors:
        module = name.removesuffix(".bitmask")
        if module != name and f"{module}.compressed" in tensors:
            yield module


def bitmask_tensors(info: TensorInfo, nonzero: int) -> list[TensorInfo]:
    """Return the tensors that stand for one weight with `nonzero` values that are not zero.

    Parameters
    ----------
    info : TensorInfo
        The weight; its name ends in ".weight", and it has at least two axes.
    nonzero : int
        How many of its values are not zero.

    Examples
    --------
    >>> from modelopt_rs.files import TensorInfo, bitmask_tensors
    >>> for part in bitmask_tensors(TensorInfo("fc.weight", "F32", (8, 64), 2048), 100):
    ...     print(part.name, part.dtype, part.shape)
    fc.compressed F32 (100,)
    fc.bitmask U8 (8, 8)
    fc.row_offsets I64 (8,)
    fc.shape I64 (2,)
    """
    module = info.name.removesuffix(".weight")
    rows, columns = info.shape[0], prod(info.shape[1:])
    mask = (rows, -(-columns // 8))
    return [
        TensorInfo(f"{module}.compressed", info.dtype, (nonzero,), nonzero * numpy_dtype(info.dtype).itemsize),
        TensorInfo(f"{module}.bitmask", "U8", mask, prod(mask)),
        TensorInfo(f"{module}.row_offsets", "I64", (rows,), 8 * rows),
        TensorInfo(f"{module}.shape", "I64", (len(info.shape),), 8 * len(info.shape)),
    ]


def sparsity_config(sparsity: float, structure: str, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """Return what goes into `config.json` under "quantization_config".

    Parameters
    ----------
    sparsity : float
        The share of zeros.
    structure : str
        "unstructured", or such as "2:4".
    ignore : sequence of str
        The modules that are not stored as bitmasks.

    Examples
    --------
    >>> from modelopt_rs.files import sparsity_config
    >>> sparsity_config(0.5, "2:4", ["lm_head"])["sparsity_config"]["format"]
    'sparse-bitmask'
    """
    return {
        "quant_method": "compressed-tensors",
        "sparsity_config": {
            "format": "sparse-bitmask",
            "global_sparsity": sparsity,
            "sparsity_structure": structure,
            "targets": ["Linear"],
            "ignore": list(ignore),
        },
    }


class Decompressed:
    """A view of a source in which weights stored as bitmasks show whole, tile by tile as they are read.

    Every other tensor shows as it is.

    Parameters
    ----------
    source : Source
        The model; closing the view closes it.
    threads : int, optional
        The result does not depend on it.

    Attributes
    ----------
    source : Source
        The model as it is.
    masked : mapping of str to str
        The modules of the weights that are stored as bitmasks, by the name of the weight.

    Raises
    ------
    FormatError
        If the tensors of such a weight don't fit each other. `UnsupportedError`: a dtype that is not read.
    """

    def __init__(self, source: Source, *, threads: int | None = None) -> None:
        self.source = source
        self.path: Path = source.path
        self.config: Mapping[str, Any] | None = getattr(source, "config", None)
        self._threads = threads
        modules = list(bitmask_modules(source.tensors))
        # In the place of its values, where it would stand in a file of its own.
        dense = {f"{module}.compressed": _dense(source, module) for module in modules}
        hidden = {f"{module}.{part}" for module in modules for part in PARTS if part != "compressed"}
        shown = (dense.get(name, info) for name, info in source.tensors.items() if name not in hidden)
        self._tensors = {info.name: info for info in shown}
        self.masked: Mapping[str, str] = MappingProxyType({f"{module}.weight": module for module in modules})

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, a weight in the place of its values."""
        return MappingProxyType(self._tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The source's own metadata."""
        return self.source.metadata

    def parts(self, name: str) -> list[str]:
        """Return the names of the source's tensors that stand for `name`."""
        return [f"{self.masked[name]}.{part}" for part in PARTS] if name in self.masked else [name]

    def read(self, name: str) -> Array:
        """Return one tensor, whole, as a new array of its own shape."""
        if name not in self.masked:
            return self.source.read(name)
        info = self._tensors[name]
        out = np.empty(info.shape, numpy_dtype(info.dtype))
        rows = out.reshape(info.rows, info.columns) if info.nbytes else out
        for tile in self.tiles(name, max(info.nbytes, 1)):
            rows[tile.first_row : tile.first_row + len(tile.array)] = tile.array
        return out

    def tiles(self, name: str, max_bytes: int) -> Iterator[Tile]:
        """Yield a tensor's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        info = self._tensors[name]
        if name not in self.masked:
            yield from self.source.tiles(name, max_bytes)
        elif info.nbytes:
            step = max(1, min(info.rows, max_bytes // info.row_nbytes))
            matrices = self._matrices(info, step)
            if len(info.shape) == 2:
                yield from matrices
            else:
                yield from _cut_anew(matrices, info, step)

    def memory(self, name: str) -> tuple[int, int]:
        """Return the bytes that reading a weight holds for each row of a tile besides it, and for all."""
        info = self._tensors[name]
        per_output = info.nbytes // max(info.shape[0], 1)
        # A tile's values and bits, and its offsets as they are and counted from its first; of one slice where a row is
        # less than that.
        return 2 * info.row_nbytes + 32, 0 if len(info.shape) == 2 else 2 * per_output

    def _matrices(self, info: TensorInfo, step: int) -> Iterator[Tile]:
        """Yield the slices of the first axis that hold `step` rows (or one), as a matrix of whole slices."""
        module, outputs, columns = self.masked[info.name], info.shape[0], prod(info.shape[1:])
        per_output = info.rows // outputs
        step = max(1, min(outputs, step // per_output))
        dtype = numpy_dtype(info.dtype)
        out = np.empty((step, columns), dtype)
        where = f"{self.path}: tensor {quote(module + '.bitmask')}"
        bits = self.source.tiles(f"{module}.bitmask", step * -(-columns // 8))
        take = _values(self.source.tiles(f"{module}.compressed", step * columns * dtype.itemsize), dtype)
        for tile, offsets in zip(bits, self._offsets(module, step, columns), strict=True):
            values, rows = take(int(offsets[-1])), out[: len(tile.array)]
            try:
                _core.decompress((offsets, values, tile.array), rows, FLOATS[info.dtype], self._threads)
            except ValueError as error:
                raise FormatError(f"{where}, rows from {tile.first_row:,}: {error}") from None
            yield Tile(tile.first_row * per_output, rows)

    def _offsets(self, module: str, step: int, columns: int) -> Iterator[Array]:
        """Yield for each `step` rows where their values begin and the last ends, counted from the first."""
        name, total = f"{module}.row_offsets", self.source.tensors[f"{module}.compressed"].shape[0]
        where = f"{self.path}: tensor {quote(name)}"
        tiles = (tile.array.reshape(-1).copy() for tile in self.source.tiles(name, 8 * step))
        before, end = next(tiles), 0
        for after in chain(tiles, [np.array([total])]):
            offsets = np.append(before, after[0])
            counts = np.diff(offsets)
            if offsets[0] != end or (counts < 0).any() or (counts > columns).any():
                raise FormatError(f"{where} must ascend from 0 to the {total:,} values, by at most {columns:,}")
            yield offsets - end
            before, end = after, int(after[0])

    def close(self) -> None:
        """Close the source."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


def _dense(source: Source, module: str) -> TensorInfo:
    """Return a weight as it will show; FormatError unless its four tensors fit each other."""
    name = f"{module}.weight"
    where = f"{source.path}: tensor {quote(module + '.bitmask')}"
    infos = [source.tensors.get(f"{module}.{part}") for part in PARTS]
    if any(info is None for info in infos) or name in source.tensors:
        raise FormatError(f"{where} must come with {', '.join(PARTS)} and in place of {quote(name)}")
    values, bits, offsets, axes = (info for info in infos if info is not None)
    if axes.dtype != "I64" or len(axes.shape) != 1 or not 2 <= axes.shape[0] <= _MAX_AXES:
        raise FormatError(f"{where}: shape must be I64 (axes,), got {axes.dtype} {axes.shape}")
    if values.dtype not in FLOATS:
        raise UnsupportedError(f"{where}: values of dtype {values.dtype} are not supported")
    shape = tuple(int(n) for n in source.read(axes.name))
    rows, columns = shape[0], prod(shape[1:])
    fits = all(n >= 0 for n in shape) and (bits.dtype, bits.shape) == ("U8", (rows, -(-columns // 8)))
    if not fits or (offsets.dtype, offsets.shape) != ("I64", (rows,)) or len(values.shape) != 1:
        raise FormatError(
            f"{where}: a weight {shape} has no bitmask {bits.dtype} {bits.shape}, row_offsets {offsets.dtype} "
            f"{offsets.shape} and values {values.shape}"
        )
    return TensorInfo(name, values.dtype, shape, prod(shape) * numpy_dtype(values.dtype).itemsize)


def _values(tiles: Iterator[Tile], dtype: np.dtype[Any]) -> Callable[[int], Array]:
    """Return a function that takes the next `n` values; fewer where there are no more."""
    rest = np.empty(0, dtype)

    def take(n: int) -> Array:
        nonlocal rest
        parts = []
        while n:
            if not len(rest):
                tile = next(tiles, None)
                if tile is None:
                    break
                rest = tile.array.reshape(-1)
            parts.append(rest[:n].copy())
            n, rest = n - len(parts[-1]), rest[len(parts[-1]) :]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    return take


def _cut_anew(matrices: Iterator[Tile], info: TensorInfo, step: int) -> Iterator[Tile]:
    """Yield the same elements in tiles of `step` rows of the last axis."""
    out = np.empty((step, info.columns), numpy_dtype(info.dtype))
    first = filled = 0
    for matrix in matrices:
        rows = matrix.array.reshape(-1, info.columns)
        while len(rows):
            part, rows = rows[: step - filled], rows[step - filled :]
            out[filled : filled + len(part)] = part
            filled += len(part)
            if filled == step:
                yield Tile(first, out)
                first, filled = first + step, 0
    if filled:
        yield Tile(first, out[:filled])
