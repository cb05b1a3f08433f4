"""Integers that say shapes: constants, lengths of axes, or something computed; and what operators make of them."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array

__all__ = ["CONTRADICTIONS", "RULES", "Computed", "Element", "Length", "constant", "fixed", "lengths_of", "shape_of"]

LARGEST = 64
"""No shape has more numbers."""
HIGHEST = 1 << 63
"""No number of a shape is larger."""
CONTRADICTIONS = (ArithmeticError, AssertionError, LookupError, StopIteration, TypeError, ValueError)
"""What rules raise where a graph says of its values what can't be."""


@dataclass(frozen=True, slots=True)
class Length:
    """The length of an axis of a value, as it is when the graph runs."""

    value: ir.Value
    axis: int


@dataclass(frozen=True, slots=True)
class Computed:
    """A number that depends on lengths in some way."""

    lengths: frozenset[Length]


Element: TypeAlias = int | Length | Computed


def constant(value: ir.Value | None) -> Array | None:
    """Return the numbers of a small constant; None where there is none, or it may be another one at each run."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > LARGEST:
        return None
    return np.asarray(tensor.numpy())


def shape_of(value: ir.Value) -> list[int | str | None] | None:
    """Return the lengths of a value's axes, as a number, a name or None; None where their number isn't known."""
    shape = value.shape if value.const_value is None else value.const_value.shape
    return None if shape is None else [dim if isinstance(dim, int) else dim.value for dim in shape]


def lengths_of(node: ir.Node) -> list[Element] | None:
    """Return what a Shape or a Size gives."""
    value = node.inputs[0]
    shape = None if value is None else shape_of(value)
    if value is None or shape is None:
        return None
    lengths: list[Element] = [Length(value, axis) for axis in range(len(shape))]
    if node.op_type == "Size":
        return [Computed(frozenset(each for each in lengths if isinstance(each, Length)))]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    return lengths[start:end]


Parts: TypeAlias = Sequence[list[Element] | None]


def _same(node: ir.Node, parts: Parts) -> list[Element] | None:
    return parts[0]


def _gather(node: ir.Node, parts: Parts) -> list[Element] | None:
    data, places = parts[0], constant(node.inputs[1])
    if data is None or places is None or node.attributes.get_int("axis", 0) != 0:
        return None
    if any(not -len(data) <= place < len(data) for place in places.ravel()):
        return None
    return [data[int(place)] for place in places.ravel()]


def _slice(node: ir.Node, parts: Parts) -> list[Element] | None:
    numbers = parts[1:]
    if parts[0] is None or len(numbers) < 2:
        return None
    plain = [each[0] for each in numbers if each is not None and len(each) == 1 and isinstance(each[0], int)]
    if len(plain) != len(numbers):
        return None
    step = plain[3] if len(plain) > 3 else 1
    return parts[0][plain[0] : plain[1] : step] if step > 0 else None


def _concat(node: ir.Node, parts: Parts) -> list[Element] | None:
    if any(part is None for part in parts):
        return None
    return [element for part in parts if part is not None for element in part]


def _lengths_in(parts: Parts) -> frozenset[Length]:
    found: set[Length] = set()
    for element in (element for part in parts if part is not None for element in part):
        if isinstance(element, Length):
            found.add(element)
        elif isinstance(element, Computed):
            found |= element.lengths
    return frozenset(found)


def _each(compute: Callable[..., Element | None]) -> Callable[[ir.Node, Parts], list[Element] | None]:
    def rule(node: ir.Node, parts: Parts) -> list[Element] | None:
        if any(part is None for part in parts) or not parts:
            return None
        size = max(len(part) for part in parts if part is not None)
        rows = [list(part) * (size if len(part) == 1 else 1) for part in parts if part is not None]
        if any(len(row) != size for row in rows):
            return None
        out: list[Element] = []
        for column in zip(*rows, strict=True):
            known = compute(*column)
            out.append(Computed(_lengths_in([list(column)])) if known is None else known)
        return out

    return rule


def fixed(element: Element) -> Element:
    """Return the number that a length is known to be; the element itself where it isn't."""
    shape = shape_of(element.value) if isinstance(element, Length) else None
    number = shape[element.axis] if shape is not None and isinstance(element, Length) else None
    return number if isinstance(number, int) else element


def _known(element: Element) -> int | None:
    """Return a number; or the length of a vector of integers, which is a shape itself and doesn't change."""
    if isinstance(element, Length) and element.value.dtype == ir.DataType.INT64 and element.axis == 0:
        element = fixed(element)
    return element if isinstance(element, int) else None


def _filled(node: ir.Node, parts: Parts) -> list[Element] | None:
    """A vector whose length is that of a shape, of one number: what exporters compare shapes with."""
    if parts[0] is None or len(parts[0]) != 1:
        return None
    fill, size = node.attributes.get_tensor("value", None), _known(parts[0][0])
    number = 0 if fill is None else int(np.asarray(fill.numpy()).ravel()[0])
    return [number] * size if isinstance(size, int) and 0 <= size <= LARGEST else None


def _of_numbers(compute: Callable[[int, int], int]) -> Callable[[Element, Element], Element | None]:
    def computed(a: Element, b: Element) -> Element | None:
        number = compute(a, b) if isinstance(a, int) and isinstance(b, int) else None
        return number if number is not None and -HIGHEST <= number < HIGHEST else None

    return computed


def _equal(a: Element, b: Element) -> Element | None:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    # No length is negative: exporters ask whether a shape says -1.
    negative = any(isinstance(each, int) and each < 0 for each in (a, b))
    return 0 if negative and any(isinstance(each, Length) for each in (a, b)) else None


def _where(condition: Element, a: Element, b: Element) -> Element | None:
    return (a if condition else b) if isinstance(condition, int) else None


def _unknown(*elements: Element) -> Element | None:
    return None


def _product(node: ir.Node, parts: Parts) -> list[Element] | None:
    if parts[0] is None:
        return None
    numbers = [each for each in parts[0] if isinstance(each, int)]
    product = math.prod(numbers)
    if len(numbers) == len(parts[0]) and -HIGHEST <= product < HIGHEST:
        return [product]
    return [Computed(_lengths_in(parts[:1]))]


def _rest(a: Element, b: Element) -> Element | None:
    return a % b if isinstance(a, int) and isinstance(b, int) and a >= 0 < b else None


def _divided(a: int, b: int) -> int:
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else 0


RULES: dict[str, Callable[[ir.Node, Parts], list[Element] | None]] = {
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"), _same),
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "ReduceProd": _product,
    "Add": _each(_of_numbers(operator.add)),
    "Sub": _each(_of_numbers(operator.sub)),
    "Mul": _each(_of_numbers(operator.mul)),
    "Div": _each(_of_numbers(_divided)),
    "Equal": _each(_equal),
    "Where": _each(_where),
    "Mod": _each(_rest),
    **dict.fromkeys(("Greater", "Less", "Max", "Min", "Not", "And", "Or"), _each(_unknown)),
}
