"""Files of torch.save, the zip archives of today and the streams of before 1.6: sources that are read as data alone."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
from modelopt_rs.containers.state_dict import AVERAGES, state_dict
from modelopt_rs.containers.strided import PIECE, gather, is_contiguous
from modelopt_rs.containers.torch_pickle import Storage, StoredTensor, load_objects
from modelopt_rs.containers.window import Window
from modelopt_rs.containers.zip_members import ZIP_BEGIN, stored_members
from modelopt_rs.dtypes import numpy_dtype
from modelopt_rs.errors import FormatError, LimitError, UnsupportedError, quote
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import Sink, TensorInfo, Tile
from modelopt_rs.stream.row_tiles import Fill, TileReader

__all__ = ["TORCH", "TorchSource"]

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_SHARED = 256  # names of one storage, on average: a small file could stand for any number of bytes


class TorchSource(OpenFile):
    """One file of `torch.save`, open for reading. Nothing in it is executed, and torch is not needed.

    The pickle is read by a machine that knows tensors and plain containers and refuses all else; tensors are read
    by `pread`. A state dict may stand under a key such as "state_dict" or "model": the others' tensors are then
    left out with a warning. Means of the weights ("ema", "model_ema" and the like) are taken where they stand alone.
    What DistributedDataParallel, FullyShardedDataParallel and torch.compile put into names is dropped. Two names of
    one storage are two tensors.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    max_header : int
        The largest pickle, and directory of the archive, to accept, in bytes.
    max_tensors : int
        The most tensors, and members of the archive, to accept.
    unwrap : bool
        False: the file is a state dict, whose names stay as they are.

    Raises
    ------
    FormatError
        If the file is malformed. `LimitError`: it is over a limit. `UnsupportedError`: it has something that isn't
        known, as objects that are no tensors, or compressed members.
    ValueError
        If it isn't a regular file.
    OSError
        If it can't be opened or read.
    """

    container = "torch"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_header: int = MAX_HEADER,
        max_tensors: int = MAX_TENSORS,
        unwrap: bool = True,
    ) -> None:
        self.path = Path(path)
        self._options = {"max_header": max_header, "max_tensors": max_tensors, "unwrap": unwrap}
        self._fd = open_regular(path)
        self._reader = TileReader()
        try:
            self._nbytes: int = call(self.path, os.fstat, self._fd).st_size
            if read_at(self._fd, 4, 0, self.path) == ZIP_BEGIN:
                saved = self._open_zip(max_header, max_tensors)
            else:
                saved = self._open_stream(max_header)
            try:
                found, left_out = state_dict(saved, unwrap=unwrap, max_tensors=max_tensors, max_names=max_header)
            except FormatError as e:
                raise type(e)(f"{self.path}: {e}") from None
            self._stored = self._located(found)
        except BaseException:
            self.close()
            raise
        self._tensors = {name: TensorInfo(name, t.dtype, t.shape, t.nbytes) for name, t in self._stored.items()}
        if left_out:
            means = next((key for key in AVERAGES if key in left_out), None)
            hint = (
                "" if means is None else f"; to take the means of its weights, save what is under {quote(means)} alone"
            )
            self._leave_out(left_out, hint)

    def _open_zip(self, max_header: int, max_tensors: int) -> Any:
        """Return what was saved, and note where the storages lie."""
        members = stored_members(self._fd, self.path, max_header=max_header, max_tensors=max_tensors)
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if not pickles and "model.weights.h5" in members:
            raise UnsupportedError(f"{self.path}: is an archive of Keras; name it .keras")
        if len(pickles) != 1:
            raise FormatError(f"{self.path}: is a zip archive, but none of torch.save: it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in members:
            fix = "save the state_dict() of the module, or export it to ONNX"
            raise UnsupportedError(f"{self.path}: is a TorchScript archive, whose code is not read; {fix}")
        order = members.get(folder + "byteorder")
        if order is not None and read_at(self._fd, min(order.nbytes, 8), order.begin, self.path) != b"little":
            raise UnsupportedError(f"{self.path}: its tensors are not little-endian; save it on such a machine")
        member = members[pickles[0]]
        if member.nbytes > max_header:
            raise LimitError(f"{self.path}: data.pkl of {member.nbytes:,} bytes exceeds max_header={max_header:,}")
        text = read_at(self._fd, member.nbytes, member.begin, self.path)
        begin = folder + "data/"
        self._extents = {
            name.removeprefix(begin): (each.begin, each.end) for name, each in members.items() if name.startswith(begin)
        }
        return load_objects(io.BytesIO(text), f"{self.path}: data.pkl")

    def _open_stream(self, max_header: int) -> Any:
        """Return what was saved in a stream: five pickles, and then each storage behind its number of elements."""
        end = min(self._nbytes, max_header)
        file = Window(self._fd, 0, end, self.path).buffered()
        seen: dict[str, Storage] = {}

        def view(storage: Storage) -> None:
            if seen.setdefault(storage.key, storage).itemsize != storage.itemsize:
                raise FormatError(f"the pickle has storage {quote(storage.key)} with two dtypes")

        try:
            if load_objects(file, str(self.path)) != _MAGIC:
                raise FormatError(f"{self.path}: is a pickle, but none of torch.save")
            if load_objects(file, str(self.path)) != _PROTOCOL:
                raise UnsupportedError(f"{self.path}: is of an unknown version of torch.save")
            machine = load_objects(file, str(self.path))
            if not isinstance(machine, dict) or machine.get("little_endian") is not True:
                raise UnsupportedError(f"{self.path}: its tensors are not little-endian; save it on such a machine")
            saved = load_objects(file, str(self.path), view)
            keys = load_objects(file, str(self.path))
        except FormatError as e:
            if file.tell() >= end < self._nbytes and not isinstance(e, LimitError):
                raise LimitError(f"{self.path}: pickles exceed max_header={max_header:,} bytes") from None
            raise
        self._extents = self._stream_extents(keys, seen, file.tell())
        return saved

    def _stream_extents(self, keys: Any, seen: Mapping[str, Storage], at: int) -> dict[str, tuple[int, int]]:
        extents: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else ():
            storage = seen.get(key) if isinstance(key, str) else None
            if storage is None or key in extents:
                raise FormatError(f"{self.path}: a storage stands twice in the list of storages, or in no tensor")
            length = read_at(self._fd, 8, at, self.path)
            end = at + 8 + int.from_bytes(length, "little") * storage.itemsize
            if len(length) < 8 or end > self._nbytes:
                raise FormatError(f"{self.path}: storage {quote(key)} reaches beyond the file")
            extents[key] = at + 8, end
            at = end
        return extents

    def _located(self, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Check that the storages of all tensors are in the file."""
        total = 0
        for name, tensor in tensors.items():
            begin, end = self._extents.get(tensor.storage.key, (0, -1))
            if end < 0:
                raise FormatError(f"{self.path}: tensor {quote(name)} lies in a storage that is not in the file")
            if end - begin < tensor.storage.end:
                raise FormatError(
                    f"{self.path}: tensor {quote(name)} lies in a storage of {tensor.storage.end:,} bytes, "
                    f"of which the file has {end - begin:,}"
                )
            total += tensor.nbytes
        if total > _MAX_SHARED * self._nbytes:
            raise LimitError(f"{self.path}: its tensors show the {self._nbytes:,} bytes of the file as {total:,}")
        return tensors

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, in the order of the state dict."""
        return MappingProxyType(self._tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What a safetensors file of them needs, so that transformers reads it."""
        return MappingProxyType({"format": "pt"})

    def read(self, name: str) -> Array:
        """Return one tensor, whole, as a new array of its own shape."""
        tensor = self._find(name)
        array = np.empty(tensor.shape, numpy_dtype(tensor.dtype))
        self.fill(name)(array, 0)
        return array

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        tensor = self._find(name)
        return self._reader.tiles(self._tensors[name], numpy_dtype(tensor.dtype), self.fill(name), max_bytes, rows)

    def buffers(self, name: str) -> Sequence[Buffer]:
        """Return what reading a tensor holds besides its tile: pieces of one that does not lie in order."""
        tensor = self._find(name)
        if is_contiguous(tensor.shape, tensor.strides):
            return ()
        return (Buffer("u1", min(PIECE, tensor.storage.elements * tensor.storage.itemsize), per=0),)

    def fill(self, name: str) -> Fill:
        """Return what fills an array with a tensor's bytes from an offset on."""
        tensor = self._find(name)
        size = tensor.itemsize
        begin = self._extents[tensor.storage.key][0] + tensor.storage.first * tensor.storage.itemsize
        begin += tensor.offset * size
        if is_contiguous(tensor.shape, tensor.strides):
            return lambda array, at: read_into(self._fd, array, begin + at, self.path)

        def fill(array: Array, at: int) -> None:
            flat = array.reshape(-1).view(f"u{size}")
            read = lambda piece, first: read_into(self._fd, piece, begin + first * size, self.path)  # noqa: E731
            gather(flat, at // size, tensor.shape, tensor.strides, read)

        return fill

    def _find(self, name: str) -> StoredTensor:
        if self._fd < 0:
            raise ValueError(f"{self.path}: the file is closed")
        if name not in self._stored:
            raise KeyError(f"{self.path}: no tensor {quote(name)}")
        return self._stored[name]

    def close(self) -> None:
        """Close the file. Nothing can be read after it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # of a file that was only read nothing can be lost
                os.close(fd)


class _Torch:
    name = "torch"
    suffixes = (".pt", ".pth", ".bin", ".ckpt")
    written_as = "safetensors"

    def sniff(self, path: Path, begin: bytes) -> bool:
        # An archive, or a pickle of one of the protocols that torch has used.
        return begin[:4] == ZIP_BEGIN or (begin[:1] == b"\x80" and b"\x02" <= begin[1:2] <= b"\x05")

    def open(self, path: Path, access: Access) -> TorchSource:
        return TorchSource(path, max_header=access.max_header, max_tensors=access.max_tensors)

    def create(self, path: str | os.PathLike[str], output: Output) -> Sink:
        return SAFETENSORS.create(path, output)


TORCH: Final = _Torch()
"""Files of torch as a container, which are only read: what is made of them is written as safetensors."""
