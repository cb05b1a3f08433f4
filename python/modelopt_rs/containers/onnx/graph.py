"""From a skeleton to a graph whose weights are lazy initializers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from modelopt_rs._core import FormatError, LimitError, UnsupportedError
from modelopt_rs.containers.onnx.check import Checker
from modelopt_rs.containers.onnx.external import Extent, ExternalFiles, File
from modelopt_rs.containers.onnx.functions import inline_functions
from modelopt_rs.containers.onnx.layout import UNNAMED
from modelopt_rs.containers.onnx.lift import lift
from modelopt_rs.containers.onnx.mend import mend
from modelopt_rs.containers.onnx.tensors import extent_of, in_memory, is_lazy, lazy, stored
from modelopt_rs.containers.onnx.wire import LAZY_BYTES, Skeleton
from modelopt_rs.errors import quote

__all__ = ["build"]


def build(skeleton: Skeleton, own: File, external: ExternalFiles, max_header: int, max_nodes: int) -> ir.Model:
    """Parse a skeleton, check it, and make a graph of it.

    Parameters
    ----------
    skeleton : Skeleton
        The model without its large tensors.
    own : File
        The model's file.
    external : ExternalFiles
        Opens the files of external data.
    max_header : int
        The most bytes of tensors to read that can't be initializers of the main graph (in functions, say).
    max_nodes : int
        The most nodes that functions may become where they are called; else they stay functions.

    Raises
    ------
    FormatError
        If it is no model. `LimitError`, `UnsupportedError`: see there.
    """
    proto = onnx.ModelProto()
    _call(own.path, proto.ParseFromString, skeleton.data)
    checker = Checker(str(own.path), skeleton, own, external)
    checker.text(proto)
    is_unnamed = any(not entry.HasField("domain") for entry in proto.opset_import)
    mend(proto)
    checker.model(proto)
    model: ir.Model = inline_functions(_call(own.path, ir.from_proto, proto), proto, max_nodes)
    model.meta[UNNAMED] = is_unnamed
    settled: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}

    def settle(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        # One that inlined functions share stays one.
        if id(tensor) not in settled:
            settled[id(tensor)] = (tensor, _settle(tensor, checker.extents, own.path))
        return settled[id(tensor)][1]

    _each_tensor(model, settle)
    _call(own.path, lift, model)
    main = model.graph.initializers.values()
    for value in main:
        if value.const_value is not None:
            value.const_value = settle(value.const_value)
    _each_tensor(model, _Loader(max_header, own.path), leave={id(value.const_value) for value in main})
    return model


def _call(path: Path, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of a library with what stands in the file; whatever it doesn't like is a FormatError."""
    try:
        return function(*args)
    except (MemoryError, OSError, FormatError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        kind = UnsupportedError if isinstance(cause, NotImplementedError) else FormatError
        raise kind(f"{path}: not a graph that can be read: {quote(str(cause))}") from error


def _settle(tensor: ir.TensorProtocol, extents: list[Extent], path: Path) -> ir.TensorProtocol:
    """Return a tensor of the skeleton as it is from now on: lazy if it is large."""
    if isinstance(tensor, ir.ExternalTensor):
        extent = extents[int(str(tensor.location).rpartition(":")[2])]
    elif is_lazy(tensor) or tensor.dtype == ir.DataType.STRING or tensor.nbytes < LAZY_BYTES or _is_short(tensor):
        return tensor
    else:
        extent = stored(path, _call(path, tensor.tobytes))
    result: ir.TensorProtocol = lazy(tensor, extent)
    return result if tensor.nbytes >= LAZY_BYTES else _loaded(result)


def _is_short(tensor: ir.TensorProtocol) -> bool:
    """Whether integers stand in fewer bytes than 8 each (labels, say), as they would not if they were written raw."""
    if tensor.dtype != ir.DataType.INT64 or not isinstance(tensor, ir.TensorProtoTensor):
        return False
    return bool(tensor.raw.int64_data) and tensor.raw.ByteSize() < tensor.nbytes


def _loaded(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a lazy tensor with its values in memory."""
    result = in_memory(tensor.dtype, tuple(tensor.shape.numpy()), extent_of(tensor))
    result.name, result.doc_string = tensor.name, tensor.doc_string
    result.metadata_props.update(tensor.metadata_props)
    return result


class _Loader:
    """Brings lazy tensors into memory, up to a limit."""

    def __init__(self, limit: int, path: Path) -> None:
        self._limit = self._left = limit
        self._path = path

    def __call__(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not is_lazy(tensor):
            return tensor
        self._left -= tensor.nbytes
        if self._left < 0:
            raise LimitError(
                f"{self._path}: tensors that can't be initializers of the graph (in functions, and attributes of "
                f"nodes that aren't Constant) exceed max_header={self._limit:,} bytes"
            )
        return _loaded(tensor)


def _each_tensor(
    model: ir.Model,
    function: Callable[[ir.TensorProtocol], ir.TensorProtocol],
    leave: frozenset[int] | set[int] = frozenset(),
) -> None:
    """Replace every tensor of a model, but those of the ids `leave`."""
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None and id(value.const_value) not in leave:
                value.const_value = function(value.const_value)
        for node in graph:
            _in_attributes(node.attributes, function)
    for definition in model.functions.values():
        _in_attributes(definition.attributes, function)


def _graphs(model: ir.Model) -> Iterator[Any]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def _in_attributes(attributes: Any, function: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    for name, attribute in list(attributes.items()):
        if attribute.is_ref() or attribute.value is None:
            continue
        old = (attribute.value,) if attribute.type == ir.AttributeType.TENSOR else attribute.value
        if attribute.type not in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
            continue
        new = tuple(map(function, old))
        if any(a is not b for a, b in zip(old, new, strict=True)):
            value = new[0] if attribute.type == ir.AttributeType.TENSOR else new
            attributes[name] = ir.Attr(name, attribute.type, value, doc_string=attribute.doc_string)
