"""Which axes of a Reshape belong together, and along which of them units lie."""

import math
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from modelopt_rs.onnx.crop.elements import Element, Length, shape_of
from modelopt_rs.onnx.crop.units import Labels, Units

__all__ = ["aligned", "project", "tokens"]

Sides = tuple[list[int], list[int]]


def aligned(before: list[object], after: list[object]) -> list[Sides]:
    """Return groups of axes before and after that hold the same elements, as far as lengths prove it.

    A row-major array keeps what lies behind a boundary where the products of all lengths behind it are equal, whatever
    lies in front; and as all elements are kept, the same is true of what lies in front.

    Parameters
    ----------
    before, after : list
        Lengths: numbers, or something that is equal to itself only.

    Examples
    --------
    >>> from modelopt_rs.onnx.crop.regroup import aligned
    >>> aligned(["batch", "words", 768], ["batch", "words", 12, 64])
    [([2], [2, 3]), ([1], [1]), ([0], [0])]
    """
    found = []
    stop, end = len(before), len(after)
    while (sizes := _behind(before[:stop][::-1], after[:end][::-1])) is not None:
        found.append((list(range(stop - sizes[0], stop)), list(range(end - sizes[1], end))))
        stop, end = stop - sizes[0], end - sizes[1]
    start = begin = 0
    while (sizes := _behind(before[start:stop], after[begin:end])) is not None:
        found.append((list(range(start, start + sizes[0])), list(range(begin, begin + sizes[1]))))
        start, begin = start + sizes[0], begin + sizes[1]
    if start < stop and begin < end:
        found.append((list(range(start, stop)), list(range(begin, end))))
    return found


def _behind(left: list[object], right: list[object]) -> tuple[int, int] | None:
    """Return how many of the first lengths of both have the same product; None if that can't be said."""
    if not left or not right:
        return None
    if not isinstance(left[0], int) or not isinstance(right[0], int):
        return (1, 1) if left[0] == right[0] else None
    i = j = 1
    a, b = left[0], right[0]
    while a != b:
        more = left[i : i + 1] if a < b else right[j : j + 1]
        if not more or not isinstance(more[0], int):
            return None
        if a < b:
            a, i = a * more[0], i + 1
        else:
            b, j = b * more[0], j + 1
    return i, j


def project(units: Units, whole: Labels, choose: Callable[[int], int]) -> tuple[int, Labels]:
    """Return the axis of an array of labels along which they lie, and the labels along it.

    Where they lie along none, as labels of single channels do that become heads, all labels within an index of one
    axis are made the same: of the one that is chosen, by a number, of those that are longer than 1.
    """
    axes = [axis for axis, length in enumerate(whole.shape) if length > 1] or [0]
    found = units.find(whole)
    for axis in axes:
        rows = np.moveaxis(found, axis, 0).reshape(whole.shape[axis], -1)
        if (rows == rows[:, :1]).all():
            return axis, rows[:, 0]
    axis = axes[choose(len(axes))]
    return axis, units.fold(np.moveaxis(found, axis, 0).reshape(whole.shape[axis], -1))


def tokens(
    node: ir.Node, lengths: list[int | str | None], target: list[Element], known: Mapping[int, int]
) -> tuple[list[object], list[object]]:
    """Return the lengths before and after a Reshape: a number, or something that is equal to itself only.

    Parameters
    ----------
    node : ir.Node
    lengths : list
        Of its input.
    target : list of Element
        The shape that it is given.
    known : mapping
        Lengths of its output that are known from elsewhere, by axis.
    """
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    before: list[object] = [_token(length, x, axis) for axis, length in enumerate(lengths)]
    inferred = shape_of(y) or [None] * len(target)
    after: list[object] = []
    for position, element in enumerate(target):
        length = known.get(position, inferred[position] if position < len(inferred) else None)
        if isinstance(length, int):
            after.append(length)
        elif isinstance(element, int) and element > 0:
            after.append(element)
        elif element == 0 and position < len(before):
            after.append(before[position])
        elif isinstance(element, Length):
            shape = shape_of(element.value)
            after.append(_token(shape[element.axis] if shape else None, element.value, element.axis))
        else:
            after.append((y, position))
    return before, _solved(before, after)


def _token(length: int | str | None, value: ir.Value, axis: int) -> object:
    return Length(value, axis) if length is None else length


def _solved(before: list[object], after: list[object]) -> list[object]:
    """Fill in the one length that isn't known, where the others tell it."""
    unknown = [place for place, length in enumerate(after) if isinstance(length, tuple)]
    others = [[length for length in lengths if not isinstance(length, (int, tuple))] for lengths in (before, after)]
    if len(unknown) == 1 and Counter(others[0]) == Counter(others[1]):
        numbers, known = (math.prod(n for n in lengths if isinstance(n, int)) for lengths in (before, after))
        if known and numbers % known == 0:
            after[unknown[0]] = numbers // known
    return after
