"""Which names of lengths mean the same length: what the library calls anew wherever two names meet."""

from collections.abc import Callable, Iterator, Set
from functools import reduce
from itertools import zip_longest
from typing import Final, TypeAlias

import onnx_ir as ir

from modelopt_rs.onnx.crop.elements import CONTRADICTIONS, Element, Length, shape_of
from modelopt_rs.onnx.crop.integers import Integers

__all__ = ["merge_names", "named", "stretched", "stretched_shape"]

Known: TypeAlias = int | str | None
Lengths: TypeAlias = list[Known]
# Operators of which each axis, counted from the end, is as long as the longest of the inputs'.
STRETCHED: Final = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Mean", "Sum", "And", "Or", "Xor", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Where",
))  # fmt: skip


def named(element: Element) -> Known:
    """Return a number of a shape, or what the length is called that it is."""
    if not isinstance(element, Length):
        return element if isinstance(element, int) else None
    shape = shape_of(element.value)
    return None if shape is None else shape[element.axis]


def stretched(a: Known, b: Known) -> Known:
    """Return what two lengths become together, of which one may be 1; None where that can't be said.

    Examples
    --------
    >>> from modelopt_rs.onnx.crop.lengths import stretched
    >>> stretched("words", 1), stretched("words", "words"), stretched("words", "letters")
    ('words', 'words', None)
    """
    if a == 1 or a == b:
        return b
    if b == 1:
        return a
    return next((n for n in (a, b) if isinstance(n, int) and n > 1), None)


def stretched_shape(shapes: list[Lengths]) -> Lengths:
    """Return the lengths of what several values become together, axes counted from the end."""
    rows = list(zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1))[::-1]
    return [reduce(stretched, row) for row in rows]


def merge_names(graph: ir.Graph, integers: Integers) -> bool:
    """Give each length one name, as far as operators prove it; return whether any name went.

    A mask is made of counted numbers, stretched and added to scores: the library calls what comes out anew, and a
    Reshape to the length from before would seem to be to another one.

    Parameters
    ----------
    graph : ir.Graph
        The shapes of its values may get other names, those of its inputs and outputs not.
    integers : Integers
    """
    names: dict[str, str] = {}
    given = {each for value in (*graph.inputs, *graph.outputs) for each in shape_of(value) or ()}
    for node in graph.all_nodes():
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        rule = _stretched if rule is None and node.op_type in STRETCHED else rule
        shape = None if rule is None or not node.outputs else shape_of(node.outputs[0])
        if rule is None or shape is None:
            continue
        try:
            told = rule(node, integers, names)
        except CONTRADICTIONS:
            continue  # shapes that don't fit each other: the walk will say so
        for old, new in zip(shape, told, strict=True) if len(told) == len(shape) else ():
            _merge(names, _find(names, old), _find(names, new), given)
    for value in _made(graph) if names else ():
        shape = shape_of(value)
        if shape is not None and any(isinstance(each, str) and each in names for each in shape):
            value.shape = ir.Shape([_find(names, each) for each in shape])
    return bool(names)


def _merge(names: dict[str, str], a: Known, b: Known, given: Set[Known]) -> None:
    """Let one name be written as the other: not one that the file says of inputs and outputs."""
    a, b = (b, a) if a in given else (a, b)
    if isinstance(a, str) and isinstance(b, str) and a != b and a not in given:
        names[a] = b


def _find(names: dict[str, str], length: Known) -> Known:
    while isinstance(length, str) and length in names:
        length = names[length]
    return length


def _made(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph.all_nodes():
        yield from (value for value in node.outputs if not value.is_graph_output())


def _shape(value: ir.Value | None, names: dict[str, str]) -> Lengths:
    shape = None if value is None else shape_of(value)
    if shape is None:
        raise LookupError(value)
    return [_find(names, each) for each in shape]


def _stretched(node: ir.Node, integers: Integers, names: dict[str, str]) -> Lengths:
    return stretched_shape([_shape(value, names) for value in node.inputs])


def _product(node: ir.Node, integers: Integers, names: dict[str, str]) -> Lengths:
    """Rows of the first, columns of the second, and what stands in front of both."""
    a, b = (_shape(value, names) for value in node.inputs)
    if len(a) < 2 or len(b) < 2:
        return []
    return [*stretched_shape([a[:-2], b[:-2]]), a[-2], b[-1]]


def _expand(node: ir.Node, integers: Integers, names: dict[str, str]) -> Lengths:
    target = None if node.inputs[1] is None else integers.elements(node.inputs[1])
    if target is None:
        return []
    return stretched_shape([_shape(node.inputs[0], names), [_find(names, named(each)) for each in target]])


def _reshape(node: ir.Node, integers: Integers, names: dict[str, str]) -> Lengths:
    target = None if node.inputs[1] is None else integers.elements(node.inputs[1])
    if target is None or (0 in target and node.attributes.get_int("allowzero", 0) != 0):
        return []
    before = _shape(node.inputs[0], names)
    return [before[axis] if each == 0 else _find(names, named(each)) for axis, each in enumerate(target)]


def _counted(node: ir.Node, integers: Integers, names: dict[str, str]) -> Lengths:
    """The numbers from 0 to a length are as many."""
    start, limit, step = (None if value is None else integers.elements(value) for value in node.inputs)
    if start != [0] or step != [1] or limit is None or len(limit) != 1:
        return []
    return [_find(names, named(limit[0]))]


RULES: Final[dict[str, Callable[[ir.Node, Integers, dict[str, str]], Lengths]]] = {
    "MatMul": _product,
    "Expand": _expand,
    "Reshape": _reshape,
    "Range": _counted,
}
