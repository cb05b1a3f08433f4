"""What is set right in a model before it is checked, because it is plain how."""

from base64 import b64decode, b64encode
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

import onnx
import onnx_ir as ir

__all__ = ["made_by_library", "mend", "nodes_of", "with_types"]

_TYPE: Final = "modelopt_rs.type"
"""Where a type that onnx_ir doesn't know is kept: of a map, as classifiers of scikit-learn give."""

_DEFAULT: Final = ("", "ai.onnx")
_SHAPED: Final = ("tensor_type", "sparse_tensor_type")


def mend(proto: Any) -> None:
    """Give a model one spelling of the default domain, an import of every domain, and no axes of negative length.

    The default domain may stand under two names, and twice: onnxruntime takes the last of them. Where a domain is used
    and not imported, it takes what it has: of ai.onnx.ml the version that came out with the model's opset, of others 1.
    A length of -1 in the type of a value says that the length is open.

    Parameters
    ----------
    proto : ModelProto
        Is changed.
    """
    used = _one_domain(proto)
    _one_import(proto.opset_import)
    for function in proto.functions:
        function.domain = "" if function.domain in _DEFAULT else function.domain
        _one_import(function.opset_import)
    has = {entry.domain for entry in proto.opset_import}
    for domain in sorted(used - has - {""}):
        proto.opset_import.add(domain=domain, version=_version(domain, proto.opset_import))
    for graph in _graphs(proto):
        for value in chain(graph.input, graph.output, graph.value_info):
            _open_axes(value)
    _put_types_aside(proto)
    for value in chain.from_iterable(function.value_info for function in proto.functions):
        _open_axes(value)


def made_by_library(data: bytes) -> ir.Model:
    """Read a model that the library has made of one of ours: it may have inferred types that onnx_ir doesn't know."""
    proto = onnx.ModelProto.FromString(data)
    _put_types_aside(proto)
    model: ir.Model = ir.from_proto(proto)
    return model


def _put_types_aside(proto: Any) -> None:
    """Keep types with maps in them as metadata: onnx_ir reads none."""
    for graph in _graphs(proto):
        for value in chain(graph.input, graph.output, graph.value_info):
            if _has_map(value.type):
                value.metadata_props.add(key=_TYPE, value=b64encode(value.type.SerializeToString()).decode())
                value.ClearField("type")


def with_types(graph: Any) -> None:
    """Give the values of a graph the types back that were put aside."""
    for value in chain(graph.input, graph.output, graph.value_info):
        for i, entry in enumerate(value.metadata_props):
            if entry.key == _TYPE:
                value.type.ParseFromString(b64decode(entry.value))
                del value.metadata_props[i]
                break


def _has_map(type_: Any) -> bool:
    kind = type_.WhichOneof("value")
    while kind in ("sequence_type", "optional_type"):
        type_ = getattr(type_, kind).elem_type
        kind = type_.WhichOneof("value")
    return bool(kind == "map_type")


def _one_domain(proto: Any) -> set[str]:
    """Spell the default domain as nothing; return the domains that are used outside of functions."""
    used = set()
    for graph in (proto.graph, *proto.functions):
        for node in nodes_of(graph):
            if node.domain == "ai.onnx":
                node.domain = ""
            if graph is proto.graph:
                used.add(node.domain)
    return used


def _one_import(imports: Any) -> None:
    """Leave one entry of the default domain, the last, and one of each that stands twice alike."""
    entries: dict[tuple[str, int], tuple[str, int]] = {}
    for entry in imports:
        domain = "" if entry.domain in _DEFAULT else entry.domain
        entries[domain, 0 if domain == "" else entry.version] = (domain, entry.version)
    if [(entry.domain, entry.version) for entry in imports] != list(entries.values()):
        del imports[:]
        for domain, version in entries.values():
            imports.add(domain=domain, version=version)


def _version(domain: str, imports: Any) -> int:
    if domain != "ai.onnx.ml":
        return 1
    opset = next((entry.version for entry in imports if entry.domain == ""), 0)
    versions = [row[3] for row in onnx.helper.VERSION_TABLE if row[2] <= opset]
    return max(versions, default=1)


def _graphs(proto: Any) -> Iterator[Any]:
    """Yield every graph of a model."""
    yield proto.graph
    for graph in (proto.graph, *proto.functions):
        for node in nodes_of(graph):
            yield from _inside(node)


def nodes_of(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, or of a function, and of all graphs in it."""
    for node in graph.node:
        yield node
        for inner in _inside(node):
            yield from nodes_of(inner)


def _inside(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _open_axes(value: Any) -> None:
    if not value.HasField("type"):
        return
    type_ = value.type
    kind = type_.WhichOneof("value")
    while kind in ("sequence_type", "optional_type", "map_type"):
        type_ = type_.map_type.value_type if kind == "map_type" else getattr(type_, kind).elem_type
        kind = type_.WhichOneof("value")
    if kind in _SHAPED:
        for axis in getattr(type_, kind).shape.dim if getattr(type_, kind).HasField("shape") else ():
            if axis.dim_value < 0:
                axis.ClearField("dim_value")
