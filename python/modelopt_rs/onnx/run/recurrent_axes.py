"""Which axes of a model's inputs are time, and which the batch, where LSTM, GRU, RNN, Scan or Loop say it.

A loop says it by what it takes of a value: the rows with the number of each round. Names of axes say it often, and not
always: torch's recurrent layers take time first unless they are told otherwise, and who exports them calls that axis
what they like. What is cut along time is another sequence.
"""

from collections.abc import Collection, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

import onnx_ir as ir

from modelopt_rs.onnx.weights import RECURRENT

__all__ = ["Meaning", "recurrent_axes"]

Meaning: TypeAlias = Literal["time", "batch"]

# One number for one, or along axes that stay where they are.
SAME: Final = {
    "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Max", "Min",
    "Mul", "Neg", "PRelu", "Pow", "RMSNormalization", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt",
    "Sub", "Tanh", "Where",
}  # fmt: skip
WINDOWS: Final = ("AveragePool", "Conv", "MaxPool")
STATES: Final = (5, 6)


class _Place(NamedTuple):
    """An axis of a value, counted from the first, and how many it has."""

    value: ir.Value
    axis: int
    rank: int


def recurrent_axes(model: ir.Model) -> dict[str, dict[int, Meaning]]:
    """Return what axes of inputs are to recurrent layers and loops, where nodes on the way keep them.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.run.recurrent_axes import recurrent_axes
    >>> x = ir.val("x", ir.DataType.FLOAT, ["n", "m", 8])
    >>> node = ir.node("GRU", [x, ir.val("w"), ir.val("r")], {"hidden_size": 4})
    >>> graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 17})
    >>> recurrent_axes(ir.Model(graph, ir_version=8))
    {'x': {0: 'time', 1: 'batch'}}
    """
    counted = _counted(model)
    if not counted and not any(map(_is_recurrent, model.graph)):
        return {}
    found: dict[str, dict[int, Meaning]] = {}
    for value in model.graph.inputs:
        rank = 0 if value.shape is None else len(value.shape)
        for axis in range(rank):
            meanings = set(_meanings(_Place(value, axis, rank), counted))
            if len(meanings) == 1:
                found.setdefault(str(value.name), {})[axis] = meanings.pop()
    return found


def _is_recurrent(node: ir.Node) -> bool:
    return node.op_type.lower() in RECURRENT or node.op_type == "Scan"


def _meanings(start: _Place, counted: Collection[ir.Value]) -> Iterator[Meaning]:
    """Yield what an axis is to the recurrent nodes and loops that it gets to."""
    left, seen = [start], {start}
    while left:
        place = left.pop()
        for node, index in place.value.uses():
            if node.domain != "":
                continue
            if _is_recurrent(node):
                yield from (_scanned if node.op_type == "Scan" else _meaning)(node, index, place)
                continue
            if index == 0 and _is_counted(node, place, counted):
                yield "time"
                continue
            after = _after(node, index, place)
            if after is not None and after not in seen:
                seen.add(after)
                left.append(after)


def _counted(model: ir.Model) -> set[ir.Value]:
    """Return the numbers of rounds in the bodies of loops, and what is computed with them."""
    left: list[ir.Value] = []
    for node in model.graph.all_nodes():
        body = node.attributes.get("body")
        if node.op_type == "Loop" and node.domain == "" and body is not None and body.type == ir.AttributeType.GRAPH:
            left.extend(body.as_graph().inputs[:1])
    found = set(left)
    while left:
        new = {out for node, _ in left.pop().uses() for out in node.outputs} - found
        found |= new
        left.extend(new)
    return found


def _is_counted(node: ir.Node, place: _Place, counted: Collection[ir.Value]) -> bool:
    """Whether a node takes rows along an axis by the number of a loop's round, as it is or computed with."""
    if len(node.inputs) < 2 or node.inputs[1] not in counted:
        return False
    if node.op_type == "Gather":
        axes = [node.attributes.get_int("axis", 0)]
    elif node.op_type == "Slice":
        given = ir.convenience.get_const_tensor(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
        axes = list(range(place.rank)) if given is None else given.numpy().reshape(-1).tolist()
    else:
        return False
    return place.axis in [axis % place.rank for axis in axes]


def _scanned(node: ir.Node, index: int, place: _Place) -> Iterator[Meaning]:
    body = node.attributes.get("body")
    which = index - (len(node.inputs) - node.attributes.get_int("num_scan_inputs", 0))
    if body is None or (which < 0 and index > 0):
        return
    if len(node.inputs) > len(body.as_graph().inputs):  # opset 8: lengths come first, and all else has the batch first
        if place.axis == 0:
            yield "batch"
        elif place.axis == 1 and which >= 0:
            yield "time"
        return
    given = node.attributes.get("scan_input_axes")
    axes = [] if given is None else list(given.as_ints())
    if which >= 0 and place.axis == (axes[which] % place.rank if which < len(axes) else 0):
        yield "time"


def _meaning(node: ir.Node, index: int, place: _Place) -> Iterator[Meaning]:
    axis, first = place.axis, node.attributes.get_int("layout", 0) == 1  # the batch is
    if index == 0 and axis < 2:
        yield "batch" if (axis == 0) == first else "time"
    elif index in STATES and axis == (0 if first else 1):
        yield "batch"


def _after(node: ir.Node, index: int, place: _Place) -> _Place | None:
    """Return where an axis is behind a node; None where that isn't known."""
    out, (value, axis, rank) = node.outputs[0], place
    if node.op_type in SAME:
        ranks = [len(x.shape) for x in node.inputs if x is not None and x is not value and x.shape is not None]
        wider = max([0, *(each - rank for each in ranks)]) if len(node.inputs) < 4 else 0
        return _Place(out, axis + wider, rank + wider)
    if node.op_type == "Transpose":
        given = node.attributes.get("perm")
        perm = list(range(rank))[::-1] if given is None else list(given.as_ints())
        return _Place(out, perm.index(axis), rank) if axis in perm else None
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return _moved(node, place)
    if node.op_type == "Concat":
        along = node.attributes.get_int("axis", 0) % rank
        return None if along == axis else _Place(out, axis, rank)
    if node.op_type == "Gather" and index == 1 and node.attributes.get_int("axis", 0) == 0:  # of a table of embeddings
        return _Place(out, axis, rank + 1)
    if index == 0 and node.op_type in WINDOWS:
        return None if axis == 1 else _Place(out, axis, rank)
    product = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transA", 0))
    return _Place(out, axis, rank) if index == 0 and product and axis < rank - 1 else None


def _moved(node: ir.Node, place: _Place) -> _Place | None:
    """Return where an axis is behind a Squeeze or Unsqueeze whose axes are constants."""
    out, (_, axis, rank) = node.outputs[0], place
    given = node.attributes.get("axes")
    tensor = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    if given is None and tensor is None:
        return None
    axes = list(given.as_ints()) if given is not None else tensor.numpy().reshape(-1).tolist()  # type: ignore[union-attr]
    if node.op_type == "Squeeze":
        gone = {each % rank for each in axes}
        return None if axis in gone else _Place(out, axis - sum(each < axis for each in gone), rank - len(gone))
    rank += len(axes)
    new = {each % rank for each in axes}
    return _Place(out, [i for i in range(rank) if i not in new][axis], rank)
