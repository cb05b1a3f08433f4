"""The budget of memory: what is held besides a tile is declared, and how large a tile may be follows from it."""

import re
from collections.abc import Iterable
from typing import Final

from modelopt_rs.errors import OptionError, quote
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import TensorInfo

__all__ = ["DEFAULT_MEMORY", "TILE_BYTES", "bytes_of", "tile_bytes"]

DEFAULT_MEMORY: Final = 256 * 2**20
# A tile of input is at most this large even where the budget allows more: the tile, its codes and its
# dequantized copy then stay in the caches between the passes over them.
TILE_BYTES: Final = 2 * 2**20


UNITS: Final = {"": 1, "b": 1} | {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for kind, base in (("ib", 1024), ("b", 1000))
}


def bytes_of(name: str, size: int | str) -> int:
    """Return the bytes that a number or a text such as "256MiB", "1.5GiB" or "300MB" says.

    Raises
    ------
    OptionError
        If a text says no size, or it is less than a byte.

    Examples
    --------
    >>> from modelopt_rs.stream.memory import bytes_of
    >>> bytes_of("max_memory", "1.5KiB"), bytes_of("max_memory", 1000)
    (1536, 1000)
    """
    if not isinstance(size, str):
        if size < 1:
            raise OptionError(f"{name} must be above 0, got {size}")
        return size
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]*)", size, re.ASCII)
    if match is None or match[2].lower() not in UNITS:
        raise OptionError(f"{name} must be a size such as 256MiB, 1.5GiB, 300MB or 1048576, got {size!r}")
    count = int(float(match[1]) * UNITS[match[2].lower()])
    if count < 1:
        raise OptionError(f"{name} must be at least one byte, got {size!r}")
    return count


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
