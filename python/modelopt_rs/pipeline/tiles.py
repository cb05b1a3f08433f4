"""How large a tile may be, and how far a run has come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from modelopt_rs.files import Decompressed, Dequantized, Source, TensorInfo
from modelopt_rs.files.messages import quote
from modelopt_rs.files.model import Array, Tile, bf16_to_float32
from modelopt_rs.files.pack_quantized import words
from modelopt_rs.pipeline.plan import OptionError

__all__ = [
    "DEFAULT_MEMORY",
    "TILE_BYTES",
    "Progress",
    "Road",
    "located",
    "packed_memory",
    "tile_bytes",
    "widened",
]

# Bytes done, bytes in all, the tensor at hand.
Progress: TypeAlias = Callable[[int, int, str], None]

DEFAULT_MEMORY = 256 * 2**20
# A tile of input is at most this large even where the budget allows more: the tile, its codes and its
# dequantized copy then stay in the caches between the passes over them.
TILE_BYTES = 2 * 2**20


@dataclass(slots=True)
class Road:
    """What every step of one run shares: its limits, and how far it has come."""

    max_memory: int
    threads: int | None
    progress: Progress | None
    total: int
    done: int = 0

    def advance(self, nbytes: int, name: str) -> None:
        """Tell the caller that `nbytes` more of the input are done."""
        self.done += nbytes
        if self.progress is not None:
            self.progress(self.done, self.total, name)


def tile_bytes(info: TensorInfo, extra_per_row: int, max_memory: int, *, kept: int = 0, unit: int = 1) -> int:
    """Return how many bytes of a tensor to read at a time.

    Parameters
    ----------
    info : TensorInfo
    extra_per_row : int
        Bytes that a transform holds for each row besides the input.
    max_memory : int
        The most bytes that input and extra may take together.
    kept : int
        Bytes that it holds for the whole tensor.
    unit : int
        Every tile but the last has a multiple of so many rows.

    Raises
    ------
    OptionError
        If a single unit does not fit.

    Examples
    --------
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.pipeline.tiles import tile_bytes
    >>> tile_bytes(TensorInfo("fc.weight", "F32", (4, 8), 128), 32, max_memory=130)
    64
    """
    row = info.row_nbytes
    unit = max(min(unit, info.rows), 1)
    per_unit = unit * max(row + extra_per_row, 1)
    need = per_unit + kept
    if need > max_memory:
        rows = "one row needs" if unit == 1 else f"{unit} rows need"
        raise OptionError(f"tensor {quote(info.name)}: {rows} {need:,} bytes, max_memory is {max_memory:,}")
    units = min((max_memory - kept) // per_unit, TILE_BYTES // max(unit * row, 1))
    return max(units, 1) * unit * row


def widened(array: Array, dtype: str) -> Array:
    """Return values of a bfloat16 tensor, which come as uint16, as float32; any others as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.pipeline.tiles import widened
    >>> widened(np.array([0x3F80], np.uint16), "BF16")
    array([1.], dtype=float32)
    """
    # A bfloat16 is the upper half of the float32 of the same value.
    return bf16_to_float32(array) if dtype == "BF16" else array


@contextmanager
def located(source: Source, name: str, tile: Tile) -> Iterator[None]:
    """Raise errors about a tile with the tensor and the row that it begins at."""
    try:
        yield
    except ValueError as error:
        where = f"{source.path}: tensor {quote(name)}, rows from {tile.first_row:,}"
        raise ValueError(f"{where}: {error}") from error


def packed_memory(source: Source, name: str) -> tuple[int, int]:
    """Return the bytes that reading a weight holds for each row, and for all, if it is not stored as it shows."""
    if isinstance(source, Decompressed):
        return source.memory(name) if name in source.masked else (0, 0)
    if not isinstance(source, Dequantized):
        return 0, 0
    if name not in source.specs:
        return packed_memory(source.source, name)
    spec = source.specs[name]
    rows, columns = source.tensors[name].shape
    groups = spec.groups(columns)
    # Codes with and without padding; scales stored and as float32; zero points packed and unpacked.
    return 8 * words(columns, spec.bits) + 13 * groups, 0 if spec.symmetric else 3 * rows * groups
