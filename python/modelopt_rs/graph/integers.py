"""What the integers of a graph are that say shapes: constants, lengths of axes, or something computed of them."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array

__all__ = ["Computed", "Element", "Integers", "Length", "concat_of", "constant", "part_of", "shape_of"]

# No shape has more numbers.
LARGEST = 64


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


class Integers:
    """Traces values back: integers to constants and lengths, others to the model's own tensors.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.graph.integers import Integers
    >>> shape = ir.val("shape", const_value=ir.tensor([0, -1, 64], name="shape"))
    >>> Integers().elements(shape)
    [0, -1, 64]
    """

    def __init__(self) -> None:
        self._known: dict[ir.Value, list[Element] | None] = {}
        self._static: dict[ir.Value, bool] = {}

    def static(self, value: ir.Value | None) -> bool:
        """Say whether a value is made of the model's own tensors alone."""
        if value is None:
            return False
        for each in _unknown_before(value, self._static, lambda _: True):
            node = each.producer()
            if node is None:
                self._static[each] = each.is_initializer() and not each.is_graph_input()
            else:
                inputs = [before for before in node.inputs if before is not None]
                self._static[each] = bool(inputs) and all(self._static[before] for before in inputs)
        return self._static[value]

    def root(self, value: ir.Value | None) -> ir.Value | None:
        """Return the initializer that a weight is made of, behind Transpose, Cast and others; None if there is none."""
        if not self.static(value):
            return None
        while value is not None and (node := value.producer()) is not None:
            value = node.inputs[0]
        return value

    def elements(self, value: ir.Value) -> list[Element] | None:
        """Return what each number of a scalar or a vector is; None where that can't be said."""
        for each in _unknown_before(value, self._known, lambda node: node.op_type in _RULES):
            self._known[each] = self._trace(each)
        return self._known[value]

    def _trace(self, value: ir.Value) -> list[Element] | None:
        node = value.producer()
        numbers = constant(value)
        if numbers is not None:
            return [int(n) for n in numbers.ravel()] if numbers.dtype.kind in "iu" and numbers.ndim < 2 else None
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in ("Shape", "Size"):
            return _lengths(node)
        rule = _RULES.get(node.op_type)
        return (
            None if rule is None else rule(node, [None if each is None else self._known[each] for each in node.inputs])
        )


def _unknown_before(
    value: ir.Value, known: Mapping[ir.Value, object], follow: Callable[[ir.Node], bool]
) -> Iterator[ir.Value]:
    """Yield a value and those that it is made of, as far as they aren't known, each after its own."""
    pending = [value]
    while pending:
        node = pending[-1].producer()
        inputs = [] if node is None or not follow(node) else [each for each in node.inputs if each is not None]
        missing = [each for each in inputs if each not in known]
        if missing:
            pending += missing
            continue
        done = pending.pop()
        if done not in known:
            yield done


def _lengths(node: ir.Node) -> list[Element] | None:
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


def concat_of(value: ir.Value | None) -> ir.Node | None:
    """Return the Concat that makes a vector, also behind Cast and Identity; None if there is none."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Cast", "Identity"):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node if node is not None and node.op_type == "Concat" else None


def part_of(integers: Integers, concat: ir.Node, position: int) -> tuple[int, int, list[int]]:
    """Return which input of a Concat of vectors holds a position, where in it, and the constants that it consists of.

    Raises
    ------
    LookupError
        If that can't be said, or the input is no constant.
    """
    for index, part in enumerate(concat.inputs):
        elements = None if part is None else integers.elements(part)
        if elements is None:
            break
        if position < len(elements):
            numbers = [element for element in elements if isinstance(element, int)]
            if len(numbers) < len(elements):
                break
            return index, position, numbers
        position -= len(elements)
    raise LookupError(position)


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
    numbers = [constant(each) for each in node.inputs[1:]]
    if parts[0] is None or len(numbers) < 2 or any(each is None for each in numbers):
        return None
    plain = [int(each.ravel()[0]) for each in numbers if each is not None and each.size == 1]
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


def _known(element: Element) -> int | None:
    """Return a number; or the length of a vector of integers, which is a shape itself and doesn't change."""
    if isinstance(element, Length) and element.value.dtype == ir.DataType.INT64:
        shape = shape_of(element.value)
        return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None
    return element if isinstance(element, int) else None


def _filled(node: ir.Node, parts: Parts) -> list[Element] | None:
    """A vector whose length is that of a shape, of one number: what exporters compare shapes with."""
    if parts[0] is None or len(parts[0]) != 1:
        return None
    fill, size = node.attributes.get_tensor("value", None), _known(parts[0][0])
    number = 0 if fill is None else int(np.asarray(fill.numpy()).ravel()[0])
    return [number] * size if isinstance(size, int) and 0 <= size <= LARGEST else None


def _of_numbers(compute: Callable[[int, int], int]) -> Callable[[Element, Element], Element | None]:
    return lambda a, b: compute(a, b) if isinstance(a, int) and isinstance(b, int) else None


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
    if all(isinstance(each, int) for each in parts[0]):
        return [math.prod(each for each in parts[0] if isinstance(each, int))]
    return [Computed(_lengths_in(parts[:1]))]


def _divided(a: int, b: int) -> int:
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else 0


_RULES: dict[str, Callable[[ir.Node, Parts], list[Element] | None]] = {
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
    **dict.fromkeys(("Mod", "Greater", "Less", "Max", "Min", "Not", "And", "Or"), _each(_unknown)),
}
