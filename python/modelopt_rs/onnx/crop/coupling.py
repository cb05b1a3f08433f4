"""Coupling groups out of a graph: which channels, hidden units and heads can be removed, and what goes with them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from modelopt_rs.onnx.crop import fused, layout, linear, pointwise, recurrent, reshape
from modelopt_rs.onnx.crop.edits import Edit, EditLength
from modelopt_rs.onnx.crop.elements import shape_of
from modelopt_rs.onnx.crop.integers import Integers
from modelopt_rs.onnx.crop.shapes import infer_shapes
from modelopt_rs.onnx.crop.units import NONE, Labels, segments
from modelopt_rs.onnx.crop.walk import Kind, Place, Refused, Rule, Walk
from modelopt_rs.onnx.weights import ONNX_FLOATS
from modelopt_rs.prune.coupling import Group, Member
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import TensorInfo

__all__ = ["GraphGroup", "Refusal", "find_groups"]

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **linear.RULES,
    **layout.RULES,
    **reshape.RULES,
    **recurrent.RULES,
    **fused.STANDARD,
}


@dataclass(frozen=True, slots=True)
class GraphGroup(Group):
    """A group that was found in a graph: its members are initializers.

    Attributes
    ----------
    kind : {"ffn", "channels", "heads", "hidden"}
        "ffn": units between two layers of MatMul or Gemm; "channels": of convolutions; "heads": of attention;
        "hidden": what a norm or a mean goes along, so that removing some changes the others as well.
    edits : tuple of Edit
        What changes in the graph besides the members.
    """

    kind: Kind = "ffn"
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The outputs of a weight that can't be removed, or of which nobody can prove it.

    Attributes
    ----------
    name : str
        The weight.
    units : int
        How many outputs it has.
    reason : str
        Names the node or the value that is in the way.
    """

    name: str
    units: int
    reason: str


