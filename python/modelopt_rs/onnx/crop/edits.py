"""What changes in a graph besides its tensors when units go: lengths in shapes, sizes of splits, counts of groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from modelopt_rs.onnx.crop.elements import constant
from modelopt_rs.onnx.crop.integers import PASSED, Integers, part_of
from modelopt_rs.onnx.crop.units import Labels

__all__ = ["Edit", "EditBounds", "EditCounts", "EditInferred", "EditLength", "EditParts", "EditShape", "Gone"]

Gone = NDArray[np.bool_]
"""For each unit whether it goes."""

NO_LABELS: Labels = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Edit:
    """One change. Groups share no indices, so that each takes off what it removes itself.

    Attributes
    ----------
    value : ir.Value
    axis : int
        The axis along which units go.
    labels : ndarray of int64
        The units along it.
    """

    value: ir.Value
    axis: int
    labels: Labels = field(default_factory=lambda: NO_LABELS)

    @property
    def key(self) -> tuple[object, ...]:
        """What is changed: two edits with one key are the same."""
        return (type(self), self.value, self.axis)

    def apply(self, gone: Gone) -> None:
        """Change the graph."""
        raise NotImplementedError

    def less(self, gone: Gone, start: int = 0, stop: int | None = None) -> int:
        """Return how many of the indices go."""
        labels = self.labels[start:stop]
        return int(gone[labels[labels >= 0]].sum())


class EditLength(Edit):
    """The length that a value says it has along an axis."""

    __slots__ = ()

    def apply(self, gone: Gone) -> None:
        """Shorten it."""
        shape = self.value.shape
        if shape is None or self.axis >= len(shape) or not isinstance(length := shape[self.axis], int):
            return
        new = list(shape)
        new[self.axis] = length - self.less(gone)
        self.value.shape = ir.Shape(new)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EditNode(Edit):
    """A change of a node."""

    node: ir.Node

    @property
    def key(self) -> tuple[object, ...]:
        """The node and the axis."""
        return (type(self), self.node, self.axis)

    def give_constant(self, node: ir.Node, index: int, numbers: Sequence[int]) -> None:
        """Give a node's input a constant of its own; others that use the old one keep it."""
        old, graph = node.inputs[index], _graph_of(node)
        base = f"{node.outputs[0].name}.{'sizes' if old is None else old.name}"
        name, count = base, 0
        while name in graph.initializers:
            count += 1
            name = f"{base}.{count}"
        array = np.array(numbers, np.int64 if old is None or old.dtype is None else old.dtype.numpy())
        if old is not None and old.const_value is not None:
            array = array.reshape(old.const_value.shape.numpy())
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(value)
        node.replace_input_with(index, value)
        if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
            assert old.name is not None
            assert old.graph is not None
            old.graph.initializers.pop(old.name)


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EditShape(EditNode):
    """A number in the shape that a Reshape or an Expand is given: the length of its output along an axis.

    Attributes
    ----------
    number : int or None
        Of a number that the graph computes what it was before anything was cropped; None for a constant.
    """

    number: int | None = None

    def apply(self, gone: Gone) -> None:
        """Make it smaller, in a constant or in the part of a Concat that holds it."""
        node, index, position, numbers = self.node, 1, self.axis, constant(self.node.inputs[1])
        if numbers is None:
            node = self._own_concat()
            index, position, new = self._part(node, position)
        else:
            new = [int(n) for n in numbers.ravel()]
        new[position] -= self.less(gone)
        self.give_constant(node, index, new)

    def _part(self, concat: ir.Node, position: int) -> tuple[int, int, list[int]]:
        """Return the part of a Concat that holds a position: of constants, or of numbers that are known."""
        try:
            return part_of(Integers(), concat, position)
        except LookupError:
            if self.number is None:
                raise
        # Lengths that are read now may be those that another group has left.
        index, place, numbers = part_of(Integers(fold=True), concat, position)
        numbers[place] = self.number
        return index, place, numbers

    def _own_concat(self) -> ir.Node:
        """Return the Concat that makes the shape; a copy of it where others use it as well."""
        user, index = self.node, 1
        while True:
            value = user.inputs[index]
            node = None if value is None else value.producer()
            assert value is not None
            assert node is not None
            if len(value.uses()) > 1:
                node = _copy(node, user, index, f"{self.node.outputs[0].name}.{node.op_type.lower()}")
            if node.op_type == "Concat":
                return node
            user, index = node, PASSED[node.op_type]


