"""safetensors files: read a tensor in row tiles."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from modelopt_rs import _core
from modelopt_rs._core import FormatError, LimitError
from modelopt_rs.files.messages import quote
from modelopt_rs.files.model import Array, TensorInfo, Tile
from modelopt_rs.files.row_tiles import TileReader

__all__ = [
    "BIT_TWINS",
    "MAX_HEADER",
    "MAX_TENSORS",
    "SafetensorsSource",
    "numpy_dtype",
    "open_regular",
    "read_into",
]

MAX_HEADER = 64 << 20
MAX_TENSORS = 1_000_000

# What NumPy has no dtype for comes as the unsigned integer of its size.
_DTYPES = {
    name: np.dtype(numpy_name)
    for name, numpy_name in {
        "BOOL": "?",
        "U8": "<u1",
        "I8": "<i1",
        "F8_E4M3": "<u1",
        "F8_E5M2": "<u1",
        "F8_E8M0": "<u1",
        "F8_E4M3FNUZ": "<u1",
        "F8_E5M2FNUZ": "<u1",
        "U16": "<u2",
        "I16": "<i2",
        "F16": "<f2",
        "BF16": "<u2",
        "U32": "<u4",
        "I32": "<i4",
        "F32": "<f4",
        "U64": "<u8",
        "I64": "<i8",
        "F64": "<f8",
        "C64": "<c8",
    }.items()
}


# The dtypes of ml_dtypes that have the bits of one of the format.
BIT_TWINS = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of the arrays of a safetensors dtype; ValueError if it is unknown."""
    try:
        return _DTYPES[dtype]
    except KeyError:
        raise ValueError(f"dtype {quote(dtype)} is not supported") from None


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a file for reading and return its descriptor; ValueError unless it is a regular file.

    Never blocks, as opening a FIFO otherwise would. Symbolic links are followed: the caches of model hubs
    are made of them.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{os.fspath(path)}: not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_into(fd: int, buffer: Array, offset: int, path: Path) -> None:
    """Fill a C-contiguous array with the file's bytes from `offset` on."""
    view = buffer.reshape(-1).view(np.uint8).data
    while len(view):
        try:
            n = os.preadv(fd, [view], offset)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(path)) from e
        if n == 0:
            raise FormatError(f"{path}: file shrank while reading")
        view = view[n:]
        offset += n


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
        i = self._header.find(name) if isinstance(name, str) else None
        if i is None:
            raise KeyError(name)
        dtype, shape, begin, end = self._header.tensor(i)
        return TensorInfo(name, dtype, shape, end - begin), begin


class SafetensorsSource:
    """One safetensors file, open for reading.

    The header is checked whole before anything else; bytes are read by `pread`, never mapped, so that a file
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

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_header: int = MAX_HEADER,
        max_tensors: int = MAX_TENSORS,
        fd: int | None = None,
    ) -> None:
        self.path = Path(path)
        self._fd = open_regular(path) if fd is None else fd
        self._reader = TileReader()
        try:
            header, self._data_begin, data_len = self._read_header(max_header)
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
        size = os.fstat(self._fd).st_size
        if size < 8:
            raise FormatError(f"{self.path}: {size} bytes are less than the 8 of the header length")
        length = np.empty(1, "<u8")
        read_into(self._fd, length, 0, self.path)
        n = int(length[0])
        if n > size - 8:
            raise FormatError(f"{self.path}: header length {n:,} exceeds file length {size:,}")
        if n > max_header:
            raise LimitError(f"{self.path}: header length {n:,} exceeds max_header={max_header:,}")
        header = os.pread(self._fd, n, 8)
        if len(header) != n:
            raise FormatError(f"{self.path}: file shrank while reading")
        return header, 8 + n, size - 8 - n

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

    def tiles(self, name: str, max_bytes: int) -> Iterator[Tile]:
        """Yield a tensor's rows in order, as many at a time as fit `max_bytes`, but at least one.

        Parameters
        ----------
        name : str
            One of `tensors`. One without elements yields nothing.
        max_bytes : int
            The largest array to yield.

        Yields
        ------
        Tile
            Its array is overwritten when the next is asked for, and may be after the last one.
        """
        info, offset = self._find(name)
        dtype = numpy_dtype(info.dtype)
        return self._reader.tiles(
            info, dtype, lambda array, at: read_into(self._fd, array, offset + at, self.path), max_bytes
        )

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
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()
