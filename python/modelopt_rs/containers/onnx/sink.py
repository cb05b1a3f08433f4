"""ONNX files: write a graph and its weights in row tiles, verify, put in place."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from modelopt_rs._core import FormatError
from modelopt_rs._types import Array
from modelopt_rs.containers.container import check_place
from modelopt_rs.containers.onnx.layout import INLINE_MAX, inline, outline, to_proto
from modelopt_rs.containers.onnx.source import OnnxSource
from modelopt_rs.containers.onnx.tensors import placeholder
from modelopt_rs.containers.onnx.wire import LAZY_BYTES
from modelopt_rs.containers.onnx.written import Beside, Inline
from modelopt_rs.containers.reading import read_into
from modelopt_rs.dtypes import array_dtype, twin_of
from modelopt_rs.errors import quote
from modelopt_rs.stream.model import Sink, TensorInfo
from modelopt_rs.stream.row_tiles import Fill, RowLedger, row_bytes

__all__ = ["OnnxSink", "placeholder"]


class OnnxSink(Sink):
    """An ONNX model that is being written to a temporary; nothing shows at `path` before `commit`.

    It is one file where that stays under 2 GiB, which protobuf can't pass. Else the streamed tensors stand in a
    file of external data beside it, whose name (`model.onnx-<16 hexadecimal digits>.data`) says its content: the
    model never names data that are missing or another model's. Data of a replaced model, under such a name, are
    removed if no model in the directory names them. The same model and bytes make the same files.

    Parameters
    ----------
    path : str or os.PathLike
        The destination; it may be the file that is being read.
    model : onnx_ir.Model
        The graph, as it is now.
    tensors : sequence of TensorInfo
        The initializers of `model.graph` whose bytes come by `write`; in the model they are a `placeholder`, or
        what a source has put there. The values of all other tensors are in memory.
    durable : bool
        Whether `commit` waits until the files are on the disk.
    overwrite : bool
        Whether what is at `path` may be replaced.
    external : bool, optional
        Whether the streamed tensors stand in a file of their own; if None, where the file would be too large.

    Raises
    ------
    ValueError
        If the tensors aren't the model's, if values are missing, if `external` is false and the file too large,
        or if external data were to go beside a symbolic link.
    FileExistsError
        If there is something at `path`, and `overwrite` is false.
    OSError
        ENOSPC if the files don't fit the free space, and whatever the file system says.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: ir.Model,
        tensors: Sequence[TensorInfo],
        *,
        durable: bool = True,
        overwrite: bool = False,
        external: bool | None = None,
    ) -> None:
        self._tensors = tuple(tensors)
        self._by_name = {info.name: info for info in self._tensors}
        self._proto = proto = to_proto(model, self._tensors)
        layout = inline(proto, self._tensors)
        if external is False and layout.nbytes > INLINE_MAX:
            raise ValueError(
                f"OnnxSink: one file of {layout.nbytes:,} bytes is more than the {INLINE_MAX:,} that protobuf reads; "
                "leave external out"
            )
        check_place(path, overwrite)
        self._rows = RowLedger(self._tensors)
        self._files: Inline | Beside
        if external or layout.nbytes > INLINE_MAX:
            self._files = Beside(path, proto, self._tensors, durable=durable, overwrite=overwrite)
        else:
            self._files = Inline(path, layout, durable=durable, overwrite=overwrite)
        self.path = self._files.path

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """The tensors that must be written before `commit`."""
        return self._tensors

    @property
    def nbytes(self) -> int:
        """The size of what is written, of the data beside the model too; before `commit`."""
        return sum(os.fstat(fd).st_size for fd in {self._files.model_fd, self._files.data_fd})

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
            uint8 or the dtype of `ml_dtypes`; where several elements share a byte, bytes of the flat tensor.

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
        data = row_bytes(info, array_dtype(info.dtype), twin_of(info.dtype), array)
        begin = self._files.begins[name]
        self._rows.put(info, row, data, lambda rows, at: self._files.write(rows, begin + at))

    def next_row(self, name: str) -> int:
        """Return the first row of a tensor that is not written."""
        return self._rows.next_row(self._announced(name))

    def _announced(self, name: str) -> TensorInfo:
        if name not in self._by_name:
            raise ValueError(f"{self.path}: no tensor {quote(name)} was announced")
        if self._files.data_fd < 0:
            raise ValueError(f"{self.path}: the file is committed or aborted")
        return self._by_name[name]

    def staged(self) -> Path:
        """Return a path at which the model can be loaded before `commit`, by this process and by others.

        Raises
        ------
        ValueError
            If rows are missing, or the model is committed or aborted.
        """
        if self._files.data_fd < 0:
            raise ValueError(f"{self.path}: the file is committed or aborted")
        self._finish()
        return self._files.readable

    def outline(self) -> bytes:
        """Return the model as a serialized ModelProto in which the streamed tensors have no elements."""
        return outline(self._proto, self._by_name)

    def _finish(self) -> None:
        self._rows.check_whole(self.path)
        self._files.finish({info.name: self._rows.crc(info.name, self._fill(info.name)) for info in self._tensors})

    def commit(self, *, verify: bool = True) -> None:
        """Check that all is written, flush, read it back, and put the model in the place of `path` at once.

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
            self._finish()
            self._files.sync()
            if verify:
                self._verify()
            self._files.commit()
        except BaseException:
            self.abort()
            raise

    def _verify(self) -> None:
        try:
            for at, piece in self._files.pieces:
                written = np.empty(len(piece), np.uint8)
                read_into(self._files.model_fd, written, at, self.path)
                if written.tobytes() != piece:
                    raise FormatError(f"the graph differs from byte {at:,} on")
            for info in self._tensors:
                if not self._rows.is_intact(info.name, self._fill(info.name)):
                    raise FormatError(f"tensor {quote(info.name)} differs")
            # Of the tensors that are written, the parser takes the small ones into the graph.
            limit = sum(len(piece) for _, piece in self._files.pieces) + LAZY_BYTES * len(self._tensors)
            with OnnxSource(self._files.readable, max_header=limit) as source:
                for info in self._tensors:
                    if source.tensors.get(info.name, info) != info:
                        raise FormatError(f"tensor {quote(info.name)} is another")
        except FormatError as e:
            message = f"what was written reads back differently: {e}"
            raise OSError(errno.EIO, message, str(self.path)) from e

    def _fill(self, name: str) -> Fill:
        """Return what fills an array with what is written of a tensor, from an offset on."""
        begin = self._files.begins[name]
        return lambda array, at: read_into(self._files.data_fd, array, begin + at, self.path)

    def abort(self) -> None:
        """Remove the temporary; `path` stays as it was. After `commit` this does nothing."""
        self._files.abort()
