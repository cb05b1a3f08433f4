"""How far the units along an axis reach through a graph: labels that spread from value to value."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs.errors import quote
from modelopt_rs.onnx.crop.edits import Edit, EditShape
from modelopt_rs.onnx.crop.elements import CONTRADICTIONS, Length, shape_of
from modelopt_rs.onnx.crop.integers import Integers, concat_of, part_of
from modelopt_rs.onnx.crop.units import Labels, Units

__all__ = ["At", "Kind", "Place", "Refused", "Rule", "Walk", "label_of"]

Kind: TypeAlias = Literal["ffn", "channels", "heads", "hidden"]
Place: TypeAlias = tuple[ir.Value, int]
# What becomes of the kind of a group when an operator is met: the last one wins.
RANK: tuple[Kind, ...] = ("ffn", "channels", "heads", "hidden")
# What may meet an axis that has its units an unknown number of times.
BATCHED = ("Transpose", "Reshape", "Shape", "MatMul", "Softmax", "Add", "Sub", "Mul", "Div", "Cast", "Identity")
COPIES = 8  # of an array of labels there are so many at a time


class Refused(Exception):
    """The units can't be removed, or nobody can prove that they can."""

    def __init__(self, where: ir.Node | ir.Value, why: str) -> None:
        self.why = f"{label_of(where)} {why}"
        super().__init__(self.why)


@dataclass(frozen=True, slots=True)
class At:
    """Where labels come to a node."""

    side: Literal["in", "out"]
    index: int
    axis: int


def label_of(where: ir.Node | ir.Value) -> str:
    """Return how a node or a value is called in messages."""
    if isinstance(where, ir.Value):
        return quote(where.name or "")
    name = where.name or (where.outputs[0].name if where.outputs else "") or ""
    return f"{where.op_type} {quote(name)}"


