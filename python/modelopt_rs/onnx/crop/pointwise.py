"""Rules of operators that keep their axes: element-wise ones, norms, pooling, softmax, and what looks at lengths."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from modelopt_rs.errors import quote
from modelopt_rs.onnx.crop.edits import EditCounts
from modelopt_rs.onnx.crop.elements import Computed, Length, constant
from modelopt_rs.onnx.crop.units import Labels
from modelopt_rs.onnx.crop.walk import At, Refused, Walk

__all__ = ["RULES", "axes_of", "pass_on"]

# fmt: off
ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu",
    "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor", "BiasGelu",
    "FastGelu", "QuickGelu",
)
# fmt: on
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")


def axes_of(node: ir.Node, rank: int, default: Sequence[int]) -> list[int]:
    """Return the axes that a node has as an attribute or a second input, counted from the front."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        numbers = constant(node.inputs[1])
        if numbers is None:
            raise Refused(node, "has axes that are computed")
        axes = [int(axis) for axis in numbers.ravel()]
    else:
        axes = list(node.attributes.get_ints("axes", default))
    if any(not -rank <= axis < rank for axis in axes):
        raise Refused(node, f"has axes {axes} of {rank} dimensions")
    return [axis % rank for axis in axes]


def axis_of(walk: Walk, node: ir.Node, value: ir.Value, default: int) -> int:
    """Return the axis that a node has as an attribute, counted from the front."""
    axis, rank = int(node.attributes.get_int("axis", default)), walk.rank(value, node)
    return axis + rank if axis < 0 else axis


def first(node: ir.Node) -> ir.Value:
    """Return a node's first input."""
    if not node.inputs or node.inputs[0] is None:
        raise Refused(node, "has no first input")
    return node.inputs[0]


def only_first(node: ir.Node, at: At) -> None:
    """Refuse what comes by another input or output than the first."""
    if at.index:
        raise Refused(node, f"has the units on {'input' if at.side == 'in' else 'output'} {at.index}")


