"""What must hold of a model before its graph is built: `check` looks at every graph, node and tensor once."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import prod
from typing import Any, Final, TypeAlias

import onnx

from modelopt_rs._core import FormatError, LimitError, UnsupportedError
from modelopt_rs.containers.onnx.dtypes import STRING
from modelopt_rs.containers.onnx.external import Extent, ExternalFiles, File, parse_entries
from modelopt_rs.containers.onnx.operators import problem, rank_behind
from modelopt_rs.containers.onnx.order import Cycle, sort_nodes
from modelopt_rs.containers.onnx.wire import NO_SPARSE, Skeleton
from modelopt_rs.dtypes import BY_ONNX_NUMBER, nbytes
from modelopt_rs.errors import quote

__all__ = ["Checker"]

# The names that a graph's nodes can see, those of the graphs around it and its own, with the number of their axes, if
# that is known.
_Scope: TypeAlias = dict[str, int | None]
_Scopes: TypeAlias = tuple[_Scope, ...]

_MIN_VERSION = 3  # opset imports came with it
_MAX_NAME = 64 << 10
_MAX_AXES = 32
_TYPE_STRING, _TYPE_MESSAGE = 9, 11  # FieldDescriptor
_TENSOR, _TENSORS, _GRAPH, _GRAPHS, _SPARSE = 4, 9, 5, 10, (11, 12)  # AttributeProto.AttributeType
# By the field of elements: the dtypes that stand in it, and how many entries one element takes.
_TYPED: Final[dict[str, dict[int, int]]] = {
    "float_data": {1: 1, 14: 2},
    "double_data": {11: 1, 15: 2},
    "int64_data": {7: 1},
    "uint64_data": {12: 1, 13: 1},
    "int32_data": dict.fromkeys((2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28), 1),
}
_PAYLOAD_NAMES = {4: "float_data", 9: "raw_data", 10: "double_data"}


class Checker:
    """Checks a model that was parsed from a skeleton, and finds where the bytes of its tensors stand.

    After `model` the location of each tensor that isn't in the graph itself is the skeleton's token and an index
    into `extents`.

    Parameters
    ----------
    path : str
        How errors call the model.
    skeleton : Skeleton
        What was parsed.
    own : File
        The model's file.
    external : ExternalFiles
        Opens the files of external data.

    Raises
    ------
    FormatError
        If the model is malformed. `LimitError`, `UnsupportedError`: see there.
    """

    def __init__(self, path: str, skeleton: Skeleton, own: File, external: ExternalFiles) -> None:
        self.extents: list[Extent] = []
        self._path = path
        self._skeleton = skeleton
        self._own = own
        self._external = external
        self._imports: dict[str, int] = {}  # of the graph or function that is looked at
        self._regions: dict[tuple[int, int], list[tuple[int, int, str]]] = {}  # by external file

    def text(self, proto: Any) -> None:
        """Check that all text of a ModelProto is text."""
        for text in _undecoded(proto):
            raise FormatError(f"{self._path}: text {text[:64]!r} is not UTF-8")

    def model(self, proto: Any) -> None:
        """Check a ModelProto that is mended."""
        if not proto.HasField("graph") or not proto.opset_import:
            what = "opset import" if proto.HasField("graph") else "graph"
            raise FormatError(f"{self._path}: no {what}; not a whole ONNX model")
        if not _MIN_VERSION <= proto.ir_version <= onnx.IR_VERSION:
            raise UnsupportedError(
                f"{self._path}: ir_version {proto.ir_version}, supported are {_MIN_VERSION} to {onnx.IR_VERSION}"
            )
        self._unique("opset import", (entry.domain for entry in proto.opset_import))
        self._unique("metadata key", (entry.key for entry in proto.metadata_props))
        self._unique("function", (f"{f.domain}::{f.name}:{f.overload}" for f in proto.functions))
        self._imports = {entry.domain: entry.version for entry in proto.opset_import}
        if "" not in self._imports and any(node.domain == "" for node in proto.graph.node):
            raise FormatError(f"{self._path}: no opset import of the standard operators")
        self._graph(proto.graph, "", ())
        for function in proto.functions:
            inside = f" of function {quote(function.name)}"
            self._unique("input" + inside, function.input)
            self._imports = {entry.domain: entry.version for entry in function.opset_import}
            self._attributes(function.attribute_proto, inside, ())
            self._nodes(function.node, inside, (dict.fromkeys(function.input),), function.output)
        self._overlaps()

    def _graph(self, graph: Any, inside: str, scopes: _Scopes) -> None:
        if graph.sparse_initializer:
            raise UnsupportedError(f"{self._path}: {NO_SPARSE}")
        self._unique("input" + inside, (value.name for value in graph.input))
        self._unique("initializer" + inside, (tensor.name for tensor in graph.initializer))
        for tensor in graph.initializer:
            if not tensor.name:
                raise FormatError(f"{self._path}: an initializer{inside} has no name")
            if len(tensor.name) > _MAX_NAME:
                raise LimitError(f"{self._path}: initializer {quote(tensor.name)} has a name of over 64 KiB")
            self._tensor(tensor, f"{self._path}: initializer {quote(tensor.name)}{inside}")
        names: _Scope = {}
        for value in graph.input:
            if not value.name:
                raise FormatError(f"{self._path}: an input{inside} has no name")
            names[value.name] = None
            if value.HasField("type") and value.type.tensor_type.HasField("shape"):
                names[value.name] = len(value.type.tensor_type.shape.dim)
        for tensor in graph.initializer:
            if names.get(tensor.name) not in (None, len(tensor.dims)):
                raise FormatError(
                    f"{self._path}: initializer {quote(tensor.name)}{inside} has {len(tensor.dims)} axes, the input "
                    f"of its name {names[tensor.name]}"
                )
            names[tensor.name] = len(tensor.dims)
        self._nodes(graph.node, inside, (*scopes, names), [value.name for value in graph.output])

    def _nodes(self, nodes: Any, inside: str, scopes: _Scopes, outputs: Iterable[str]) -> None:
        """Check the nodes of a graph, of which `scopes` ends with the names of the inputs and initializers.

        They are sorted, if they aren't: a node sees what others make, wherever they stand.
        """
        own = scopes[-1]
        for node in nodes:
            for name in node.output:
                if name and name in own:
                    raise FormatError(f"{self._path}: value {quote(name)}{inside} is made twice")
                own[name] = None
        try:
            sort_nodes(nodes)
        except Cycle as e:
            raise FormatError(f"{self._path}: node {_label(e.node)}{inside} depends on its own output") from None
        for node in nodes:
            self._node(node, inside, scopes)
        for name in outputs:
            if name not in own or not name:
                raise FormatError(f"{self._path}: output {quote(name)}{inside} is not defined in its graph")

    def _node(self, node: Any, inside: str, scopes: _Scopes) -> None:
        where = f" of node {quote(node.name or node.op_type)}{inside}"[:512]
        ranks: list[int | None] = []
        for name in node.input:
            scope = next((scope for scope in reversed(scopes) if name in scope), None)
            if name and scope is None:
                raise FormatError(f"{self._path}: input {quote(name)}{where} is not defined")
            ranks.append(None if scope is None else scope[name])
        if node.attribute:
            self._attributes(node.attribute, where, scopes)
        wrong = problem(node, self._imports)
        if wrong is None:
            rank, wrong = rank_behind(node, ranks)
            if node.output:
                scopes[-1][node.output[0]] = rank
        if wrong is not None:
            raise FormatError(f"{self._path}: node {_label(node)}{inside}: {wrong}")

    def _attributes(self, attributes: Iterable[Any], inside: str, scopes: _Scopes) -> None:
        self._unique("attribute" + inside, (attribute.name for attribute in attributes))
        for attribute in attributes:
            where = f"{self._path}: attribute {quote(attribute.name)}{inside}"
            if attribute.type == 0 and not attribute.ref_attr_name:
                raise UnsupportedError(f"{where}: has no type, as in the first version of the format")
            if attribute.type in _SPARSE:
                raise UnsupportedError(f"{where}: {NO_SPARSE}")
            there = attribute.HasField("g") or attribute.type == _GRAPHS
            if attribute.type in (_GRAPH, _GRAPHS) and (attribute.ref_attr_name or not there):
                raise FormatError(f"{where}: has no graph of its own")
            if attribute.type == _TENSOR and not attribute.ref_attr_name:
                self._tensor(attribute.t, where)
            elif attribute.type == _TENSORS:
                for tensor in attribute.tensors:
                    self._tensor(tensor, where)
            elif attribute.type == _GRAPH and not attribute.ref_attr_name:
                self._graph(attribute.g, inside, scopes)
            elif attribute.type == _GRAPHS:
                for graph in attribute.graphs:
                    self._graph(graph, inside, scopes)

    def _unique(self, what: str, names: Iterable[str]) -> None:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise FormatError(f"{self._path}: {what} {quote(name)} stands twice")
            seen.add(name)

    def _tensor(self, tensor: Any, where: str) -> None:
        if tensor.data_type not in BY_ONNX_NUMBER and tensor.data_type != STRING:
            raise UnsupportedError(f"{where}: data type {tensor.data_type} is not known")
        if tensor.HasField("segment"):
            raise UnsupportedError(f"{where}: tensors in segments are not supported")
        shape = tuple(tensor.dims)
        if any(n < 0 for n in shape):
            raise FormatError(f"{where}: shape {shape[:_MAX_AXES]} has a negative axis")
        if len(shape) > _MAX_AXES:
            raise LimitError(f"{where}: {len(shape):,} axes, at most {_MAX_AXES} are supported")
        if prod(n for n in shape if n) >> 59:
            raise FormatError(f"{where}: shape {shape} has more elements than fit any memory")
        if tensor.data_type == STRING:
            self._strings(tensor, prod(shape), where)
        elif tensor.data_location == tensor.EXTERNAL:
            self._locate(tensor, nbytes(BY_ONNX_NUMBER[tensor.data_type], shape), where)
        else:
            self._inline(tensor, shape, where)

    def _strings(self, tensor: Any, count: int, where: str) -> None:
        if tensor.data_location == tensor.EXTERNAL or tensor.HasField("raw_data"):
            raise FormatError(f"{where}: strings must stand in the tensor itself")
        if len(tensor.string_data) != count:
            raise FormatError(f"{where}: {len(tensor.string_data):,} strings, its shape needs {count:,}")

    def _inline(self, tensor: Any, shape: tuple[int, ...], where: str) -> None:
        if tensor.external_data:
            raise FormatError(f"{where}: external data without its data_location")
        expected = nbytes(BY_ONNX_NUMBER[tensor.data_type], shape)
        fields = _typed_fields(tensor)
        if tensor.HasField("raw_data"):
            if fields:
                raise FormatError(f"{where}: raw_data and {fields[0]}")
            self._compare(len(tensor.raw_data), expected, "raw_data", where)
        elif fields:
            self._typed(tensor, fields, expected, shape, where)
        else:
            self._compare(0, expected, "no data", where)

    def _typed(self, tensor: Any, fields: list[str], expected: int, shape: tuple[int, ...], where: str) -> None:
        entries = _TYPED.get(fields[0], {}).get(tensor.data_type)
        if len(fields) > 1 or entries is None:
            raise FormatError(f"{where}: {BY_ONNX_NUMBER[tensor.data_type]} can't stand in {' and '.join(fields)}")
        count = len(getattr(tensor, fields[0]))
        # Of four or two bits several stand in an entry; of six each has its own.
        wanted = expected if tensor.data_type in (21, 22, 23, 25, 26) else entries * prod(shape)
        if count != wanted:
            raise FormatError(f"{where}: {count:,} entries of {fields[0]}, its shape needs {wanted:,}")

    def _compare(self, got: int, expected: int, what: str, where: str) -> None:
        if got != expected:
            raise FormatError(f"{where}: {what} of {got:,} bytes, its shape and type need {expected:,}")

    def _locate(self, tensor: Any, expected: int, where: str) -> None:
        """Find the bytes of a tensor that aren't in the skeleton, and point the tensor to them."""
        fields = _typed_fields(tensor) + ["raw_data"] * tensor.HasField("raw_data")
        if fields:
            raise FormatError(f"{where}: {fields[0]} and external data")
        if tensor.external_data and tensor.external_data[0].value.startswith(self._skeleton.token):
            extent = self._payload(tensor, expected, where)
        else:
            extent = self._outside(tensor, expected, where)
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=f"{self._skeleton.token}:{len(self.extents)}")
        self.extents.append(extent)

    def _payload(self, tensor: Any, expected: int, where: str) -> Extent:
        if len(tensor.external_data) != 1:
            raise UnsupportedError(f"{where}: its data stand in two pieces")
        payload = self._skeleton.payloads[int(tensor.external_data[0].value.rpartition(":")[2])]
        name = _PAYLOAD_NAMES[payload.number]
        if name != "raw_data" and tensor.data_type not in _TYPED[name]:
            raise FormatError(f"{where}: {BY_ONNX_NUMBER[tensor.data_type]} can't stand in {name}")
        self._compare(payload.nbytes, expected, name, where)
        return Extent(self._own, payload.offset)

    def _outside(self, tensor: Any, expected: int, where: str) -> Extent:
        entries = ((entry.key, entry.value) for entry in tensor.external_data)
        location, offset, length = parse_entries(entries, where)
        if length is not None:
            self._compare(length, expected, "external data", where)
        file = self._external.file(location, where)
        if offset + expected > file.size:
            raise FormatError(
                f"{where}: external data {quote(location)}: offset {offset:,} + length {expected:,} exceeds "
                f"file length {file.size:,}"
            )
        if expected:
            self._regions.setdefault(file.identity, []).append((offset, offset + expected, where))
        return Extent(file, offset)

    def _overlaps(self) -> None:
        """Parts of an external file may be used twice, but not partly."""
        for regions in self._regions.values():
            regions.sort()
            for (begin, end, _), (next_begin, next_end, where) in pairwise(regions):
                if next_begin < end and (begin, end) != (next_begin, next_end):
                    raise FormatError(f"{where}: its external data overlap another tensor's")


def _label(node: Any) -> str:
    """Return how a node is called in messages."""
    name = node.name or next(iter(node.output), "")
    return f"{quote(name)} ({quote(node.op_type)[1:-1]})" if name else quote(node.op_type)


def _typed_fields(tensor: Any) -> list[str]:
    return [name for name in (*_TYPED, "string_data") if len(getattr(tensor, name))]


def _undecoded(message: Any) -> Iterator[bytes]:
    """Yield text in a message, and in all messages in it, that is not UTF-8: protobuf gives it as bytes."""
    for field, value in message.ListFields():
        if field.type == _TYPE_STRING:
            yield from (t for t in ((value,) if isinstance(value, (str, bytes)) else value) if isinstance(t, bytes))
        elif field.type == _TYPE_MESSAGE:
            for part in (value,) if hasattr(value, "ListFields") else value:
                yield from _undecoded(part)
