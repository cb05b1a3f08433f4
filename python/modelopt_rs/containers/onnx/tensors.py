"""Tensors of a graph whose bytes are elsewhere: in a file, in memory, or still to come."""

from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.containers.onnx.dtypes import STRING, tensor_info
from modelopt_rs.containers.onnx.external import Extent
from modelopt_rs.dtypes import is_packed
from modelopt_rs.errors import quote
from modelopt_rs.stream.model import TensorInfo

__all__ = ["extent_of", "in_memory", "initializer_infos", "is_lazy", "lazy", "placeholder", "stored"]

_EXTENT: Final = "modelopt_rs.extent"


class _Memory:
    """A file that is none."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self._data = data

    def read_into(self, buffer: Array, offset: int) -> None:
        """Fill a C-contiguous array with the bytes from `offset` on."""
        view = buffer.reshape(-1).view(np.uint8)
        view[:] = np.frombuffer(self._data, np.uint8, view.nbytes, offset)


def stored(path: Path, data: bytes) -> Extent:
    """Return the place of a tensor whose bytes are in memory."""
    return Extent(_Memory(path, data), 0)


def lazy(like: ir.TensorProtocol, extent: Extent) -> ir.LazyTensor:
    """Return a tensor like another that reads its bytes each time it is used."""
    dtype, shape = like.dtype, tuple(like.shape.numpy())
    tensor = ir.LazyTensor(
        lambda: in_memory(dtype, shape, extent),
        dtype,
        ir.Shape(shape, frozen=True),
        name=like.name,
        doc_string=like.doc_string or None,
        metadata_props=dict(like.metadata_props),
    )
    tensor.meta[_EXTENT] = extent
    return tensor


def is_lazy(tensor: ir.TensorProtocol | None) -> bool:
    """Whether `lazy` has made the tensor."""
    return isinstance(tensor, ir.LazyTensor) and _EXTENT in tensor.meta


def extent_of(tensor: ir.TensorProtocol) -> Extent:
    """Return where the bytes of a lazy tensor stand."""
    extent: Extent = tensor.meta[_EXTENT]
    return extent


def initializer_infos(model: ir.Model) -> dict[str, TensorInfo]:
    """Return the initializers of a graph by name, wherever their bytes are; strings, which have none, are left out."""
    return {
        name: tensor_info(name, tensor.dtype.value, tuple(tensor.shape.numpy()))
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None and tensor.dtype.value != STRING
    }


def in_memory(dtype: ir.DataType, shape: tuple[int, ...], extent: Extent) -> ir.TensorProtocol:
    """Read a tensor."""
    info = tensor_info("", dtype.value, shape)
    data = np.empty(info.nbytes, np.uint8)
    extent.fill(data, 0)
    if is_packed(info.dtype):
        return ir.PackedTensor(data, dtype, shape=shape)
    return ir.Tensor(data.view(dtype.numpy()).reshape(shape), dtype=dtype)


def placeholder(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """Return a tensor that says its dtype and shape and has no values yet: `OnnxSink.write` brings them.

    Parameters
    ----------
    name : str
        The initializer.
    dtype : onnx_ir.DataType
        Its dtype.
    shape : tuple of int
        Its shape.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.files.onnx import placeholder
    >>> tensor = placeholder("w", ir.DataType.INT4, (3, 3))
    >>> tensor.nbytes
    5
    >>> tensor.numpy()
    Traceback (most recent call last):
    ValueError: placeholder: tensor 'w' has no values before it is written
    """

    def refuse() -> ir.TensorProtocol:
        raise ValueError(f"placeholder: tensor {quote(name)} has no values before it is written")

    return ir.LazyTensor(refuse, dtype, ir.Shape(shape, frozen=True), name=name)
