"""Rules of operators that move axes or parts of them: Transpose, Squeeze, Unsqueeze, Concat, Split, Slice, Gather."""

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.crop.edits import EditBounds, EditParts
from modelopt_rs.onnx.crop.elements import constant
from modelopt_rs.onnx.crop.pointwise import axes_of, axis_of, first, only_first
from modelopt_rs.onnx.crop.units import NONE, Labels
from modelopt_rs.onnx.crop.walk import At, Refused, Walk

__all__ = ["RULES"]


def transpose(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the axis where it has gone."""
    x, y = first(node), node.outputs[0]
    order = list(node.attributes.get_ints("perm", ())) or list(range(walk.rank(x, node)))[::-1]
    place = (y, order.index(at.axis)) if at.side == "in" else (x, order[at.axis])
    walk.give(*place, labels, repeated=walk.is_repeated(x if at.side == "in" else y, at.axis))


def squeeze(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the axis where it is without axes of length 1, or with them."""
    only_first(node, at)
    inward, (x, y) = node.op_type == "Squeeze", (first(node), node.outputs[0])
    if inward:
        shape = walk.shape(x, node)
        rank = len(shape)
        ones = axes_of(node, rank, [axis for axis, length in enumerate(shape) if length == 1])
        if "axes" not in node.attributes and len(node.inputs) < 2 and any(not isinstance(n, int) for n in shape):
            raise Refused(node, "drops axes that aren't known")
    else:
        given = axes_of(node, 2**31, ())
        rank = walk.rank(x, node) + len(given)
        ones = axes_of(node, rank, ())
    stay = [axis for axis in range(rank) if axis not in ones]
    long, short = (x, y) if inward else (y, x)
    here_is_long = (at.side == "in") == inward
    if here_is_long:
        walk.give(short, stay.index(at.axis), labels)
    else:
        walk.give(long, stay[at.axis], labels)


def concat(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label each part at its place."""
    y, start = node.outputs[0], 0
    axis, parts = axis_of(walk, node, first(node), 0), [value for value in node.inputs if value is not None]
    if at.axis != axis:
        for value in [*parts, y]:
            walk.give(value, at.axis, labels)
        return
    sizes = [walk.shape(value, node)[axis] for value in parts]
    plain = [size for size in sizes if isinstance(size, int)]
    if len(plain) != len(sizes):
        raise Refused(node, "puts together parts of unknown lengths")
    walk.room(node, sum(plain))
    whole = np.full(sum(plain), NONE)
    for index, (value, size) in enumerate(zip(parts, plain, strict=True)):
        if at.side == "out":
            walk.give(value, axis, labels[start : start + size])
        elif index == at.index:
            whole[start : start + size] = labels
        start += size
    walk.give(y, axis, whole)


def split(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label each part from its place."""
    x, axis = first(node), axis_of(walk, node, first(node), 0)
    only_first(node, at if at.side == "in" else At("out", 0, at.axis))
    if at.axis != axis:
        for value in [x, *node.outputs]:
            walk.give(value, at.axis, labels)
        return
    sizes = _sizes(walk, node, axis)
    starts = [0, *np.cumsum(sizes).tolist()]
    if at.side == "in":
        for value, begin, end in zip(node.outputs, starts, starts[1:], strict=False):
            walk.give(value, axis, labels[begin:end])
    else:
        walk.room(node, sum(sizes))
        whole = np.full(sum(sizes), NONE)
        whole[starts[at.index] : starts[at.index + 1]] = labels
        walk.give(x, axis, whole)
    walk.edit(EditParts(value=x, axis=axis, node=node, sizes=tuple(sizes), attribute=walk.opset < 13))


def _sizes(walk: Walk, node: ir.Node, axis: int) -> list[int]:
    given = node.attributes.get_ints("split", None)
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        numbers = constant(node.inputs[1])
        if numbers is None:
            raise Refused(node, "has sizes that are computed")
        given = [int(n) for n in numbers.ravel()]
    length = walk.shape(first(node), node)[axis]
    if given is None:
        if not isinstance(length, int):
            raise Refused(node, "splits an unknown length")
        each = -(-length // len(node.outputs))
        given = [min(each, length - each * number) for number in range(len(node.outputs))]
    if isinstance(length, int) and sum(given) != length:
        raise Refused(node, f"has sizes {list(given)} for {length} indices")
    return list(given)


def slices(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the part between two bounds."""
    only_first(node, at)
    x, y = first(node), node.outputs[0]
    numbers = [walk.integers.numbers(value) for value in node.inputs[1:]]
    if len(numbers) < 2 or any(
        each is None and value is not None for each, value in zip(numbers, node.inputs[1:], strict=True)
    ):
        raise Refused(node, "has bounds that vary or are attributes")
    starts, ends = numbers[0] or [], numbers[1] or []
    rank = walk.rank(x, node)
    named = numbers[2] if len(numbers) > 2 else None
    axes = list(range(len(starts))) if named is None else [n % rank for n in named]
    if at.axis not in axes:
        walk.give(y if at.side == "in" else x, at.axis, labels)
        return
    place = axes.index(at.axis)
    steps = numbers[3] if len(numbers) > 3 else None
    length = walk.shape(x, node)[at.axis]
    if steps is not None and steps[place] != 1:
        raise Refused(node, "takes steps along the units")
    if not isinstance(length, int):
        raise Refused(node, "takes a part of an unknown length")
    start, end = (min(max(n + length if n < 0 else n, 0), length) for n in (starts[place], ends[place]))
    if at.side == "in":
        walk.give(y, at.axis, labels[start:end])
    else:
        walk.room(node, length)
        whole = np.full(length, NONE)
        whole[start:end] = labels
        walk.give(x, at.axis, whole)
    bounds = (tuple(starts), tuple(ends))
    walk.edit(EditBounds(value=x, axis=at.axis, node=node, position=place, bounds=bounds))


def gather(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label axes that stay; those of the indices take the place of the one that is gathered along."""
    data, indices = node.inputs
    assert data is not None
    assert indices is not None
    axis, more = axis_of(walk, node, data, 0), walk.rank(indices, node)
    walk.weigh(data)
    if at.side == "in" and at.index == 0:
        if at.axis == axis:
            raise Refused(node, "picks from the units by number")
        walk.picks |= not walk.static(data)
        walk.give(node.outputs[0], at.axis if at.axis < axis else at.axis + more - 1, labels)
    elif at.side == "in":
        walk.give(node.outputs[0], axis + at.axis, labels)
    elif axis <= at.axis < axis + more:
        walk.give(indices, at.axis - axis, labels)
    else:
        walk.give(data, at.axis if at.axis < axis else at.axis - more + 1, labels)


def blocks(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Let channels that lie in one block of places be one unit: DepthToSpace, SpaceToDepth."""
    x, y = first(node), node.outputs[0]
    if at.axis > 1:
        raise Refused(node, "goes along the units")
    if at.axis == 0:
        walk.give(y if at.side == "in" else x, 0, labels)
        return
    places = node.attributes.get_int("blocksize", 1) ** 2
    deep, shallow = (x, y) if node.op_type == "DepthToSpace" else (y, x)
    behind = node.attributes.get_string("mode", "DCR") == "CRD"  # the places of a channel, behind each other
    if (at.side == "in") == (node.op_type == "DepthToSpace"):
        if len(labels) % places:
            raise Refused(node, f"has {len(labels)} channels for {places} places")
        rows = labels.reshape(-1, places) if behind else labels.reshape(places, -1).T
        labels = walk.units.fold(np.ascontiguousarray(rows))
    walk.room(node, len(labels) * places)
    walk.give(shallow, 1, labels)
    walk.give(deep, 1, np.repeat(labels, places) if behind else np.tile(labels, places))


RULES = {
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), blocks),
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Gather": gather,
}
