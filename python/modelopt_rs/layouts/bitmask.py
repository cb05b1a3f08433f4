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
from typing import Any, Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._core import FormatError, UnsupportedError
from modelopt_rs._types import Array
from modelopt_rs.dtypes import FLOATS, numpy_dtype
from modelopt_rs.errors import quote
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import Source, TensorInfo, Tile

__all__ = ["SPARSE_BITMASK", "MaskedWeight", "bitmask_modules", "bitmask_tensors", "sparsity_config"]

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


class MaskedWeight:
    """One weight that a source has as a bitmask.

    Parameters
    ----------
    source : Source
    module : str
        The module whose weight it is.

    Raises
    ------
    FormatError
        If its tensors don't fit each other. `UnsupportedError`: a dtype that is not read.
    """

    words = "stored as a bitmask"
    spec = None

    def __init__(self, source: Source, module: str) -> None:
        self._source, self._module = source, module
        # The values first: in their place it would stand in a file of its own.
        self.parts = tuple(f"{module}.{part}" for part in PARTS)
        self._info = _dense(source, module)

    def info(self, dtype: str) -> TensorInfo:
        """Return the weight as it shows: it keeps its own dtype."""
        return self._info

    def buffers(self, dtype: str) -> Sequence[Buffer]:
        """Return what reading holds besides a tile."""
        info = self._info
        values, bits = Buffer("u1", info.row_nbytes), Buffer("u1", info.row_nbytes)
        offsets = Buffer("i8", 4)  # as they are, and counted from the tile's first
        if len(info.shape) == 2:
            return values, bits, offsets
        # Of one slice of the first axis, where a row is less than that.
        return values, bits, offsets, Buffer("u1", 2 * (info.nbytes // max(info.shape[0], 1)), per=0)

    def tiles(self, dtype: str, max_bytes: int, threads: int | None) -> Iterator[Tile]:
        """Yield the weight's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        info = self._info
        step = max(1, min(info.rows, max_bytes // info.row_nbytes))
        matrices = self._matrices(step, threads)
        if len(info.shape) == 2:
            yield from matrices
        else:
            yield from _cut_anew(matrices, info, step)

    def _matrices(self, step: int, threads: int | None) -> Iterator[Tile]:
        """Yield the slices of the first axis that hold `step` rows (or one), as a matrix of whole slices."""
        info, module = self._info, self._module
        outputs, columns = info.shape[0], prod(info.shape[1:])
        per_output = info.rows // outputs
        step = max(1, min(outputs, step // per_output))
        dtype = numpy_dtype(info.dtype)
        out = np.empty((step, columns), dtype)
        where = f"{self._source.path}: tensor {quote(module + '.bitmask')}"
        bits = self._source.tiles(f"{module}.bitmask", step * -(-columns // 8))
        take = _values(self._source.tiles(f"{module}.compressed", step * columns * dtype.itemsize), dtype)
        for tile, offsets in zip(bits, self._offsets(step, columns), strict=True):
            values, rows = take(int(offsets[-1])), out[: len(tile.array)]
            try:
                _core.decompress((offsets, values, tile.array), rows, FLOATS[info.dtype], threads)
            except ValueError as error:
                raise FormatError(f"{where}, rows from {tile.first_row:,}: {error}") from None
            yield Tile(tile.first_row * per_output, rows)

    def _offsets(self, step: int, columns: int) -> Iterator[Array]:
        """Yield for each `step` rows where their values begin and the last ends, counted from the first."""
        source, module = self._source, self._module
        name, total = f"{module}.row_offsets", source.tensors[f"{module}.compressed"].shape[0]
        where = f"{source.path}: tensor {quote(name)}"
        tiles = (tile.array.reshape(-1).copy() for tile in source.tiles(name, 8 * step))
        before, end = next(tiles), 0
        for after in chain(tiles, [np.array([total])]):
            offsets = np.append(before, after[0])
            counts = np.diff(offsets)
            if offsets[0] != end or (counts < 0).any() or (counts > columns).any():
                raise FormatError(f"{where} must ascend from 0 to the {total:,} values, by at most {columns:,}")
            yield offsets - end
            before, end = after, int(after[0])


class _SparseBitmask:
    name: Final = "sparse-bitmask"
    state: Final = "stored as bitmasks"

    def mark(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        module = next(bitmask_modules(tensors), None)
        return None if module is None else f"{module}.bitmask"

    def find(self, source: Source) -> Iterator[MaskedWeight]:
        for module in bitmask_modules(source.tensors):
            yield MaskedWeight(source, module)


SPARSE_BITMASK: Final = _SparseBitmask()


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
