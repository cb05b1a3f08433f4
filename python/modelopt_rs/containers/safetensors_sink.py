"""safetensors files: write tensors in row tiles, verify, put in place."""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelopt_rs._core import FormatError
from modelopt_rs._types import Array
from modelopt_rs.containers.atomic import AtomicFile
from modelopt_rs.containers.container import Access, Output
from modelopt_rs.containers.reading import call
from modelopt_rs.containers.safetensors import SafetensorsSource
from modelopt_rs.dtypes import numpy_dtype, twin_of
from modelopt_rs.errors import quote
from modelopt_rs.stream.model import Sink, TensorInfo
from modelopt_rs.stream.row_tiles import RowLedger, row_bytes

__all__ = ["SAFETENSORS", "SafetensorsSink"]

_UPSTREAM_MAX_HEADER = 100_000_000  # the format's own reader takes no longer one
_MAX_NAME = 64 << 10
_MAX_AXES = 32


class SafetensorsSink(Sink):
    """A safetensors file that is being written to a temporary; nothing shows at `path` before `commit`.

    The same tensors and bytes make the same file. Tensors stand in descending order of item size, and in the
    order given within one item size: so each is aligned to its items, as readers that map the file need it.

    Parameters
    ----------
    path : str or os.PathLike
        The destination; it may be the file that is being read.
    tensors : sequence of TensorInfo
        All tensors of the file.
    metadata : mapping of str to str
        Goes into the header as `__metadata__`; left out if empty.
    durable : bool
        Whether `commit` waits until the file is on the disk.
    overwrite : bool
        Whether what is at `path` may be replaced: when it is opened, and at `commit`.
    shown : Path, optional
        What errors name, where the file is a part of a temporary directory: its place in the destination.

    Raises
    ------
    FileExistsError
        If there is something at `path`, and `overwrite` is false.
    ValueError
        If the tensors can't be a safetensors file.
    OSError
        ENOSPC if the file doesn't fit the free space, and whatever the file system says.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Sequence[TensorInfo],
        metadata: Mapping[str, str] | None = None,
        *,
        durable: bool = True,
        overwrite: bool = True,
        shown: Path | None = None,
    ) -> None:
        self._tensors = tuple(sorted(tensors, key=lambda info: -_check(info).itemsize))
        self._by_name = {info.name: info for info in self._tensors}
        if len(self._by_name) != len(self._tensors):
            raise ValueError("SafetensorsSink: two tensors have one name")
        self._metadata = dict(metadata or {})
        header, self._begins = _header(self._tensors, self._metadata)
        self._header_nbytes = len(header) - 8
        self._rows = RowLedger(self._tensors)
        nbytes = len(header) + sum(info.nbytes for info in self._tensors)
        self._file = AtomicFile(path, nbytes=nbytes, durable=durable, overwrite=overwrite, shown=shown)
        self.path = self._file.shown
        try:
            self._file.write_at(header, 0)
        except BaseException:
            self._file.abort()
            raise

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """The tensors that must be written before `commit`, in the order of the file."""
        return self._tensors

    def write_at(self, name: str, row: int, array: Array) -> None:
        """Write rows of one tensor; they may come in any order, each once. `write` appends.

        Parameters
        ----------
        name : str
            One of `tensors`.
        row : int
            The first of them: of the flat tensor's rows, which lie along its last axis.
        array : ndarray
            Whole rows: its last axis is the tensor's. bfloat16 as uint16 or `ml_dtypes.bfloat16`, float8 as
            uint8 or the dtype of `ml_dtypes`.

        Raises
        ------
        TypeError
            If the dtype isn't the tensor's.
        ValueError
            If there is no such tensor, the rows don't fit it, or they are written already.
        OSError
            If the bytes can't be written.
        """
        info = self._announced(name)
        data = row_bytes(info, numpy_dtype(info.dtype), twin_of(info.dtype), array)
        begin = self._begins[name]
        self._rows.put(info, row, data, lambda rows, at: self._file.write_at(rows, begin + at))

    def next_row(self, name: str) -> int:
        """Return the first row of a tensor that is not written."""
        return self._rows.next_row(self._announced(name))

    def _announced(self, name: str) -> TensorInfo:
        if name not in self._by_name:
            raise ValueError(f"{self.path}: no tensor {quote(name)} was announced")
        if self._file.fd < 0:
            raise ValueError(f"{self.path}: the file is committed or aborted")
        return self._by_name[name]

    def commit(self, *, verify: bool = True) -> None:
        """Check that all is written, flush, read it back, and put the file in the place of `path` at once.

        Parameters
        ----------
        verify : bool
            Whether to read the temporary back with the strict parser and compare each tensor's checksum.

        Raises
        ------
        ValueError
            If rows are missing.
        OSError
            EIO if what is read back isn't what was written, and whatever the file system says.
        """
        try:
            self._rows.check_whole(self.path)
            self._file.sync()
            if verify:
                self._verify()
            self._file.commit()
        except BaseException:
            self.abort()
            raise

    def _verify(self) -> None:
        try:
            with SafetensorsSource(
                self.path,
                max_header=self._header_nbytes,
                max_tensors=len(self._tensors),
                fd=call(self.path, os.dup, self._file.fd),
            ) as source:
                if source.tensors != self._by_name or source.metadata != self._metadata:
                    raise FormatError("the header differs")
                for name in self._by_name:
                    if not self._rows.is_intact(name, source.fill(name)):
                        raise FormatError(f"tensor {quote(name)} differs")
        except FormatError as e:
            message = f"what was written reads back differently: {e}"
            raise OSError(errno.EIO, message, str(self.path)) from e

    def abort(self) -> None:
        """Remove the temporary; `path` stays as it was. After `commit` this does nothing."""
        self._file.abort()


def _check(info: TensorInfo) -> np.dtype[Any]:
    """Return the NumPy dtype of a tensor that can stand in a safetensors file."""
    where = f"SafetensorsSink: tensor {quote(info.name)}"
    try:
        dtype = numpy_dtype(info.dtype)
        length = len(info.name.encode())
    except ValueError as e:  # UnicodeEncodeError is one
        raise ValueError(f"{where}: {e}") from None
    if info.name == "__metadata__" or length > _MAX_NAME:
        raise ValueError(f"{where}: can't be a tensor's name")
    if len(info.shape) > _MAX_AXES or any(n < 0 for n in info.shape):
        raise ValueError(f"{where}: shape must have at most {_MAX_AXES} axes and none below 0")
    expected = prod(info.shape) * dtype.itemsize
    if info.nbytes != expected:
        raise ValueError(f"{where}: {info.dtype} {info.shape} has {expected:,} bytes, not {info.nbytes:,}")
    return dtype


def _header(tensors: Sequence[TensorInfo], metadata: dict[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return the file's first bytes and where in the file each tensor begins."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"SafetensorsSink: metadata must be strings, got {key!r:.80}: {value!r:.80}")
    begins = {}
    end = 0
    for info in tensors:
        begins[info.name] = end
        end += info.nbytes
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [begins[info.name], end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    # Spaces, so that the data begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    if len(text) > _UPSTREAM_MAX_HEADER:
        raise ValueError(f"SafetensorsSink: header of {len(text):,} bytes, the format allows 100,000,000")
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + at for name, at in begins.items()}


class _Safetensors:
    name = "safetensors"
    suffixes = (".safetensors",)
    written_as = "safetensors"

    def sniff(self, path: Path, begin: bytes) -> bool:
        return begin[8:9] == b"{"  # its header, after a length

    def open(self, path: Path, access: Access) -> SafetensorsSource:
        return SafetensorsSource(path, max_header=access.max_header, max_tensors=access.max_tensors)

    def create(self, path: str | os.PathLike[str], output: Output) -> SafetensorsSink:
        return SafetensorsSink(
            path, output.tensors, output.metadata, durable=output.durable, overwrite=output.overwrite
        )


SAFETENSORS: Final = _Safetensors()
"""Files of safetensors as a container."""