def find_groups(
    model: ir.Model, tensors: Mapping[str, TensorInfo] | None = None, *, max_memory: int | str = DEFAULT_MEMORY
) -> tuple[list[GraphGroup], list[Refusal]]:
    """Find the groups of units that can be removed from a graph.

    From the outputs of each weight of a MatMul, Gemm, Conv, ConvTranspose or Gather, and of the operators that
    onnxruntime's optimizers put in their place, the units are followed through the graph, along every path and in both
    directions, to everything that has them as well. A group comes out only where every operator on the way is known,
    and says that the graph without a unit computes what it computed with the unit's weights at zero. Groups are
    disjoint: all of them can be cropped at once.

    Parameters
    ----------
    model : ir.Model
        Its constants become initializers and its shapes are inferred; what it computes stays the same.
    tensors : mapping, optional
        The tensors of the file, by name: what isn't among them and isn't in memory can't be member of a group.
    max_memory : int or str
        The bytes, as a number or a text such as "64MiB", that all that is known of the units may take.

    Returns
    -------
    groups : list of GraphGroup
        In the order of the graph; the names are those of the first weight, a dot and the kind.
    refusals : list of Refusal
        The other weights, with the reason.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.crop.coupling import find_groups
    >>> model = ir.from_onnx_text('''
    ...     <ir_version: 10, opset_import: ["": 21]>
    ...     net (float[n, 2] x) => (float[n, 2] y)
    ...     <float[2, 3] a = {1, 2, 3, 4, 5, 6}, float[3, 2] b = {1, 2, 3, 4, 5, 6}>
    ...     { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }''')
    >>> [group], [refusal] = find_groups(model)
    >>> group.name, group.units, [(member.name, member.axis) for member in group.members]
    ('a.ffn', 3, [('a', 1), ('b', 0)])
    >>> refusal
    Refusal(name='b', units=2, reason="'y' is an output of the graph")
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    infer_shapes(model)
    return _Finder(model, tensors, bytes_of("max_memory", max_memory)).run()


class _Finder:
    def __init__(self, model: ir.Model, tensors: Mapping[str, TensorInfo] | None, max_memory: int) -> None:
        self._model, self._tensors, self._max_memory = model, tensors, max_memory
        self._opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 1))
        self._integers = Integers()
        self._taken: dict[Place, Labels] = {}
        self._refused: set[Place] = set()
        self._names: set[str] = set()

    def run(self) -> tuple[list[GraphGroup], list[Refusal]]:
        """Follow the outputs of each weight that no group has yet."""
        groups, refusals = [], []
        for weight, axis, units in self._seeds():
            place = (weight, axis)
            if (self._taken.get(place, np.array([NONE])) >= 0).any() or place in self._refused:
                continue
            found = self._follow(weight, axis, units)
            if isinstance(found, GraphGroup):
                groups.append(found)
            else:
                refusals.append(found)
        return groups, refusals

    def _seeds(self) -> list[tuple[ir.Value, int, int]]:
        """Return each weight of floats, the axis that makes its outputs, and how many there are."""
        found: dict[Place, int] = {}
        for node in self._model.graph.all_nodes():
            place = linear.made_by(node)
            weight = node.inputs[place[0]] if place is not None and len(node.inputs) > place[0] else None
            shape = None if weight is None else shape_of(weight)
            if place is None or weight is None or shape is None or len(shape) < 2:
                continue
            axis = place[1] % len(shape)
            root, length = self._integers.root(weight), shape[axis]
            if root is None or root.dtype not in ONNX_FLOATS or 0 in shape or 0 in (shape_of(root) or ()):
                continue
            if isinstance(length, int) and length > 1:
                found.setdefault((weight, axis), length)
        return [(value, axis, units) for (value, axis), units in found.items()]

    def _follow(self, weight: ir.Value, axis: int, units: int) -> GraphGroup | Refusal:
        root = self._integers.root(weight)
        name = (root or weight).name or ""
        reason = ""
        # Of labels there are those of the groups, and those of one walk, before and after they get their numbers.
        most = (self._max_memory - sum(labels.nbytes for labels in self._taken.values())) // 2
        choices = 1
        for split, least in ((0, 1), (1, 3), (2, 2)):
            if choices < least:
                continue  # it would go the same way
            walk = Walk(self._rule, self._opset, self._integers, self._taken, split, most)
            try:
                walk.run(weight, axis, units)
                return self._group(walk, name, (weight, axis))
            except Refused as refused:
                reason, choices = reason or refused.why, max(choices, walk.choices)
        self._refused |= walk.labels.keys()
        return Refusal(name, units, reason)

    @staticmethod
    def _rule(node: ir.Node) -> Rule | None:
        if node.domain in ("", "ai.onnx"):
            return RULES.get(node.op_type)
        return fused.MICROSOFT.get(node.op_type) if node.domain == "com.microsoft" else None

    def _group(self, walk: Walk, name: str, seed: Place) -> GraphGroup:
        found = walk.labels[seed]
        _, places = np.unique(found, return_index=True)
        order = found[np.sort(places)]
        numbers = np.full(int(found.max()) + 1, NONE)
        numbers[order] = np.arange(len(order))
        labels = {place: np.where(each < 0, NONE, numbers[each]) for place, each in walk.labels.items()}
        members = [member for place, each in labels.items() for member in self._members(walk, place, each, len(order))]
        edits: list[Edit] = list(walk.edits.values())
        edits += [EditLength(value=value, axis=axis) for value, axis in labels if not value.is_initializer()]
        edits = [replace(edit, labels=labels.get((edit.value, edit.axis), edit.labels)) for edit in edits]
        for place, each in labels.items():
            old = self._taken.get(place)
            self._taken[place] = each if old is None else np.where(each >= 0, each, old)
        return GraphGroup(self._name(name, walk.kind), len(order), tuple(members), kind=walk.kind, edits=tuple(edits))

    def _name(self, weight: str, kind: Kind) -> str:
        """Return a name that no group has yet: a weight that is read along both axes makes two."""
        count, name = 1, f"{weight}.{kind}"
        while name in self._names:
            count += 1
            name = f"{weight}.{count}.{kind}"
        self._names.add(name)
        return name

    def _members(self, walk: Walk, place: Place, labels: Labels, units: int) -> list[Member]:
        value, axis = place
        if not value.is_initializer():
            return []
        tensor = value.const_value
        streamed = isinstance(tensor, ir.LazyTensor) or tensor is None
        if tensor is None or value.name is None or (streamed and value.name not in (self._tensors or {})):
            raise Refused(value, "is neither in memory nor among the tensors of the file")
        if tensor.dtype.bitwidth < 8:
            raise Refused(value, f"holds {tensor.dtype.bitwidth} bits a number")
        runs = segments(labels, units)
        if runs is None:
            raise Refused(value, "holds the units in an order of its own")
        scored = tensor.dtype in ONNX_FLOATS and value in walk.weights
        return [Member(value.name, axis, offset, size, scored) for offset, size in runs]
