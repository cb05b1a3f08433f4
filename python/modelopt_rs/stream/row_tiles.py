"""A tensor's bytes as row tiles in buffers that are reused, and rows of a tensor as bytes: for every format."""

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.errors import listing, quote
from modelopt_rs.stream.model import TensorInfo, Tile

__all__ = ["Fill", "RowLedger", "TileReader", "row_bytes"]

READ_BACK_BYTES = 4 << 20
# Fills a C-contiguous array with a tensor's bytes from an offset on, or writes them there.
Fill: TypeAlias = Callable[[Array, int], None]


class TileReader:
    """Cuts tensors into row tiles; the buffers of finished iterations serve the next ones."""

    def __init__(self) -> None:
        self._free: list[Array] = []  # buffers of tiles that are not in use

    def tiles(
        self, info: TensorInfo, dtype: np.dtype[Any], fill: Fill, max_bytes: int, rows: range | None
    ) -> Iterator[Tile]:
        """Yield a tensor's rows (or some) in order, as many at a time as fit `max_bytes`, but at least one."""
        rows = range(info.rows) if rows is None else rows
        if not 0 <= rows.start <= rows.stop <= info.rows or rows.step != 1:
            raise ValueError(f"tiles: rows must be consecutive ones of {info.rows:,}, got {rows}")
        if info.nbytes == 0 or not rows:
            return
        row_nbytes = info.row_nbytes
        step = max(1, min(len(rows), max_bytes // row_nbytes))
        buffer = self._take(step * row_nbytes)
        try:
            for first in range(rows.start, rows.stop, step):
                used = buffer[: min(step, rows.stop - first) * row_nbytes]
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


@dataclass(slots=True)
class _Extent:
    """Consecutive bytes of a tensor that are written, and their CRC-32."""

    begin: int
    end: int
    crc: int


class RowLedger:
    """What a sink has written of each tensor, in whatever order it came, with a checksum for each extent.

    Parameters
    ----------
    tensors : sequence of TensorInfo
        All that are written.
    """

    def __init__(self, tensors: Sequence[TensorInfo]) -> None:
        self._tensors = tensors
        self._extents: dict[str, list[_Extent]] = {info.name: [] for info in tensors}

    def next_row(self, info: TensorInfo) -> int:
        """Return the first row that is not written."""
        extents = self._extents[info.name]
        return extents[0].end // info.row_nbytes if extents and extents[0].begin == 0 else 0

    def put(self, info: TensorInfo, row: int, data: Array, write: Fill) -> None:
        """Let `write` write bytes of a tensor at their place in it, and note them.

        Raises
        ------
        ValueError
            If rows are outside of the tensor, or written already.
        """
        if not data.nbytes:
            return
        begin = row * info.row_nbytes
        end = begin + data.nbytes
        if begin < 0 or end > info.nbytes:
            raise ValueError(
                f"write: tensor {quote(info.name)} has {info.nbytes:,} bytes, got {data.nbytes:,} after {begin:,}"
            )
        extents = self._extents[info.name]
        place = bisect_right(extents, begin, key=lambda extent: extent.begin)
        before = extents[place - 1] if place else None
        if (before is not None and before.end > begin) or (place < len(extents) and extents[place].begin < end):
            last = (end - 1) // info.row_nbytes
            raise ValueError(f"write: tensor {quote(info.name)}: rows {row:,} to {last:,} are written already")
        write(data, begin)
        if before is not None and before.end == begin:
            before.end, before.crc = end, zlib.crc32(data.data, before.crc)
        else:
            extents.insert(place, _Extent(begin, end, zlib.crc32(data.data)))

    def check_whole(self, path: Path) -> None:
        """Refuse to go on while rows are missing."""
        written = {name: sum(each.end - each.begin for each in extents) for name, extents in self._extents.items()}
        missing = [
            f"{quote(info.name)} has {written[info.name]:,} of {info.nbytes:,} bytes"
            for info in self._tensors
            if written[info.name] != info.nbytes
        ]
        if missing:
            raise ValueError(f"{path}: not all is written: tensor {listing(missing)}")

    def is_intact(self, name: str, read: Fill) -> bool:
        """Whether `read`, which fills an array with a tensor's bytes from an offset on, gives what was written."""
        return all(_crc(read, each.begin, each.end) == each.crc for each in self._extents[name])

    def crc(self, name: str, read: Fill) -> int:
        """Return the CRC-32 of a whole tensor; of one that came in pieces it is read."""
        extents = self._extents[name]
        return extents[0].crc if len(extents) == 1 else _crc(read, 0, extents[-1].end if extents else 0)


def _crc(read: Fill, begin: int, end: int) -> int:
    buffer = np.empty(min(end - begin, READ_BACK_BYTES), np.uint8)
    crc = 0
    for at in range(begin, end, READ_BACK_BYTES):
        used = buffer[: min(READ_BACK_BYTES, end - at)]
        read(used, at)
        crc = zlib.crc32(used.data, crc)
    return crc
