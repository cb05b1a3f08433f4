"""ONNX files: the graph in memory, the weights in row tiles."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.containers.onnx.attributes import attributes_in_words
from modelopt_rs.containers.onnx.dtypes import tensor_info
from modelopt_rs.containers.onnx.external import Extent, ExternalFiles, ModelFile, Trust
from modelopt_rs.containers.onnx.graph import build
from modelopt_rs.containers.onnx.tensors import extent_of, is_lazy
from modelopt_rs.containers.onnx.wire import scan
from modelopt_rs.containers.reading import MAX_HEADER, MAX_TENSORS, Identity, identity, open_again, open_regular
from modelopt_rs.dtypes import array_dtype, is_packed
from modelopt_rs.errors import quote
from modelopt_rs.stream.model import Source, TensorInfo, Tile
from modelopt_rs.stream.row_tiles import TileReader

__all__ = ["OnnxSource"]

_MAX_PROTOBUF = (1 << 31) - 1  # its own parser takes no more


class OnnxSource(Source):
    """One ONNX model, open for reading: its graph, and its weights in row tiles.

    The weights are read by `pread` when they are asked for, from the model's file or its external data; opening
    takes memory for the graph only. Every weight is an initializer of `model.graph`: constants, and initializers
    of the bodies of If, Loop and Scan, are made that (see `lift`). What is left out: information for training.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    max_header : int
        The largest graph to accept, in bytes, without the tensors of 1 KiB and more.
    max_tensors : int
        The most tensors, and the most nodes, to accept.
    allow_hard_links : bool
        Whether files of external data may have a second name (they could be somebody else's).
    allow_symlinks_under : path, optional
        Files of external data may be symbolic links to files beneath this directory.
    fd : int, optional
        A descriptor of the file that is open already; `close` closes it.

    Attributes
    ----------
    path : Path
    model : onnx_ir.Model
        The graph; change it as you like. Tensors of 1 KiB and more are lazy: each use reads the file.

    Raises
    ------
    FormatError
        If the file, or what it says of its external data, is malformed. `LimitError`: it is over a limit.
        `UnsupportedError`: it has something that isn't known.
    ValueError
        If it isn't a regular file.
    OSError
        If it can't be opened or read.
    """

    container = "onnx"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_header: int = MAX_HEADER,
        max_tensors: int = MAX_TENSORS,
        allow_hard_links: bool = False,
        allow_symlinks_under: str | os.PathLike[str] | None = None,
        fd: int | None = None,
    ) -> None:
        self.path = Path(path)
        self._access = {
            "max_header": max_header,
            "max_tensors": max_tensors,
            "allow_hard_links": allow_hard_links,
            "allow_symlinks_under": allow_symlinks_under,
        }
        self._reader = TileReader()
        self._file = ModelFile(self.path, open_regular(path) if fd is None else fd)
        trust = Trust(hard_links=allow_hard_links, symlinks_under=allow_symlinks_under)
        self._external = ExternalFiles(self.path, trust)
        try:
            limit = min(max_header, _MAX_PROTOBUF)
            skeleton = scan(self._file.fd, self.path, max_header=limit, max_tensors=max_tensors)
            self._size = os.fstat(self._file.fd).st_size
            self.model: ir.Model = build(skeleton, self._file, self._external, max_header, max_tensors)
        except BaseException:
            self.close()
            raise
        self._notes: tuple[str, ...] | None = None
        self._tensors: dict[str, TensorInfo] = {}
        self._extents: dict[str, Extent] = {}
        for name, value in self.model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and is_lazy(tensor):
                self._tensors[name] = tensor_info(name, tensor.dtype.value, tuple(tensor.shape.numpy()))
                self._extents[name] = extent_of(tensor)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors of 1 KiB and more, but strings, by name, in the order of the graph."""
        return MappingProxyType(self._tensors)

    @property
    def graph(self) -> ir.Model:
        """The graph: `model`."""
        return self.model

    @property
    def nbytes(self) -> int:
        """The size of the file and of its external data."""
        return os.fstat(self._file.fd).st_size + self._external.nbytes

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether most of the file is no tensor."""
        if self._notes is None:  # counted when they are first asked for: a model is opened many times in one operation
            self._notes = attributes_in_words(self.model, self._size)
        return self._notes

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's `metadata_props`."""
        return MappingProxyType(self.model.metadata_props)

    @property
    def identity(self) -> Identity:
        """What tells the file from others, and from itself when it has changed."""
        return identity(self._file.fd)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it again where it is unpickled, with the graph of the file; ValueError if it is another file then."""
        return open_again, (type(self), self.path, self._access, self.identity)

    def read(self, name: str) -> Array:
        """Return one tensor, whole, as a new array of its own shape.

        Where several elements share a byte it is the bytes of the flat tensor, as uint8.

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
        info, extent = self._find(name)
        shape = (info.nbytes,) if is_packed(info.dtype) else info.shape
        array = np.empty(shape, array_dtype(info.dtype))
        extent.fill(array, 0)
        return array

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows in order, as many at a time as fit `max_bytes`, but at least one.

        Parameters
        ----------
        name : str
            One of `tensors`. Where several elements share a byte, a row is a byte of the flat tensor.
        max_bytes : int
            The largest array to yield.
        rows : range, optional
            Only these rows, which are consecutive.

        Yields
        ------
        Tile
            Its array is overwritten when the next is asked for, and may be after the last one.
        """
        info, extent = self._find(name)
        return self._reader.tiles(info, array_dtype(info.dtype), extent.fill, max_bytes, rows)

    def _find(self, name: str) -> tuple[TensorInfo, Extent]:
        if self._file.fd < 0:
            raise ValueError(f"{self.path}: the file is closed")
        if name not in self._tensors:
            raise KeyError(f"{self.path}: no tensor {quote(name)}")
        return self._tensors[name], self._extents[name]

    def close(self) -> None:
        """Close the files. Nothing can be read after it, but tensors that are in memory."""
        self._file.close()
        self._external.close()