class EditInferred(EditShape):
    """A length of which only the rest of a shape tells how many times the units are in it: -1 takes its place."""

    __slots__ = ()

    def apply(self, gone: Gone) -> None:
        """Let the operator find it."""
        concat = self._own_concat()
        index = next(i for i, end in enumerate(np.cumsum(self.sizes(concat))) if self.axis < end)
        self.give_constant(concat, index, [-1])

    @staticmethod
    def sizes(concat: ir.Node) -> list[int]:
        """Return how many numbers each part of a Concat has."""
        parts = [None if part is None else Integers().elements(part) for part in concat.inputs]
        if any(part is None for part in parts):
            raise LookupError(concat.name)
        return [len(part) for part in parts if part is not None]


def _copy(node: ir.Node, user: ir.Node, index: int, name: str) -> ir.Node:
    """Give an input of a node a copy of what makes it."""
    copy = ir.Node(node.domain, node.op_type, list(node.inputs), list(node.attributes.values()), name=name)
    old = node.outputs[0]
    copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, old.type, old.shape
    _graph_of(user).insert_before(user, copy)
    user.replace_input_with(index, copy.outputs[0])
    return copy


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EditParts(EditNode):
    """The sizes of the parts that a Split makes.

    Attributes
    ----------
    sizes : tuple of int
        Before anything is cropped.
    attribute : bool
        Whether they are written as an attribute: before opset 13.
    """

    sizes: tuple[int, ...]
    attribute: bool

    def apply(self, gone: Gone) -> None:
        """Write the sizes that are left, as a list."""
        node, starts = self.node, np.cumsum([0, *self.sizes])
        sizes = self.sizes
        if self.attribute:
            sizes = tuple(node.attributes.get_ints("split", sizes))
        elif len(node.inputs) > 1 and (known := constant(node.inputs[1])) is not None:
            sizes = tuple(int(n) for n in known)
        new = [n - self.less(gone, a, b) for n, a, b in zip(sizes, starts, starts[1:], strict=False)]
        if self.attribute:
            node.attributes.add(ir.AttrInt64s("split", new))
            return
        node.attributes.pop("num_outputs", None)
        node.resize_inputs(2)
        self.give_constant(node, 1, new)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EditBounds(EditNode):
    """Where a Slice begins and ends along an axis.

    Attributes
    ----------
    position : int
        Of the axis among those that are sliced.
    bounds : pair of tuple of int
        Begins and ends before anything is cropped: they may be computed of lengths.
    """

    position: int
    bounds: tuple[tuple[int, ...], tuple[int, ...]]

    def apply(self, gone: Gone) -> None:
        """Move both."""
        for index, before in enumerate(self.bounds, 1):
            numbers = constant(self.node.inputs[index])
            new = list(before) if numbers is None else [int(n) for n in numbers.ravel()]
            length = len(self.labels)
            less = self.less(gone, 0, _place(before[self.position], length))
            new[self.position] = _place(new[self.position], length) - less
            self.give_constant(self.node, index, new)


def _place(bound: int, length: int) -> int:
    return min(max(bound + length if bound < 0 else bound, 0), length)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EditCounts(EditNode):
    """Attributes that count what units are: groups of a convolution or a norm, heads, widths of all heads.

    Attributes
    ----------
    each : int
        Indices of a unit along the axis.
    counts : mapping
        By attribute what it loses with a unit: a number, or one of each of a list.
    """

    each: int
    counts: Mapping[str, tuple[int, ...]]

    def apply(self, gone: Gone) -> None:
        """Take off those that go."""
        units = self.less(gone) // self.each
        for name, amounts in self.counts.items():
            if len(amounts) == 1:
                left = self.node.attributes.get_int(name, 0) - units * amounts[0]
                self.node.attributes.add(ir.AttrInt64(name, left))
            else:
                sizes = self.node.attributes.get_ints(name, ())
                left_of_each = [size - units * each for size, each in zip(sizes, amounts, strict=True)]
                self.node.attributes.add(ir.AttrInt64s(name, left_of_each))
