"""Rules of operators that move axes: Transpose, Squeeze, Concat, Split, Slice, Gather, Flatten, Reshape, Expand."""

import math

import numpy as np
import onnx_ir as ir

from modelopt_rs.graph.edits import EditBounds, EditParts, EditShape
from modelopt_rs.graph.integers import Computed, Element, Length, constant, part_of, shape_of
from modelopt_rs.graph.pointwise import axes_of, axis_of, first, only_first
from modelopt_rs.graph.regroup import aligned, project
from modelopt_rs.graph.units import NONE, Labels
from modelopt_rs.graph.walk import At, Refused, Walk

__all__ = ["RULES"]


def transpose(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the axis where it has gone."""
    x, y = first(node), node.outputs[0]
    order = list(node.attributes.get_ints("perm", ())) or list(range(walk.rank(x, node)))[::-1]
    if at.side == "in":
        walk.give(y, order.index(at.axis), labels)
    else:
        walk.give(x, order[at.axis], labels)


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
    numbers = [None if value is None else constant(value) for value in node.inputs[1:]]
    if len(numbers) < 2 or any(
        each is None and value is not None for each, value in zip(numbers, node.inputs[1:], strict=True)
    ):
        raise Refused(node, "has bounds that are computed or attributes")
    starts, ends = ([int(n) for n in each.ravel()] for each in numbers[:2] if each is not None)
    rank = walk.rank(x, node)
    named = numbers[2] if len(numbers) > 2 else None
    axes = list(range(len(starts))) if named is None else [int(n) % rank for n in named.ravel()]
    if at.axis not in axes:
        walk.give(y if at.side == "in" else x, at.axis, labels)
        return
    place = axes.index(at.axis)
    steps = numbers[3] if len(numbers) > 3 else None
    length = walk.shape(x, node)[at.axis]
    if steps is not None and steps.ravel()[place] != 1:
        raise Refused(node, "takes steps along the units")
    if not isinstance(length, int):
        raise Refused(node, "takes a part of an unknown length")
    start, end = (min(max(n + length if n < 0 else n, 0), length) for n in (starts[place], ends[place]))
    if at.side == "in":
        walk.give(y, at.axis, labels[start:end])
    else:
        whole = np.full(length, NONE)
        whole[start:end] = labels
        walk.give(x, at.axis, whole)
    walk.edit(EditBounds(value=x, axis=at.axis, node=node, position=place))


def gather(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label axes that stay; those of the indices take the place of the one that is gathered along."""
    data, indices = node.inputs
    assert data is not None
    assert indices is not None
    axis, more = axis_of(walk, node, data, 0), walk.rank(indices, node)
    if at.side == "in" and at.index == 0:
        if at.axis == axis:
            raise Refused(node, "picks from the units by number")
        walk.give(node.outputs[0], at.axis if at.axis < axis else at.axis + more - 1, labels)
    elif at.side == "in":
        walk.give(node.outputs[0], axis + at.axis, labels)
    elif axis <= at.axis < axis + more:
        walk.give(indices, at.axis - axis, labels)
    else:
        walk.give(data, at.axis if at.axis < axis else at.axis - more + 1, labels)


def flatten(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the axis that the labelled one has become a part of."""
    x, y = first(node), node.outputs[0]
    lengths, axis = walk.shape(x, node), node.attributes.get_int("axis", 1)
    axis += len(lengths) if axis < 0 else 0
    halves = list(range(axis)), list(range(axis, len(lengths)))
    out = next(number for number, half in enumerate(halves) if at.axis in half) if at.side == "in" else at.axis
    _regroup(walk, node, at, labels, ((x, halves[out]), (y, [out])), lengths)


def reshape(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the axes that the labelled one is split into or merged with, and let the shape say the new length."""
    only_first(node, at)
    x, y = first(node), node.outputs[0]
    target = walk.integers.elements(node.inputs[1]) if node.inputs[1] is not None else None
    if target is None:
        raise Refused(node, "has a shape that isn't understood")
    lengths = walk.shape(x, node)
    if 0 in target and node.attributes.get_int("allowzero", 0) != 0:
        raise Refused(node, "may have no elements")
    sides = next(
        (sides for sides in aligned(*_tokens(walk, node, lengths, target)) if at.axis in sides[at.side == "out"]),
        None,
    )
    if sides is None:
        raise Refused(node, "has a shape that can't be matched with its input's")
    taken = _regroup(walk, node, at, labels, ((x, sides[0]), (y, sides[1])), lengths)
    _edit_shape(walk, node, target, taken)


def _tokens(
    walk: Walk, node: ir.Node, lengths: list[int | str | None], target: list[Element]
) -> tuple[list[object], list[object]]:
    """Return the lengths before and after: a number, or something that equals only itself."""
    x, y = first(node), node.outputs[0]
    before: list[object] = [_token(length, x, axis) for axis, length in enumerate(lengths)]
    inferred = shape_of(y) or [None] * len(target)
    after: list[object] = []
    for position, element in enumerate(target):
        known = walk.labels.get((y, position))
        if known is not None:
            after.append(len(known))
        elif isinstance(element, int) and element > 0:
            after.append(element)
        elif element == 0 and position < len(before):
            after.append(before[position])
        elif isinstance(element, Length):
            shape = walk.shape(element.value, node)
            after.append(_token(shape[element.axis], element.value, element.axis))
        else:
            length = inferred[position] if position < len(inferred) else None
            after.append(length if isinstance(length, int) else (y, position))
    return _solved(before, after)


def _token(length: int | str | None, value: ir.Value, axis: int) -> object:
    return Length(value, axis) if length is None else length


def _solved(before: list[object], after: list[object]) -> tuple[list[object], list[object]]:
    """Fill in the one length that isn't known, where the others tell it."""
    numbers = [n for n in before if isinstance(n, int)]
    others = [n for n in before if not isinstance(n, int)]
    unknown = [place for place, n in enumerate(after) if isinstance(n, tuple)]
    rest = [n for n in after if not isinstance(n, (int, tuple))]
    if len(unknown) == 1 and sorted(map(repr, others)) == sorted(map(repr, rest)):
        known = math.prod(n for n in after if isinstance(n, int))
        if known and math.prod(numbers) % known == 0:
            after[unknown[0]] = math.prod(numbers) // known
    return before, after


def _regroup(
    walk: Walk,
    node: ir.Node,
    at: At,
    labels: Labels,
    sides: tuple[tuple[ir.Value, list[int]], tuple[ir.Value, list[int]]],
    lengths: list[int | str | None],
) -> int:
    """Label the axis of the other side that the units lie along; return the output's."""
    (value, axes), (other, others) = sides if at.side == "in" else sides[::-1]
    shapes = []
    for each, named in ((value, axes), (other, others)):
        shape = lengths if each is sides[0][0] else _out_lengths(walk, node, sides, lengths)
        plain = [n for axis in named if isinstance(n := shape[axis], int)]
        if len(plain) != len(named):
            raise Refused(node, "merges the units with an axis of unknown length")
        shapes.append(plain)
    if math.prod(shapes[0]) != math.prod(shapes[1]) or 0 in shapes[0]:
        raise Refused(node, f"makes lengths {shapes[1]} of {shapes[0]}")
    here, there = shapes
    spread = labels.reshape([-1 if axis == at.axis else 1 for axis in axes])
    whole = np.broadcast_to(spread, here).reshape(there)
    axis, out = project(walk.units, whole, walk.split)
    walk.give(other, others[axis], out)
    # Whole slices go: what has come to be the same on the other side is the same here.
    back = np.broadcast_to(out.reshape([-1 if i == axis else 1 for i in range(len(there))]), there).reshape(here)
    rows = np.moveaxis(back, axes.index(at.axis), 0).reshape(len(labels), -1)
    walk.give(value, at.axis, walk.units.fold(rows))
    return others[axis] if at.side == "in" else at.axis


def _out_lengths(
    walk: Walk,
    node: ir.Node,
    sides: tuple[tuple[ir.Value, list[int]], tuple[ir.Value, list[int]]],
    lengths: list[int | str | None],
) -> list[int | str | None]:
    if node.op_type == "Flatten":
        plain = [n for axis in sides[0][1] if isinstance(n := lengths[axis], int)]
        whole = math.prod(plain) if len(plain) == len(sides[0][1]) else None
        return [whole, whole]
    target = walk.integers.elements(node.inputs[1]) if node.inputs[1] is not None else None
    assert target is not None
    return [n if isinstance(n, int) else None for n in _tokens(walk, node, lengths, target)[1]]


def _edit_shape(walk: Walk, node: ir.Node, target: list[Element], axis: int) -> None:
    """Note that a number in a shape changes; -1, 0 and what is taken from the graph follow by themselves."""
    shape = node.inputs[1]
    for position, element in enumerate(target):
        if element == 0:
            walk.same_length(node, position, Length(first(node), position))
        elif isinstance(element, Length):
            walk.same_length(node, position, element)
    if isinstance(target[axis], Computed):
        raise Refused(node, "computes the length of the axis")
    if isinstance(target[axis], Length) or target[axis] in (0, -1):
        return
    if constant(shape) is None:
        concat = None if shape is None else shape.producer()
        try:
            if concat is None or concat.op_type != "Concat":
                raise LookupError(axis)
            part_of(walk.integers, concat, axis)
        except LookupError as error:
            raise Refused(node, "has a shape that is put together in an unknown way") from error
    walk.edit(EditShape(value=node.outputs[0], axis=axis, node=node))


def expand(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the same axis, counted from the end; the shape must say its new length or 1."""
    only_first(node, at)
    x, y = first(node), node.outputs[0]
    target = walk.integers.elements(node.inputs[1]) if node.inputs[1] is not None else None
    if target is None:
        raise Refused(node, "has a shape that isn't understood")
    shape = walk.shape(x, node)
    rank = max(len(target), len(shape))
    behind = at.axis - (len(shape) if at.side == "in" else rank)
    if len(shape) >= -behind and shape[behind] != 1:
        if shape[behind] != len(labels):
            raise Refused(node, "stretches the units by an unknown number")
        walk.give(x, len(shape) + behind, labels)
    walk.give(y, rank + behind, labels)
    if len(target) >= -behind and target[behind] != 1:
        if len(target) != rank:
            raise Refused(node, "has a shape of fewer axes")
        _edit_shape(walk, node, target, rank + behind)


RULES = {
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Gather": gather,
    "Flatten": flatten,
    "Reshape": reshape,
    "Expand": expand,
}
