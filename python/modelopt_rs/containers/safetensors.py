"""safetensors files: read a tensor in row tiles."""

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from modelopt_rs import _core
from modelopt_rs._core import FormatError, LimitError
from modelopt_rs._types import Array
from modelopt_rs.containers.open_file import OpenFile
from modelopt_rs.containers.reading import (
    MAX_HEADER,
    MAX_TENSORS,
    call,
    open_regular,
    read_at,
    read_into,
)
from modelopt_rs.dtypes import numpy_dtype
from modelopt_rs.errors import quote
from modelopt_rs.stream.model import TensorInfo, Tile
from modelopt_rs.stream.row_tiles import Fill, TileReader

__all__ = ["SafetensorsSource"]


class _Tensors(Mapping[str, TensorInfo]):
    """The tensors of a header, made when they are asked for: as Python objects they take six times its size."""

    def __init__(self, header: _core.SafetensorsHeader) -> None:
        self._header = header

    def __len__(self) -> int:
        return len(self._header)

    def __iter__(self) -> Iterator[str]:
        return map(self._header.name, range(len(self._header)))

    def __getitem__(self, name: str) -> TensorInfo:
        return self.locate(name)[0]

    def locate(self, name: str) -> tuple[TensorInfo, int]:
        """Return a tensor, and where its bytes begin in the data."""
        try:
            i = self._header.find(name) if isinstance(name, str) else None
        except UnicodeEncodeError:  # half a character, which JSON can say and no header holds
            i = None
        if i is None:
            raise KeyError(name)
        dtype, shape, begin, end = self._header.tensor(i)
        return TensorInfo(name, dtype, shape, end - begin), begin


class SafetensorsSource(OpenFile):
    """One safetensors file, open for reading.

    The header is checked whole before anything else; bytes are read by `pread`, mapped only by `mapped`, so that a file
    which shrinks is an error and not a crash. A file that is replaced while it is open stays readable.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    max_header : int
        The largest header to accept, in bytes.
    max_tensors : int
        The most tensors to accept.
    fd : int, optional
        A descriptor of the file that is open already; `close` closes it.

    Raises
    ------
    FormatError
        If the file is malformed. `LimitError`: it is over a limit. `UnsupportedError`: it has a dtype
        that isn't known.
    ValueError
        If it isn't a regular file.
    OSError
        If it can't be opened or read.
    """

    container = "safetensors"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_header: int = MAX_HEADER,
        max_tensors: int = MAX_TENSORS,
        fd: int | None = None,
    ) -> None:
        self.path = Path(path)
        self._options = {"max_header": max_header, "max_tensors": max_tensors}
        self._fd = open_regular(path) if fd is None else fd
        self._reader = TileReader()
        try:
            header, self._data_begin, data_len = self._read_header(max_header)
            self._nbytes = self._data_begin + data_len
            try:
                parsed = _core.SafetensorsHeader(header, data_len, max_tensors)
            except FormatError as e:
                raise type(e)(f"{self.path}: {e}") from None
        except BaseException:
            self.close()
            raise
        self._tensors = _Tensors(parsed)
        self._metadata = parsed.metadata()

    def _read_header(self, max_header: int) -> tuple[bytes, int, int]:
        """Return the header, where the data begin, and how many bytes of data there are."""
        size = call(self.path, os.fstat, self._fd).st_size
        if size < 8:
            what = f"{size} bytes are less than the 8 of the header length" if size else "the file is empty"
            raise FormatError(f"{self.path}: {what}")
        length = np.empty(1, "<u8")
        read_into(self._fd, length, 0, self.path)
        n = int(length[0])
        if n > size - 8:
            raise FormatError(f"{self.path}: header length {n:,} exceeds file length {size:,}{self._cut_short()}")
        if n > max_header:
            raise LimitError(f"{self.path}: header length {n:,} exceeds max_header={max_header:,}")
        header = read_at(self._fd, n, 8, self.path)
        if len(header) != n:
            raise FormatError(f"{self.path}: file shrank while reading")
        return header, 8 + n, size - 8 - n

    def _cut_short(self) -> str:
        """Say which of two it is: the rest of such a file is not there, or it never was one."""
        begun = read_at(self._fd, 9, 0, self.path)[8:] == b"{"
        return "; the file was cut short" if begun else "; it is no safetensors file"

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, in the order of the data."""
        return self._tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's `__metadata__`."""
        return MappingProxyType(self._metadata)

    def read(self, name: str) -> Array:
        """Return one tensor, whole, as a new array of its own shape.

        Parameters
        ----------
        name : str
            One of `tensors`.

        Raises
        ------
        KeyError
            If there is no such tensor.
        FormatError
            If the file became shorter since it was opened.
        """
        info, offset = self._find(name)
        array = np.empty(info.shape, numpy_dtype(info.dtype))
        read_into(self._fd, array, offset, self.path)
        return array

    def mapped(self, name: str) -> Array:
        """Return one tensor as the file's own memory, read-only: read where it is looked at, shared by all processes.

        It stays readable when the file is closed, removed or replaced. Not of files that others may cut short: who
        looks behind their end is killed by the system.
        """
        info, offset = self._find(name)
        dtype = numpy_dtype(info.dtype)
        if not info.nbytes:
            return np.empty(info.shape, dtype)
        memory = call(self.path, partial(mmap.mmap, access=mmap.ACCESS_READ), self._fd, offset + info.nbytes)
        return np.frombuffer(memory, dtype, offset=offset).reshape(info.shape)

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows in order, as many at a time as fit `max_bytes`, but at least one.

        Parameters
        ----------
        name : str
            One of `tensors`. One without elements yields nothing.
        max_bytes : int
            The largest array to yield.
        rows : range, optional
            Only these rows, which are consecutive.

        Yields
        ------
        Tile
            Its array is overwritten when the next is asked for, and may be after the last one.
        """
        info, _ = self._find(name)
        return self._reader.tiles(info, numpy_dtype(info.dtype), self.fill(name), max_bytes, rows)

    def fill(self, name: str) -> Fill:
        """Return what fills an array with a tensor's bytes from an offset on."""
        _, offset = self._find(name)
        return lambda array, at: read_into(self._fd, array, offset + at, self.path)

    def _find(self, name: str) -> tuple[TensorInfo, int]:
        """Return a tensor, and where its bytes begin in the file."""
        if self._fd < 0:
            raise ValueError(f"{self.path}: the file is closed")
        try:
            info, begin = self._tensors.locate(name)
        except KeyError:
            raise KeyError(f"{self.path}: no tensor {quote(name)}") from None
        return info, self._data_begin + begin

    def close(self) -> None:
        """Close the file. Nothing can be read after it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # of a file that was only read nothing can be lost
                os.close(fd)
