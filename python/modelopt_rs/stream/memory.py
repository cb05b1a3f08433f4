"""The budget of memory: what is held besides a tile is declared, and how large a tile may be follows from it."""

from collections.abc import Iterable
from typing import Final

from modelopt_rs.errors import OptionError, quote
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import TensorInfo

__all__ = ["DEFAULT_MEMORY", "TILE_BYTES", "tile_bytes"]

DEFAULT_MEMORY: Final = 256 * 2**20
# A tile of input is at most this large even where the budget allows more: the tile, its codes and its
# dequantized copy then stay in the caches between the passes over them.
TILE_BYTES: Final = 2 * 2**20


def tile_bytes(info: TensorInfo, buffers: Iterable[Buffer], max_memory: int, *, row_multiple: int = 1) -> int:
    """Return how many bytes of a tensor to read at a time.

    Parameters
    ----------
    info : TensorInfo
    buffers : iterable of Buffer
        What is held besides the tile.
    max_memory : int
        The most bytes that the tile and they may take together.
    row_multiple : int
        Every tile but the last has a multiple of so many rows.

    Raises
    ------
    OptionError
        If the smallest tile does not fit.

    Examples
    --------
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.stream.buffer import Buffer
    >>> from modelopt_rs.stream.memory import tile_bytes
    >>> tile_bytes(TensorInfo("fc.weight", "F32", (4, 8), 128), [Buffer("f4", 8)], max_memory=130)
    64
    """
    buffers = list(buffers)
    row = info.row_nbytes
    least = max(min(row_multiple, info.rows), 1)
    fixed = sum(buffer.nbytes(0) for buffer in buffers if not buffer.per)
    each = max(least * row + sum(buffer.nbytes(least) for buffer in buffers if buffer.per), 1)
    if each + fixed > max_memory:
        rows = "one row needs" if least == 1 else f"{least} rows need"
        raise OptionError(f"tensor {quote(info.name)}: {rows} {each + fixed:,} bytes, max_memory is {max_memory:,}")
    count = min((max_memory - fixed) // each, TILE_BYTES // max(least * row, 1))
    return max(count, 1) * least * row