class Walk:
    """Spreads the units of one axis over all values that have them as well.

    Labels on a value's axis say which indices go with which unit. Every operator that meets a labelled axis has a rule
    which says where else the same indices must go; one without a rule refuses. At the end all rules agree.

    Parameters
    ----------
    rules : callable
        Returns the rule of a node; None if there is none.
    opset : int
        The version of the standard operators.
    integers : Integers
    taken : mapping
        By value and axis, which indices belong to groups already.
    split : int
        Which axis takes the units where a Reshape splits one: 0, the first of them; 1, a later one, but not the last;
        2, the last, of the first that is split, as queries, keys and values that are told apart before heads are.
    most : int
        The bytes that all labels may take.
    """

    def __init__(
        self,
        rules: Callable[[ir.Node], "Rule | None"],
        opset: int,
        integers: Integers,
        taken: dict[Place, Labels],
        split: int = 0,
        most: int = 1 << 30,
    ) -> None:
        self._rules, self.opset, self.integers, self._taken, self.split = rules, opset, integers, taken, split
        self._last = split == 2  # for what is told apart, and shuffled channels: widths of heads stay
        self._most = self._left = most
        self.labels: dict[Place, Labels] = {}
        self.edits: dict[tuple[object, ...], Edit] = {}
        self._repeated: set[tuple[ir.Value | None, int]] = set()
        self._lengths: dict[tuple[ir.Node, int], Length] = {}
        self._must_edit: dict[ir.Node, None] = {}
        self._kept: dict[tuple[ir.Node, int], None] = {}
        self.weights: set[ir.Value] = set()
        self.picks = False  # whether a part of something computed is taken by number
        self.choices = 1  # between so many axes at most
        self.repeated = False  # whether the axis that is met has its units an unknown number of times
        self.kind: Kind = "ffn"
        self._queue: deque[Place] = deque()

    def run(self, value: ir.Value, axis: int, n: int) -> None:
        """Spread `n` units from an axis; raise Refused if they reach what can't be cropped."""
        self.room(value, n)
        self.units = Units(n)
        self.give(value, axis, np.arange(n))
        while self._queue:
            value, axis = self._queue.popleft()
            labels = self.units.find(self.labels[value, axis])
            producer = value.producer()
            if producer is not None:
                self._meet(producer, At("out", value.index() or 0, axis), labels)
            for node, index in value.uses():
                self._meet(node, At("in", index, axis), labels)
        for place, labels in self.labels.items():
            self.labels[place] = self.units.find(labels)
        self._check()

    def _meet(self, node: ir.Node, at: At, labels: Labels) -> None:
        rule = self._rules(node)
        if rule is None:
            raise Refused(node, "is an operator that cropping doesn't know")
        value = node.inputs[at.index] if at.side == "in" else node.outputs[at.index]
        self.repeated = (value, at.axis) in self._repeated
        if self.repeated and node.op_type not in BATCHED:
            raise Refused(node, "has the units merged with an axis of unknown length")
        try:
            rule(self, node, at, labels)
        except CONTRADICTIONS as error:
            raise Refused(node, "has inputs that don't fit each other") from error

    def give(self, value: ir.Value | None, axis: int, labels: Labels, *, repeated: bool = False) -> None:
        """Label an axis; indices without a label stay free to get one.

        Labels may be repeated an unknown number of times along the axis: a batch that has been merged with it.
        """
        if value is None or not (labels >= 0).any():
            return
        place = (value, axis)
        old = self.labels.get(place)
        if old is None:
            self._enter(place, labels, repeated)
            return
        if len(old) != len(labels) or repeated != (place in self._repeated):
            raise Refused(value, f"has an axis of length {len(old)} that should be {len(labels)}")
        self.units.join(old, labels)
        new = (old < 0) & (labels >= 0)
        if new.any():
            self._check_free(place, labels)
            self.labels[place] = np.where(new, labels, old)
            self._queue.append(place)

    def room(self, where: ir.Node | ir.Value, count: int) -> None:
        """Refuse to make so many labels at once that they, and what is made of them, take more memory than there is."""
        if count > self._most // (8 * COPIES):
            raise Refused(where, f"has {count:,} labels, for which max_memory is too small")

    def is_repeated(self, value: ir.Value | None, axis: int) -> bool:
        """Say whether an axis has its labels an unknown number of times."""
        return (value, axis) in self._repeated

    def _enter(self, place: Place, labels: Labels, repeated: bool) -> None:
        value = place[0]
        if value.is_graph_input():
            raise Refused(value, "is an input of the graph")
        if value.is_graph_output():
            raise Refused(value, "is an output of the graph")
        known = shape_of(value)
        length = known[place[1]] if known is not None and place[1] < len(known) else None
        if isinstance(length, int) and length != len(labels):
            merged = "the units merged with an axis of unknown length"
            raise Refused(
                value, f"has {merged if repeated else f'an axis of length {length} that should be {len(labels)}'}"
            )
        if repeated:
            self._repeated.add(place)
        self._check_free(place, labels)
        self._left -= labels.nbytes
        if self._left < 0:
            raise Refused(value, "has more labels than fit in max_memory, with those of all others")
        self.labels[place] = labels.copy()
        self._queue.append(place)

    def _check_free(self, place: Place, labels: Labels) -> None:
        taken = self._taken.get(place)
        if taken is not None and ((taken >= 0) & (labels >= 0)).any():
            raise Refused(place[0], "is cropped along the same axis by another group")

    def shape(self, value: ir.Value, node: ir.Node) -> list[int | str | None]:
        """Return the lengths of a value's axes; a node that needs them refuses where even their number is unknown."""
        shape = shape_of(value)
        if shape is None:
            raise Refused(node, f"has {quote(value.name or '')}, whose shape isn't known")
        for axis in range(len(shape)):
            if (value, axis) in self.labels and (value, axis) not in self._repeated:
                shape[axis] = len(self.labels[value, axis])
        return shape

    def rank(self, value: ir.Value, node: ir.Node) -> int:
        """Return how many axes a value has."""
        return len(self.shape(value, node))

    def static(self, value: ir.Value | None) -> bool:
        """Say whether a value is made of the model's own tensors alone."""
        return self.integers.static(value)

    def weigh(self, value: ir.Value | None) -> None:
        """Note that the numbers of a tensor are weights, by which units are ranked."""
        root = self.integers.root(value)
        if root is not None:
            self.weights.add(root)

    def is_kind(self, kind: Kind) -> None:
        """Note what the units are: what stands last in `RANK` counts."""
        self.kind = max(self.kind, kind, key=RANK.index)

    def same_length(self, node: ir.Node, position: int, length: Length) -> None:
        """Note that a length of a node's output is taken from a value: either both are cropped alike or none is."""
        self._lengths[node, position] = length

    def keep_number(self, node: ir.Node, position: int) -> None:
        """Note that a length of a node's output is computed of labelled axes: it must be written as a number."""
        self._kept[node, position] = None

    def must_edit(self, node: ir.Node) -> None:
        """Note that a node depends on lengths of labelled axes, so that it must have an edit that takes them over."""
        self._must_edit[node] = None

    def edit(self, edit: Edit) -> None:
        """Note what must change in the graph when units go; a later one for the same place takes its place."""
        self.edits[edit.key] = edit

    def _check(self) -> None:
        """Check what only the whole can tell."""
        if self._last and not self.picks and self.kind != "channels":
            raise Refused(next(iter(self.labels))[0], "has units in an axis that is split")
        every = np.unique(np.concatenate([labels[labels >= 0] for labels in self.labels.values()]))
        if len(every) < 2:
            value = next(iter(self.labels))[0]
            raise Refused(value, "has units that all hang together")
        for (value, _), labels in self.labels.items():
            if (labels >= 0).all() and len(np.unique(labels)) < len(every):
                raise Refused(value, "holds only some of the units, and could become empty")
        edited = {key[1] for key in self.edits}
        for node in self._must_edit:
            if node not in edited:
                raise Refused(node, "depends on the number of units")
        for (node, position), length in self._lengths.items():
            places = ((node.outputs[0], position), (length.value, length.axis))
            both = [self.labels.get(place) for place in places]
            alike = [None if labels is None else np.sort(labels).tobytes() for labels in both]
            if alike[0] == alike[1]:
                continue
            number = self.number(node, position)
            if number is None or (both[0] is not None and both[1] is not None):
                raise Refused(node, f"takes a length from {quote(length.value.name or '')}, which isn't cropped alike")
            # What is as long as something else by chance gets a number of its own.
            self.edit(EditShape(value=node.outputs[0], axis=position, node=node, number=number))
        for node, position in self._kept:
            number = self.number(node, position)
            if number is None:
                raise Refused(node, "takes a length that is computed of the number of units")
            if not any(key[1:] == (node, position) for key in self.edits):
                self.edit(EditShape(value=node.outputs[0], axis=position, node=node, number=number))

    def choose(self, count: int) -> int:
        """Return which of some axes takes the units where one is split."""
        self.choices = max(self.choices, count)
        if self.split < 2:
            return min(self.split, max(count - 2, 0))
        self.split = 0
        return count - 1

    def number(self, node: ir.Node, position: int) -> int | None:
        """Return the length that a shape can say as a number, in the place of one that is read or computed."""
        concat = concat_of(node.inputs[1])
        if concat is None or self.is_repeated(node.outputs[0], position):
            return None
        try:
            index, place, numbers = part_of(Integers(fold=True), concat, position)
        except LookupError:
            return None
        part = concat.inputs[index]
        own = None if part is None else self.integers.elements(part)
        others = [each for at, each in enumerate(own or []) if at != place]
        return numbers[place] if all(isinstance(each, int) for each in others) else None


Rule: TypeAlias = Callable[[Walk, ir.Node, At, Labels], None]
