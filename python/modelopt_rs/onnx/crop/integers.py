"""What the integers of a graph are that say shapes, traced back from where they are used."""

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from modelopt_rs.onnx.crop.elements import (
    CONTRADICTIONS,
    LARGEST,
    RULES,
    Computed,
    Element,
    constant,
    fixed,
    lengths_of,
)

__all__ = ["PASSED", "Integers", "concat_of", "part_of"]

# What a shape goes through unchanged, and by which input: of Where what isn't -1, as exporters write an Expand.
PASSED = {"Cast": 0, "Identity": 0, "Where": 2}


class Integers:
    """Traces values back: integers to constants and lengths, others to the model's own tensors.

    Parameters
    ----------
    fold : bool
        Whether lengths that are known count as constants.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.crop.integers import Integers
    >>> shape = ir.val("shape", const_value=ir.tensor([0, -1, 64], name="shape"))
    >>> Integers().elements(shape)
    [0, -1, 64]
    """

    def __init__(self, *, fold: bool = False) -> None:
        self._fold = fold
        self._folded = self if fold else Integers(fold=True)
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
        for each in _unknown_before(value, self._known, lambda node: node.op_type in RULES):
            try:
                found = self._trace(each)
            except CONTRADICTIONS:
                found = None
            self._known[each] = found if found is not None and len(found) <= LARGEST else None
        return self._known[value]

    def present(self, value: ir.Value) -> list[Element] | None:
        """Return what each number is; of a computed one the number that it has in the graph as it is, if known."""
        elements, now = self.elements(value), self._folded.elements(value)
        if elements is None or now is None:
            return elements
        return [b if isinstance(a, Computed) and isinstance(b, int) else a for a, b in zip(elements, now, strict=True)]

    def numbers(self, value: ir.Value | None) -> list[int] | None:
        """Return the numbers of a scalar or a vector that the graph as it is has at each run; None where they vary."""
        elements = None if value is None else self._folded.elements(value)
        numbers = [each for each in elements or [] if isinstance(each, int)]
        return numbers if elements is not None and len(numbers) == len(elements) else None

    def _trace(self, value: ir.Value) -> list[Element] | None:
        node = value.producer()
        numbers = constant(value)
        if numbers is not None:
            return [int(n) for n in numbers.ravel()] if numbers.dtype.kind in "iu" and numbers.ndim < 2 else None
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in ("Shape", "Size"):
            lengths = lengths_of(node)
            return [fixed(each) if self._fold else each for each in lengths] if lengths is not None else None
        rule = RULES.get(node.op_type)
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


def concat_of(value: ir.Value | None) -> ir.Node | None:
    """Return the Concat that makes a vector, also behind Cast, Identity and Where; None if there is none."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in PASSED:
        before = node.inputs[PASSED[node.op_type]]
        node = None if before is None else before.producer()
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
