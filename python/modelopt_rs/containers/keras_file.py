"""Keras' files as sources: `.keras`, `.weights.h5` and the `.h5` of before. They need the extra keras-files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.containers.container import Access, Output
from modelopt_rs.containers.open_file import OpenFile
from modelopt_rs.containers.reading import (
    MAX_HEADER,
    MAX_TENSORS,
    call,
    open_regular,
    read_at,
    read_into,
)
from modelopt_rs.containers.safetensors_sink import SAFETENSORS
from modelopt_rs.containers.strided import boxes
from modelopt_rs.containers.window import Window
from modelopt_rs.containers.zip_members import ZIP_BEGIN, stored_members
from modelopt_rs.dtypes import DTYPES, numpy_dtype
from modelopt_rs.errors import FormatError, LimitError, UnsupportedError, quote
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import Sink, TensorInfo, Tile
from modelopt_rs.stream.row_tiles import Fill, TileReader

__all__ = ["KERAS", "KerasSource"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_WEIGHTS = "model.weights.h5"  # in a .keras archive
_TRAINING: Final = ("optimizer", "optimizer_weights")  # groups that are no part of a model
_FILTERS: Final = {1: "deflate", 2: "shuffle", 3: "fletcher32"}  # others are plug-ins, or may be
_MAX_RATIO = 1032  # of deflate
_MAX_DEPTH = 64
_PIECE = 1 << 20  # chunks that HDF5 has decoded, as it is set up
_DTYPES: Final = {dtype.numpy: dtype.name for dtype in DTYPES.values() if dtype.in_safetensors and dtype.twin is None}
_DTYPES_OF: Final = {np.dtype(numpy): name for numpy, name in _DTYPES.items()}
_BFLOAT16 = np.dtype("V2")  # as Keras writes it


class KerasSource(OpenFile):
    """One file of Keras' weights, open for reading; a tensor has the path of its dataset as its name.

    Only datasets of the file itself are read: links to other files are not followed. What optimizers have saved is
    left out with a warning. Datasets that are stored in one piece are read by `pread`, others by HDF5.

    Parameters
    ----------
    path : str or os.PathLike
        The file: HDF5, or an archive with `model.weights.h5` that is not compressed.
    max_header : int
        The largest directory of an archive to accept, in bytes.
    max_tensors : int
        The most datasets, and groups, to accept.

    Raises
    ------
    FormatError
        If the file is malformed. `LimitError`: it is over a limit. `UnsupportedError`: it has something that isn't
        known.
    ImportError
        If the extra keras-files is not installed.
    ValueError
        If it isn't a regular file.
    OSError
        If it can't be opened or read.
    """

    container = "keras"

    def __init__(
        self, path: str | os.PathLike[str], *, max_header: int = MAX_HEADER, max_tensors: int = MAX_TENSORS
    ) -> None:
        self.path = Path(path)
        self._options = {"max_header": max_header, "max_tensors": max_tensors}
        h5py = _h5py()
        self._file: Any = None
        self._fd = open_regular(path)
        self._reader = TileReader()
        try:
            self._nbytes: int = call(self.path, os.fstat, self._fd).st_size
            self._begin, end = self._extent(max_header, max_tensors)
            with _malformed(self.path):
                window = Window(self._fd, self._begin, end, self.path).buffered()
                self._file = h5py.File(window, "r")
                self._datasets = dict(_datasets(h5py, self._file, max_tensors))
                self._tensors = {name: self._info(name, each) for name, each in self._datasets.items()}
        except BaseException:
            self.close()
            raise
        left_out = {group: sum(1 for name in self._tensors if name.startswith(f"{group}/")) for group in _TRAINING}
        for name in [name for name in self._tensors if name.split("/")[0] in _TRAINING]:
            del self._tensors[name]
        if any(left_out.values()):
            self._leave_out(left_out)

    def _extent(self, max_header: int, max_tensors: int) -> tuple[int, int]:
        """Return where in the file HDF5 begins and ends."""
        if read_at(self._fd, 4, 0, self.path) != ZIP_BEGIN:
            return 0, self._nbytes
        members = stored_members(self._fd, self.path, max_header=max_header, max_tensors=max_tensors)
        if _WEIGHTS not in members:
            raise FormatError(f"{self.path}: is a zip archive, but none of Keras: it has no {_WEIGHTS}")
        return members[_WEIGHTS].begin, members[_WEIGHTS].end

    def _info(self, name: str, dataset: Any) -> TensorInfo:
        """Return what a dataset is; an error unless it is stored, plainly, in the file."""
        shown = quote(name)
        dtype = "BF16" if dataset.dtype == _BFLOAT16 else _DTYPES_OF.get(dataset.dtype.newbyteorder("<"))
        if dtype is None or dataset.shape is None:
            raise UnsupportedError(f"dataset {shown} has the dtype {quote(str(dataset.dtype))}")
        if dataset.external or dataset.is_virtual:
            raise UnsupportedError(f"dataset {shown} lies in another file, which is not read")
        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        if not set(filters) <= set(_FILTERS):
            raise UnsupportedError(f"dataset {shown} is compressed by a filter that is not read")
        shape = tuple(int(n) for n in dataset.shape)
        nbytes = int(np.prod(shape, dtype=object)) * numpy_dtype(dtype).itemsize
        stored = int(dataset.id.get_storage_size())
        if nbytes > stored * (_MAX_RATIO if filters else 1):
            raise LimitError(f"dataset {shown} of {nbytes:,} bytes has {stored:,} in the file")
        return TensorInfo(name, dtype, shape, nbytes)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, in the order of the file."""
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> Array:
        """Return one tensor, whole, as a new array of its own shape."""
        info = self._find(name)
        array = np.empty(info.shape, numpy_dtype(info.dtype))
        if info.nbytes:
            self.fill(name)(array, 0)
        return array

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        info = self._find(name)
        return self._reader.tiles(info, numpy_dtype(info.dtype), self.fill(name), max_bytes, rows)

    def buffers(self, name: str) -> Sequence[Buffer]:
        """Return what reading a tensor holds besides its tile: decoded chunks, and what they give."""
        info = self._find(name)
        if self._offset(name) is not None:
            return ()
        return (Buffer("u1", info.row_nbytes), Buffer("u1", min(_PIECE, info.nbytes), per=0))

    def fill(self, name: str) -> Fill:
        """Return what fills an array with a tensor's bytes from an offset on."""
        info, offset, dataset = self._find(name), self._offset(name), self._datasets[name]
        if offset is not None:
            return lambda array, at: read_into(self._fd, array, self._begin + offset + at, self.path)
        dtype = numpy_dtype(info.dtype)

        def fill(array: Array, at: int) -> None:
            flat = array.reshape(-1).view(np.uint8).view(dtype)
            first, done = at // dtype.itemsize, 0
            with _malformed(self.path):
                for starts, box in boxes(info.shape or (1,), first, first + len(flat)):
                    part = tuple(slice(i, i + n) for i, n in zip(starts, box, strict=True))
                    values = np.asarray(dataset[part if info.shape else ()])
                    values = values.view("<u2") if info.dtype == "BF16" else values.astype(dtype, copy=False)
                    flat[done : done + values.size] = values.reshape(-1)
                    done += values.size

        return fill

    def _offset(self, name: str) -> int | None:
        """Return where a dataset's bytes begin, if they lie in one piece as they are."""
        dataset, info = self._datasets[name], self._tensors[name]
        offset = None if dataset.chunks else dataset.id.get_offset()
        if offset is None or dataset.dtype.newbyteorder("<") != dataset.dtype:
            return None
        begin = int(offset)
        return begin if begin + info.nbytes <= self._nbytes - self._begin else None

    def _find(self, name: str) -> TensorInfo:
        if self._fd < 0:
            raise ValueError(f"{self.path}: the file is closed")
        if name not in self._tensors:
            raise KeyError(f"{self.path}: no tensor {quote(name)}")
        return self._tensors[name]

    def close(self) -> None:
        """Close the file. Nothing can be read after it."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):  # HDF5 may raise anything of a damaged file
                file.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # of a file that was only read nothing can be lost
                os.close(fd)


@contextmanager
def _malformed(path: Path) -> Iterator[None]:
    """Say of whatever HDF5 raises that the file is malformed."""
    try:
        yield
    except FormatError as e:
        raise type(e)(f"{path}: {e}") from None
    except MemoryError:
        raise
    except Exception as e:  # HDF5 raises OSError, RuntimeError, KeyError, ValueError ...
        raise FormatError(f"{path}: HDF5 can't read it: {quote(str(e))}") from None


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        what = "a file of Keras needs the extra keras-files"
        raise ImportError(f'open: {what}: pip install "modelopt_rs[keras-files]"') from error
    return h5py


def _datasets(h5py: Any, file: Any, max_tensors: int) -> Iterator[tuple[str, Any]]:
    """Yield the datasets of a file by name; links are not followed, and a group that is in itself is an error."""
    below = [("", file, 0)]
    seen = 0
    while below:
        at, group, depth = below.pop()
        inner = []
        for key in group:
            seen += 1
            if seen > max_tensors:
                raise LimitError(f"more groups and datasets than max_tensors={max_tensors:,}")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UnsupportedError(f"{quote(at + key)} is a link, which is not followed")
            each = group[key]
            if isinstance(each, h5py.Group):
                if depth == _MAX_DEPTH:
                    raise FormatError("groups nest too deep")
                inner.append((f"{at}{key}/", each, depth + 1))
            elif isinstance(each, h5py.Dataset):
                key.encode()
                yield (at + key).removeprefix("model_weights/"), each
        below += reversed(inner)


class _Keras:
    name = "keras"
    suffixes = (".h5", ".hdf5", ".keras")
    written_as = "safetensors"

    def sniff(self, path: Path, begin: bytes) -> bool:
        return begin[:8] == _HDF5 or (path.suffix.lower() == ".keras" and begin[:4] == ZIP_BEGIN)

    def open(self, path: Path, access: Access) -> KerasSource:
        return KerasSource(path, max_header=access.max_header, max_tensors=access.max_tensors)

    def create(self, path: str | os.PathLike[str], output: Output) -> Sink:
        return SAFETENSORS.create(path, output)


KERAS: Final = _Keras()
"""Files of Keras as a container, which are only read: what is made of them is written as safetensors."""
