"""A tensor's bytes as row tiles in buffers that are reused, and rows of a tensor as bytes: for every format."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.errors import listing, quote
from modelopt_rs.stream.model import TensorInfo, Tile

__all__ = ["Fill", "RowLedger", "TileReader", "row_bytes"]

# Fills a C-contiguous array with a tensor's bytes from an offset on, or writes them there.
Fill: TypeAlias = Callable[[Array, int], None]


class TileReader:
    """Cuts tensors into row tiles; the buffers of finished iterations serve the next ones."""

    def __init__(self) -> None:
        self._free: list[Array] = []  # buffers of tiles that are not in use

    def tiles(self, info: TensorInfo, dtype: np.dtype[Any], fill: Fill, max_bytes: int) -> Iterator[Tile]:
        """Yield a tensor's rows in order, as many at a time as fit `max_bytes`, but at least one."""
        if info.nbytes == 0:
            return
        row_nbytes = info.row_nbytes
        step = max(1, min(info.rows, max_bytes // row_nbytes))
        buffer = self._take(step * row_nbytes)
        try:
            for first in range(0, info.rows, step):
                used = buffer[: min(step, info.rows - first) * row_nbytes]
                fill(used, first * row_nbytes)
                yield Tile(first, used.view(dtype).reshape(-1, info.columns))
        finally:
            self._free.append(buffer)

    def _take(self, nbytes: int) -> Array:
        """Return a buffer that no other iterator uses, at least `nbytes` long."""
        if self._free and self._free[-1].nbytes >= nbytes:
            return self._free.pop()
        self._free.clear()  # too small: not kept beside a larger one
        return np.empty(nbytes, np.uint8)


def row_bytes(info: TensorInfo, dtype: np.dtype[Any], twin: str | None, array: Array) -> Array:
    """Return whole rows of a tensor as their bytes, without a copy where they are contiguous.

    Parameters
    ----------
    info : TensorInfo
        The tensor.
    dtype : np.dtype
        The dtype that its rows have.
    twin : str or None
        The name of a dtype of `ml_dtypes` with the same bits, which is taken as well.
    array : ndarray
        Rows.

    Raises
    ------
    TypeError
        If the dtype is another.
    ValueError
        If these aren't rows of the tensor.
    """
    if array.dtype != dtype and array.dtype.name != twin:
        wanted = f"{dtype} or {twin}" if twin else str(dtype)
        raise TypeError(f"write: tensor {quote(info.name)} is {info.dtype}, wants {wanted}, got {array.dtype}")
    is_flat = info.columns == 1 and array.ndim == 1
    if array.size and not is_flat and array.shape != info.shape and array.shape[-1:] != (info.columns,):
        rows = f"rows of {info.columns:,}"
        raise ValueError(f"write: tensor {quote(info.name)} has {rows}, got an array of shape {array.shape}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class RowLedger:
    """What a sink has written of each tensor, and the checksum of that.

    Attributes
    ----------
    crc : dict of str to int
        The CRC-32 of each tensor's bytes so far.
    """

    def __init__(self, tensors: Sequence[TensorInfo]) -> None:
        self._tensors = tensors
        self._written = {info.name: 0 for info in tensors}
        self.crc = dict.fromkeys(self._written, 0)

    def append(self, info: TensorInfo, data: Array, write: Fill) -> None:
        """Let `write` write the next bytes of a tensor, at their place in it, and note them."""
        done = self._written[info.name]
        if done + data.nbytes > info.nbytes:
            raise ValueError(
                f"write: tensor {quote(info.name)} has {info.nbytes:,} bytes, got {data.nbytes:,} after {done:,}"
            )
        write(data, done)
        self.crc[info.name] = zlib.crc32(data.data, self.crc[info.name])
        self._written[info.name] = done + data.nbytes

    def check_whole(self, path: Path) -> None:
        """Refuse to go on while rows are missing."""
        missing = [
            f"{quote(info.name)} has {self._written[info.name]:,} of {info.nbytes:,} bytes"
            for info in self._tensors
            if self._written[info.name] != info.nbytes
        ]
        if missing:
            raise ValueError(f"{path}: not all is written: tensor {listing(missing)}")
