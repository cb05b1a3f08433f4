"""Rules of operators that cut axes anew: Flatten, Reshape and Expand."""

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.crop.edits import EditInferred, EditShape
from modelopt_rs.onnx.crop.elements import Computed, Element, Length, constant
from modelopt_rs.onnx.crop.integers import concat_of, part_of
from modelopt_rs.onnx.crop.pointwise import first, only_first
from modelopt_rs.onnx.crop.regroup import aligned, project, tokens
from modelopt_rs.onnx.crop.units import Labels
from modelopt_rs.onnx.crop.walk import At, Refused, Walk

__all__ = ["RULES"]


class Side(NamedTuple):
    """Axes of a value that hold what some axes of another value hold, and their lengths as far as they are known."""

    value: ir.Value
    axes: list[int]
    lengths: list[int | None]


def _plain(lengths: list[object], axes: list[int]) -> list[int | None]:
    return [length if isinstance(length := lengths[axis], int) else None for axis in axes]


def flatten(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the axis that the labelled one has become a part of."""
    x, y = first(node), node.outputs[0]
    shape, axis = walk.shape(x, node), node.attributes.get_int("axis", 1)
    axis += len(shape) if axis < 0 else 0
    if not 0 <= axis <= len(shape):
        raise Refused(node, f"has axis {axis} of {len(shape)} dimensions")
    halves = list(range(axis)), list(range(axis, len(shape)))
    out = next(number for number, half in enumerate(halves) if at.axis in half) if at.side == "in" else at.axis
    lengths = _plain(list(shape), halves[out])
    known = [n for n in lengths if n is not None]
    whole = math.prod(known) if len(known) == len(lengths) else None
    _regroup(walk, node, at, labels, (Side(x, halves[out], lengths), Side(y, [out], [whole])))


def reshape(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the axes that the labelled one is split into or merged with, and let the shape say the new length."""
    only_first(node, at)
    x, y, target = first(node), node.outputs[0], _target(walk, node)
    if 0 in target and node.attributes.get_int("allowzero", 0) != 0:
        raise Refused(node, "may have no elements")
    known = {
        axis: len(each) for (value, axis), each in walk.labels.items() if value is y and not walk.is_repeated(y, axis)
    }
    before, after = tokens(node, list(walk.shape(x, node)), _present(walk, node, target), known)
    for ins, outs in aligned(before, after):
        if at.axis in (ins if at.side == "in" else outs):
            sides = Side(x, ins, _plain(before, ins)), Side(y, outs, _plain(after, outs))
            _edit_shape(walk, node, target, _regroup(walk, node, at, labels, sides))
            return
    raise Refused(node, "has a shape that can't be matched with its input's")


def _target(walk: Walk, node: ir.Node) -> list[Element]:
    target = walk.integers.elements(node.inputs[1]) if node.inputs[1] is not None else None
    if target is None:
        raise Refused(node, "has a shape that isn't understood")
    return target


def _present(walk: Walk, node: ir.Node, target: list[Element]) -> list[Element]:
    """Return a shape with the numbers that lengths which are computed have in the graph as it is."""
    shape = node.inputs[1]
    return target if shape is None else walk.integers.present(shape) or target


def _regroup(walk: Walk, node: ir.Node, at: At, labels: Labels, sides: tuple[Side, Side]) -> int:
    """Label the axis of the other side that the units lie along; return the output's."""
    here, there = sides if at.side == "in" else sides[::-1]
    if None in here.lengths or None in there.lengths:
        return _regroup_repeated(walk, node, at, labels, (here, there))
    from_, to = ([n for n in side.lengths if n is not None] for side in (here, there))
    if math.prod(from_) != math.prod(to) or 0 in from_:
        raise Refused(node, f"makes lengths {to} of {from_}")
    walk.room(node, math.prod(from_))
    spread = labels.reshape([-1 if axis == at.axis else 1 for axis in here.axes])
    axis, out = project(walk.units, np.broadcast_to(spread, from_).reshape(to), walk.choose)
    walk.give(there.value, there.axes[axis], out)
    # Whole slices go: what has come to be the same on the other side is the same here.
    back = np.broadcast_to(out.reshape([-1 if i == axis else 1 for i in range(len(to))]), to).reshape(from_)
    rows = np.moveaxis(back, here.axes.index(at.axis), 0).reshape(len(labels), -1)
    walk.give(here.value, at.axis, walk.units.fold(rows))
    return there.axes[axis] if at.side == "in" else at.axis


def _regroup_repeated(walk: Walk, node: ir.Node, at: At, labels: Labels, sides: tuple[Side, Side]) -> int:
    """Label as `_regroup` does where axes in front, a batch, have an unknown length: units merge with it, or split off.

    What lies behind the last unknown length of each side tells how many times as long one batch is as the other. That
    of the longer one, and so its period, is known where nothing else stands in front of it, or it has its units.
    """
    here, there = sides
    i, j = (max((k for k, n in enumerate(side.lengths) if n is None), default=0) for side in sides)
    inner, outer = (
        [n for n in here.lengths[i + 1 :] if n is not None],
        [n for n in there.lengths[j + 1 :] if n is not None],
    )
    at_place, a, b = here.axes.index(at.axis) - i, math.prod(inner), math.prod(outer)
    if a % b == 0 and at_place > 0 and (j == 0 or _period(walk, there, j) == a // b):
        lengths, to, more, place = inner, [a // b, *outer], j, at_place - 1
    elif b % a == 0 and outer and (at_place > 0 or (at_place == 0 and _period(walk, here, i) == b // a)):
        lengths, to, more, place = [b // a, *inner], outer, j + 1, at_place
    else:
        raise Refused(node, "merges the units with an axis of unknown length")
    if lengths[place] != len(labels) or (i and j):
        raise Refused(node, "merges the units with an axis of unknown length")
    walk.room(node, math.prod(lengths))
    spread = labels.reshape([-1 if k == place else 1 for k in range(len(lengths))])
    axis, out = project(walk.units, np.broadcast_to(spread, lengths).reshape(to), walk.choose)
    walk.give(there.value, there.axes[axis + more], out, repeated=axis + more == j)
    back = np.broadcast_to(out.reshape([-1 if k == axis else 1 for k in range(len(to))]), to).reshape(lengths)
    rows = np.moveaxis(back, place, 0).reshape(len(labels), -1)
    walk.give(here.value, at.axis, walk.units.fold(rows), repeated=at_place == 0)
    return there.axes[axis + more] if at.side == "in" else at.axis


def _period(walk: Walk, side: Side, place: int) -> int | None:
    """Return after how many indices the units come again along an axis of unknown length."""
    at = (side.value, side.axes[place])
    return len(walk.labels[at]) if walk.is_repeated(*at) else None


def _edit_shape(walk: Walk, node: ir.Node, target: list[Element], axis: int) -> None:
    """Note that a number in a shape changes; -1, 0 and what is taken from the graph follow by themselves."""
    shape = node.inputs[1]
    for position, element in enumerate(target):
        if element == 0:
            walk.same_length(node, position, Length(first(node), position))
        elif isinstance(element, Length):
            walk.same_length(node, position, element)
    if isinstance(target[axis], Computed):
        walk.edit(_computed(walk, node, target, axis))
        return
    if isinstance(target[axis], Length) or target[axis] in (0, -1):
        return
    if constant(shape) is None:
        concat = concat_of(shape)
        try:
            if concat is None:
                raise LookupError(axis)
            part_of(walk.integers, concat, axis)
        except LookupError as error:
            raise Refused(node, "has a shape that is put together in an unknown way") from error
    walk.edit(EditShape(value=node.outputs[0], axis=axis, node=node))


def _computed(walk: Walk, node: ir.Node, target: list[Element], axis: int) -> EditShape:
    """Return what makes a length smaller that the graph computes: a number, or -1 where only the batch tells it."""
    y, number = node.outputs[0], walk.number(node, axis)
    if number is not None:
        return EditShape(value=y, axis=axis, node=node, number=number)
    concat = concat_of(node.inputs[1])
    others = [element for place, element in enumerate(_present(walk, node, target)) if place != axis]
    if not walk.is_repeated(y, axis) or any(isinstance(each, Computed) or each == -1 for each in others):
        raise Refused(node, "computes the length of the axis")
    if concat is None or any(size != 1 for size in EditInferred.sizes(concat)) or node.op_type != "Reshape":
        raise Refused(node, "has a shape that is put together in an unknown way")
    return EditInferred(value=y, axis=axis, node=node)


def expand(walk: Walk, node: ir.Node, at: At, labels: Labels) -> None:
    """Label the same axis, counted from the end; the shape must say its new length or 1."""
    only_first(node, at)
    x, y, target = first(node), node.outputs[0], _target(walk, node)
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


RULES = {"Flatten": flatten, "Reshape": reshape, "Expand": expand}