def pass_on(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the same axis of the first input and the first output, which have the same axes."""
    only_first(node, at)
    walk.give(node.outputs[0] if at.side == "in" else first(node), at.axis, labels, repeated=walk.repeated)


def elementwise(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the same axis, counted from the end, of everything that has it."""
    here = node.inputs[at.index] if at.side == "in" else node.outputs[at.index]
    assert here is not None
    inputs = [value for value in node.inputs if value is not None]
    behind, wide = at.axis - walk.rank(here, node), 0
    for value in inputs:
        shape = walk.shape(value, node)
        if len(shape) < -behind or shape[behind] == 1:
            continue
        wide += 1
        if (wide > 1 or isinstance(shape[behind], int)) if walk.repeated else shape[behind] != len(labels):
            got = f"{quote(value.name or '')}, which has {shape[behind] or 'an unknown number'}"
            raise Refused(node, f"takes {len(labels)} indices and {got}")
        walk.give(value, len(shape) + behind, labels, repeated=walk.repeated)
    rank = max(walk.rank(value, node) for value in inputs)
    for value in node.outputs:
        if value is node.outputs[0] or value.uses() or value.is_graph_output():
            walk.give(value, rank + behind, labels, repeated=walk.repeated)


def scaled(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label a scale of each index along one axis as well: QuantizeLinear and DequantizeLinear."""
    scale, axis = node.inputs[1], axis_of(walk, node, first(node), 1)
    if node.attributes.get_int("block_size", 0):
        raise Refused(node, "has scales for blocks")
    per_axis = scale is not None and any(n != 1 for n in walk.shape(scale, node))
    if at.side == "in" and at.index:
        at = At("out", 0, axis)
    if per_axis and at.axis == axis:
        for value in node.inputs[1:]:
            walk.give(value, 0, labels)
    walk.give(node.outputs[0], at.axis, labels)
    walk.give(first(node), at.axis, labels)


def channelwise(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label what a norm has for each channel: BatchNormalization, InstanceNormalization."""
    if len(node.outputs) > 1 or node.attributes.get_int("training_mode", 0) != 0:
        raise Refused(node, "is in training mode")
    if node.attributes.get_int("spatial", 1) != 1:
        raise Refused(node, "has a scale for each place")
    if at.side == "in" and at.index:
        at = At("out", 0, 1)
    if at.axis == 1:
        for value in node.inputs[1:]:
            walk.give(value, 0, labels)
    elif at.axis > 1 and node.op_type == "InstanceNormalization":
        raise Refused(node, "normalizes along the units")
    walk.give(first(node), at.axis, labels)
    walk.give(node.outputs[0], at.axis, labels)


def group_norm(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Make a unit of each group of channels; scale and bias are those of channels, before opset 21 those of groups."""
    x, y, groups = first(node), node.outputs[0], node.attributes.get_int("num_groups", 0)
    of_groups = walk.opset < 21
    if at.side == "in" and at.index:
        channels = walk.shape(x, node)[1]
        if of_groups and isinstance(channels, int) and channels % groups == 0:
            walk.room(node, channels)
            labels = np.repeat(labels, channels // groups)
        at = At("out", 0, 1)
    if at.axis > 1:
        raise Refused(node, "normalizes along the units")
    if at.axis == 1:
        if groups < 1 or len(labels) % groups:
            raise Refused(node, f"has {groups} groups that don't divide its channels")
        units = walk.units.fold(labels.reshape(groups, -1))
        labels = np.repeat(units, len(labels) // groups)
        for value in node.inputs[1:]:
            walk.give(value, 0, units if of_groups else labels)
        each = len(labels) // groups
        walk.edit(EditCounts(value=x, axis=1, node=node, each=each, counts={"num_groups": (1,)}))
    walk.give(x, at.axis, labels)
    walk.give(y, at.axis, labels)


def layer_norm(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label scale and bias; what is normalized along its units is the hidden width."""
    start = axis_of(walk, node, first(node), -1)
    if len(node.outputs) > 1 and any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise Refused(node, "gives its mean to others")
    if at.side == "in" and at.index:
        value = node.inputs[at.index]
        assert value is not None
        at = At("out", 0, walk.rank(first(node), node) - walk.rank(value, node) + at.axis)
    if at.axis >= start:
        walk.is_kind("hidden")
        rank = walk.rank(first(node), node)
        for value in node.inputs[1:]:
            if value is not None and walk.shape(value, node)[at.axis - rank :][:1] == [len(labels)]:
                walk.give(value, walk.rank(value, node) - rank + at.axis, labels)
    walk.give(first(node), at.axis, labels)
    walk.give(node.outputs[0], at.axis, labels)


def softmax(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Pass on what is not summed over."""
    old = walk.opset < 13
    axis = axis_of(walk, node, first(node), 1 if old else -1)
    if at.axis == axis or (old and at.axis >= axis):
        raise Refused(node, "goes along the units")
    pass_on(walk, node, at, labels)


def pool(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Pass on batches and channels."""
    if at.axis > 1:
        raise Refused(node, "goes along the units")
    if len(node.outputs) > 1:
        raise Refused(node, "gives places besides values")
    pass_on(walk, node, at, labels)


def reduced(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Pass on axes that stay; a mean along the units makes them the hidden width."""
    only_first(node, at)
    rank = walk.rank(first(node), node)
    axes = axes_of(node, rank, ())
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 0:
        axes = list(range(rank))
    keeps = node.attributes.get_int("keepdims", 1)
    stay = list(range(rank)) if keeps else [axis for axis in range(rank) if axis not in axes]
    axis = at.axis if at.side == "in" else stay[at.axis]
    if axis not in axes:
        walk.give(first(node), axis, labels)
        walk.give(node.outputs[0], stay.index(axis), labels)
    elif node.op_type == "ReduceMean":
        walk.is_kind("hidden")
    else:
        raise Refused(node, "goes along the units")


def resize(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Pass on what is not resized."""
    index = 1 if node.op_type == "Upsample" else 2
    scales = constant(node.inputs[index]) if len(node.inputs) > index else None
    if "axes" in node.attributes or scales is None or at.axis >= scales.size or scales.ravel()[at.axis] != 1:
        raise Refused(node, "may resize along the units")
    pass_on(walk, node, at, labels)


def tile(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Pass on what is not repeated."""
    repeats = constant(node.inputs[1])
    if repeats is None or repeats.ravel()[at.axis] != 1:
        raise Refused(node, "may repeat the units")
    pass_on(walk, node, at, labels)


def pad(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Pass on what is not padded."""
    rank = walk.rank(first(node), node)
    given = node.attributes.get_ints("pads", None)
    if given is None and len(node.inputs) > 1:
        pads = constant(node.inputs[1])
        given = None if pads is None else [int(n) for n in pads.ravel()]
    if given is None or len(given) != 2 * rank or (len(node.inputs) > 3 and node.inputs[3] is not None):
        raise Refused(node, "may pad along the units")
    if given[at.axis] or given[at.axis + rank]:
        raise Refused(node, "pads along the units")
    pass_on(walk, node, at, labels)


def along(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Pass on what an operator with one axis leaves alone: CumSum, LpNormalization."""
    if node.op_type == "CumSum":
        number = constant(node.inputs[1])
        axis = None if number is None else int(number.ravel()[0]) % walk.rank(first(node), node)
    else:
        axis = axis_of(walk, node, first(node), -1)
    if axis is None or axis == at.axis:
        raise Refused(node, "goes along the units")
    pass_on(walk, node, at, labels)


def lengths(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Follow the length of a labelled axis to where it is used: only shapes and slices of the same axis may."""
    value = first(node)
    length, todo, seen = Length(value, at.axis), [node.outputs[0]], set[ir.Value]()
    while todo:
        numbers = todo.pop()
        if numbers in seen:
            continue
        seen.add(numbers)
        elements = walk.integers.elements(numbers)
        if elements is None:
            raise Refused(node, "gives the length of the axis to something that isn't understood")
        if not any(_depends(element, length) for element in elements):
            continue
        if numbers.is_graph_output():
            raise Refused(node, "gives the length of the axis to an output")
        for user, index in numbers.uses():
            if walk.repeated and user.op_type in ("Reshape", "Expand", "Slice"):
                raise Refused(user, "has the units merged with an axis of unknown length")
            if index == 1 and user.op_type in ("Reshape", "Expand"):
                _asked(walk, user, elements, length)
            elif index in (1, 2) and user.op_type == "Slice":
                walk.must_edit(user)
            elif user.op_type in ("ConstantOfShape", "Range", "Shape", "Size"):
                raise Refused(user, "depends on the number of units")
            else:
                todo += user.outputs


def _depends(element: int | Length | Computed, length: Length) -> bool:
    return element == length or (isinstance(element, Computed) and length in element.lengths)


def _asked(walk: Walk, user: ir.Node, elements: Sequence[int | Length | Computed], length: Length) -> None:
    for position, element in enumerate(elements):
        if isinstance(element, Computed) and length in element.lengths:
            walk.keep_number(user, position)
        if element == length:
            walk.same_length(user, position, length)


RULES = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), scaled),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), channelwise),
    "GroupNormalization": group_norm,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_norm),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys([f"Reduce{what}" for what in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum")], reduced),
    **dict.fromkeys(("ReduceSumSquare", "ReduceLogSumExp"), reduced),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("CumSum", "LpNormalization"), along),
    "Tile": tile,
    "Pad": pad,
    "Shape": lengths,
    "Size": lengths,
}
