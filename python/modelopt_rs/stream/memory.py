"""How large a tile may be, and how far a run has come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from modelopt_rs.errors import OptionError, quote
from modelopt_rs.stream.model import Source, TensorInfo, Tile

__all__ = [
    "DEFAULT_MEMORY",
    "TILE_BYTES",
    "Execution",
    "Progress",
    "located",
    "tile_bytes",
]

# Bytes done, bytes in all, the tensor at hand.
Progress: TypeAlias = Callable[[int, int, str], None]

DEFAULT_MEMORY = 256 * 2**20
# A tile of input is at most this large even where the budget allows more: the tile, its codes and its
# dequantized copy then stay in the caches between the passes over them.
TILE_BYTES = 2 * 2**20


@dataclass(slots=True)
class Execution:
    """What every step of one run shares: its limits, how far it has come, and what its report says of it.

    Attributes
    ----------
    max_memory : int
        The most bytes that tiles and their results may take at a time.
    threads : int or None
        Threads to compute with.
    progress : callable or None
        Told of every tile.
    total, done : int
        Bytes of input, in all and so far.
    source, output : str
        The paths as they were given.
    dry_run : bool
        Whether nothing is written.
    overwrite : bool
        Whether what is at the destination may be replaced.
    """

    max_memory: int
    threads: int | None
    progress: Progress | None
    total: int
    done: int = 0
    source: str = ""
    output: str = ""
    dry_run: bool = False
    overwrite: bool = False

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
    >>> from modelopt_rs.stream.memory import tile_bytes
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


@contextmanager
def located(source: Source, name: str, tile: Tile) -> Iterator[None]:
    """Raise errors about a tile with the tensor and the row that it begins at."""
    try:
        yield
    except ValueError as error:
        where = f"{source.path}: tensor {quote(name)}, rows from {tile.first_row:,}"
        raise ValueError(f"{where}: {error}") from error
