"""The bytes of an ONNX file around the tensors that are streamed into it, and where those go."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx
import onnx_ir as ir

from modelopt_rs.containers.onnx.dtypes import STRING, tensor_info
from modelopt_rs.containers.onnx.mend import with_types
from modelopt_rs.containers.onnx.wire import varint
from modelopt_rs.errors import quote
from modelopt_rs.stream.model import TensorInfo

__all__ = ["INLINE_MAX", "UNNAMED", "Layout", "beside", "inline", "outline", "to_proto"]

UNNAMED: Final = "modelopt_rs.unnamed"
"""Of a model whose file says no name of the default domain, as most exporters: written out it takes two bytes."""
INLINE_MAX: Final = (1 << 31) - 1
"""The largest file that protobuf reads."""

# Of external data: large tensors begin a page, so that readers can map them.
_PAGE, _LINE = 4096, 64
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_LEN = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """A file in pieces.

    Attributes
    ----------
    pieces : tuple of (int, bytes)
        The model, all but the bytes of streamed tensors, and where in the file each piece begins.
    begins : dict of str to int
        Where the bytes of each streamed tensor begin, in the model or in the file of its data.
    nbytes : int
        How large the model is.
    data_nbytes : int
        How large the file of its data is.
    """

    pieces: tuple[tuple[int, bytes], ...]
    begins: dict[str, int]
    nbytes: int
    data_nbytes: int = 0


def to_proto(model: ir.Model, tensors: Sequence[TensorInfo]) -> Any:
    """Make a ModelProto of a model, in which streamed initializers have external data without an entry.

    Raises
    ------
    ValueError
        If a tensor isn't an initializer of its dtype and shape, or another one's values aren't in memory.
    """
    initializers = model.graph.initializers
    for info in tensors:
        value = initializers.get(info.name)
        if value is None or value.const_value is None:
            raise ValueError(f"OnnxSink: tensor {quote(info.name)} must be an initializer of the model with a value")
        tensor = value.const_value
        if tensor.dtype.value == STRING:
            raise ValueError(f"OnnxSink: tensor {quote(info.name)}: strings can't be streamed")
        expected = tensor_info(info.name, tensor.dtype.value, tuple(tensor.shape.numpy()))
        if info != expected:
            raise ValueError(
                f"OnnxSink: tensor {quote(info.name)} is {expected.dtype} {expected.shape} in the model, "
                f"got {info.dtype} {info.shape} of {info.nbytes:,} bytes"
            )
    names = {info.name for info in tensors}
    if len(names) != len(tensors):
        raise ValueError("OnnxSink: two tensors have one name")
    _check_memory(model, names)
    saved: dict[str, Any] = {name: initializers[name].const_value for name in names}
    try:
        for name, tensor in saved.items():
            initializers[name].const_value = _stand_in(name, tensor)
        proto = _serialized(model)
    finally:
        for name, tensor in saved.items():
            initializers[name].const_value = tensor
    _drop_known_infos(proto.graph)
    with_types(proto.graph)
    for opset in proto.opset_import:
        if not opset.domain and model.meta.get(UNNAMED):
            opset.ClearField("domain")
    return proto


def _stand_in(name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        "",
        None,
        None,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _check_memory(model: ir.Model, streamed: set[str]) -> None:
    for where, tensor in _all_tensors(model):
        if where in streamed and tensor is model.graph.initializers[where].const_value:
            continue
        if tensor is None or isinstance(tensor, (ir.LazyTensor, ir.ExternalTensor)):
            raise ValueError(
                f"OnnxSink: tensor {quote(where)} must be in tensors, or its values in memory, "
                f"got {type(tensor).__name__}"
            )


def _all_tensors(model: ir.Model) -> Iterator[tuple[str, Any]]:
    graphs = list(model.graphs())
    for function in model.functions.values():
        graphs += [function.graph, *function.graph.subgraphs()]
    for graph in graphs:
        for value in graph.initializers.values():
            yield value.name or "", value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref() or attribute.value is None:
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.name, attribute.value
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from ((attribute.name, tensor) for tensor in attribute.value)


def _serialized(model: ir.Model) -> Any:
    try:
        return ir.to_proto(model)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"OnnxSink: the model can't be serialized: {quote(str(cause))}") from error


def _drop_known_infos(graph: Any) -> None:
    """Remove what onnx_ir says of initializers a second time: their types and shapes."""
    names = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in names or info.metadata_props or info.doc_string]
    if len(kept) < len(graph.value_info):
        copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in kept]
        del graph.value_info[:]
        graph.value_info.extend(copies)


def inline(proto: Any, tensors: Sequence[TensorInfo]) -> Layout:
    """Lay out one file: the model without its initializers, then each of those."""
    sizes = {info.name: info.nbytes for info in tensors}
    model, graph = _without(proto, "graph"), _without(proto.graph, "initializer")
    # Each initializer is what stands before its streamed bytes, and how many those are (None: it has none).
    entries: list[tuple[str, bytes, int | None]] = []
    for tensor in proto.graph.initializer:
        n = sizes.get(tensor.name)
        body = tensor.SerializeToString() if n is None else _raw_header(tensor, n)
        length = len(body) + (n or 0)
        entries.append((tensor.name, varint(_INITIALIZER << 3 | _LEN) + varint(length) + body, n))
    graph_nbytes = len(graph) + sum(len(head) + (n or 0) for _, head, n in entries)
    pieces = []
    begins = {}
    begin = 0
    open_piece = [model, varint(_GRAPH << 3 | _LEN), varint(graph_nbytes), graph]
    for name, head, n in entries:
        open_piece.append(head)
        if n is not None:
            pieces.append((begin, b"".join(open_piece)))
            begins[name] = begin + len(pieces[-1][1])
            begin, open_piece = begins[name] + n, []
    pieces.append((begin, b"".join(open_piece)))
    return Layout(tuple(pieces), begins, begin + len(pieces[-1][1]))


def _without(message: Any, name: str) -> bytes:
    copy = type(message)()
    copy.CopyFrom(message)
    copy.ClearField(name)
    data: bytes = copy.SerializeToString(deterministic=True)
    return data


def _raw_header(tensor: Any, nbytes: int) -> bytes:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.ClearField("external_data")
    copy.ClearField("data_location")
    data: bytes = copy.SerializeToString(deterministic=True)
    return data + varint(_RAW_DATA << 3 | _LEN) + varint(nbytes)


def outline(proto: Any, names: Container[str]) -> bytes:
    """Serialize a model whose streamed initializers, those of `names`, have no elements."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
            tensor.raw_data = b""
    data: bytes = copy.SerializeToString(deterministic=True)
    return data


def beside(proto: Any, tensors: Sequence[TensorInfo], location: str) -> Layout:
    """Lay out a model and a file of its data, in which each streamed tensor begins at a round number."""
    by_name = {info.name: info for info in tensors}
    begins = {}
    end = 0
    for tensor in proto.graph.initializer:
        info = by_name.get(tensor.name)
        if info is None:
            continue
        del tensor.external_data[:]
        if info.nbytes == 0:  # nothing of it stands anywhere
            begins[info.name] = 0
            tensor.ClearField("data_location")
            tensor.raw_data = b""
            continue
        alignment = _PAGE if info.nbytes >= _PAGE else _LINE
        begins[info.name] = -(-end // alignment) * alignment
        end = begins[info.name] + info.nbytes
        for key, value in {"location": location, "offset": begins[info.name], "length": info.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
    data = proto.SerializeToString(deterministic=True)
    return Layout(((0, data),), begins, len(data), end)
