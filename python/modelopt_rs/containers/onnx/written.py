"""The files that `OnnxSink` writes: one with all in it, or a model and its data beside it."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelopt_rs._core import FormatError, LimitError, UnsupportedError
from modelopt_rs._types import Array
from modelopt_rs.containers.atomic import AtomicFile, write_all
from modelopt_rs.containers.atomic_pair import AtomicPair, locked
from modelopt_rs.containers.onnx.layout import Layout, beside
from modelopt_rs.containers.onnx.wire import scan
from modelopt_rs.containers.reading import MAX_HEADER, MAX_TENSORS, open_regular
from modelopt_rs.stream.model import TensorInfo

__all__ = ["Beside", "Inline"]

_DIGITS = 16
_MAX_STEM = 200  # bytes of the model's name in that of its data, which may have 255 in all


class Inline:
    """One file with everything in it.

    Attributes
    ----------
    path : Path
        The destination.
    begins : mapping of str to int
        Where the bytes of each tensor begin in `data_fd`.
    pieces : sequence of (int, bytes)
        All else that stands in `model_fd`.
    """

    def __init__(self, path: str | os.PathLike[str], layout: Layout, *, durable: bool, overwrite: bool) -> None:
        self._file = AtomicFile(path, nbytes=layout.nbytes, durable=durable, overwrite=overwrite)
        self.path = self._file.path
        self.begins, self.pieces = layout.begins, layout.pieces
        try:
            for at, piece in layout.pieces:
                self._file.write_at(piece, at)
        except BaseException:
            self.abort()
            raise

    @property
    def data_fd(self) -> int:
        """The file; -1 after `commit` or `abort`."""
        return self._file.fd

    model_fd = data_fd

    @property
    def readable(self) -> Path:
        """Where the model can be read before `commit`."""
        return self._file.readable

    def write(self, data: Array, offset: int) -> None:
        """Write bytes of a tensor."""
        self._file.write_at(data, offset)

    def finish(self, crc: Mapping[str, int]) -> None:
        """Make the file readable: it is."""

    def sync(self) -> None:
        """Bring what is written to the disk (if durable)."""
        self._file.sync()

    def commit(self) -> None:
        """Put the file in place."""
        with locked(self.path.parent):
            self._file.commit()
            _remove_unnamed(self.path)

    def abort(self) -> None:
        """Remove the temporary."""
        self._file.abort()


class Beside:
    """A model, and a file of its data; the attributes are those of `Inline`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        proto: Any,
        tensors: Sequence[TensorInfo],
        *,
        durable: bool,
        overwrite: bool,
    ) -> None:
        self._proto, self._tensors = proto, tensors
        layout = beside(proto, tensors, _data_name(Path(path), "0" * _DIGITS))
        self.begins, self.pieces = layout.begins, layout.pieces
        self._pair = AtomicPair(path, nbytes=layout.nbytes + layout.data_nbytes, durable=durable, overwrite=overwrite)
        self.path = self._pair.path
        self._is_finished = False

    @property
    def data_fd(self) -> int:
        """The file of the data; -1 after `commit` or `abort`."""
        return self._pair.data_fd

    @property
    def model_fd(self) -> int:
        """The model's file."""
        return self._pair.model_fd

    @property
    def readable(self) -> Path:
        """Where the model can be read before `commit`."""
        return self._pair.readable

    def write(self, data: Array, offset: int) -> None:
        """Write bytes of a tensor."""
        write_all(self.path, self._pair.data_fd, data, offset)

    def finish(self, crc: Mapping[str, int]) -> None:
        """Name the data by their content, and write the model, which says that name."""
        if self._is_finished:
            return
        order = sorted(self._tensors, key=lambda info: self.begins[info.name])
        content = "".join(f"{self.begins[info.name]} {info.nbytes} {crc[info.name]}\n" for info in order)
        name = _data_name(self.path, hashlib.sha256(content.encode()).hexdigest()[:_DIGITS])
        self.pieces = beside(self._proto, self._tensors, name).pieces
        write_all(self.path, self._pair.model_fd, self.pieces[0][1], 0)
        self._pair.name_data(name)
        self._is_finished = True

    def sync(self) -> None:
        """Bring what is written to the disk (if durable)."""
        self._pair.sync()

    def commit(self) -> None:
        """Put the data in place, then the model."""
        with locked(self.path.parent):
            self._pair.commit()
            _remove_unnamed(self.path)

    def abort(self) -> None:
        """Remove the temporaries."""
        self._pair.abort()


def _stem(path: Path) -> str:
    """Return how the name of a model's data begins: with its own, unless that can't stand in a model."""
    name = os.fsdecode(os.fsencode(path.name)[:_MAX_STEM])
    return name if name.isprintable() and "\\" not in name and path.name.isprintable() else "model"


def _data_name(path: Path, digits: str) -> str:
    return f"{_stem(path)}-{digits}.data"


def _remove_unnamed(path: Path) -> None:
    """Remove data of models that stood at `path`, if no model in the directory names them."""
    pattern = re.compile(re.escape(_stem(path)) + r"-[0-9a-f]{16}\.data")
    with suppress(OSError):
        names = sorted(os.listdir(path.parent))  # noqa: PTH208
        unnamed = {name for name in names if pattern.fullmatch(name)}
        for name in names:
            if unnamed and name not in unnamed:
                graph = _graph_bytes(path.with_name(name))
                unnamed = {data for data in unnamed if data.encode() not in graph}
        for name in unnamed:
            path.with_name(name).unlink()


def _graph_bytes(path: Path) -> bytes:
    """Return a model without its large tensors; nothing if it is none. OSError: there is no telling."""
    try:
        fd = open_regular(path)
    except (ValueError, FileNotFoundError):
        return b""
    try:
        return scan(fd, path, max_header=MAX_HEADER, max_tensors=MAX_TENSORS).data
    except FormatError as e:
        if path.suffix == ".onnx" or isinstance(e, LimitError | UnsupportedError):
            raise OSError(str(e)) from e
        return b""
    finally:
        os.close(fd)
