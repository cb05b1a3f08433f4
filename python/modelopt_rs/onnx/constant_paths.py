"""What computes a weight of constants alone: the nodes, and a program of them that needs no graph."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from modelopt_rs._types import Array
from modelopt_rs.containers.onnx.wire import LAZY_BYTES
from modelopt_rs.onnx.weights import CODES, OPERATORS, PASSED

__all__ = ["MOVING", "ConstantPath", "Program", "constant_paths", "program_of"]

# These give back numbers that they are given, each at most once for each time it goes in, but for Expand and Gather;
# these give one for one.
MOVING: Final = (
    "Cast",
    "Concat",
    "Constant",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
POINTWISE: Final = ("Abs", "Add", "Div", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub")
REDUCING: Final = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum")
KNOWN: Final = (*MOVING, *POINTWISE, *REDUCING)
MOST_NODES: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class ConstantPath:
    """What computes a weight.

    Attributes
    ----------
    value : Value
        The weight.
    nodes : tuple of Node
        In the order in which they compute.
    constants : tuple of Value
        The initializers that they take.
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...]
    constants: tuple[ir.Value, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all that it takes."""
        return sum(_bytes(value) for value in self.constants)


@dataclass(frozen=True, slots=True)
class Program:
    """A path that does not need its graph any more.

    Attributes
    ----------
    constants : dict
        By name.
    steps : list of NodeProto
        Their inputs and outputs are names of its own.
    result : str
    opset, most : int
        The standard's opset; the most bytes that a result on the way may take.
    """

    constants: dict[str, ir.TensorProtocol]
    steps: list[onnx.NodeProto]
    result: str
    opset: int
    most: int

    @property
    def nbytes(self) -> int:
        """The bytes of the constants."""
        return sum(tensor.nbytes for tensor in self.constants.values())

    def run(self) -> Array | None:
        """Compute the weight; None if it can't be, or takes more memory."""
        found = {name: np.asarray(tensor.numpy()) for name, tensor in self.constants.items()}
        last = {name: i for i, step in enumerate(self.steps) for name in step.input}
        for i, step in enumerate(self.steps):
            inputs = {name: found[name] for name in step.input if name}
            try:
                if _most_bytes(step, list(inputs.values())) > self.most:
                    return None
                results = ReferenceEvaluator(step, opsets={"": self.opset}).run(None, inputs)
            except Exception:  # its errors have no common class but this
                return None
            found.update(zip(step.output, map(np.asarray, results), strict=True))
            # What no other step takes is let go.
            found = {name: array for name, array in found.items() if name == self.result or last.get(name, -1) > i}
            if sum(array.nbytes for array in found.values()) > self.nbytes + 2 * self.most:
                return None
        return np.ascontiguousarray(found[self.result])


def program_of(path: ConstantPath, opset: int, most: int) -> Program:
    """Return the program of a path, for an opset; `most`: the most bytes that a result on the way may take."""
    names = {value: f"c{i}" for i, value in enumerate(path.constants)}
    steps = []
    for node in path.nodes:
        proto = ir.to_proto(node)
        proto.name, proto.doc_string = "", ""
        del proto.metadata_props[:]
        proto.input[:] = ["" if value is None else names[value] for value in node.inputs]
        names |= {value: f"v{len(names) + i}" for i, value in enumerate(node.outputs)}
        proto.output[:] = [names[value] for value in node.outputs]
        steps.append(proto)
    constants = {names[value]: value.const_value for value in path.constants if value.const_value is not None}
    return Program(constants, steps, names[path.value], opset, most)


def _most_bytes(step: onnx.NodeProto, arrays: list[Array]) -> int:
    """Return what the results of a node may take; ValueError where shapes don't fit each other."""
    if step.op_type in POINTWISE:
        return 8 * math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    if step.op_type == "Expand":
        return 8 * math.prod(np.broadcast_shapes(arrays[0].shape, tuple(arrays[1].tolist())))
    if step.op_type == "Gather":
        axis: int = next((attribute.i for attribute in step.attribute if attribute.name == "axis"), 0)
        return int(8 * arrays[1].size * arrays[0].size // max(arrays[0].shape[axis], 1))
    return 8 * sum(array.size for array in arrays)


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _paths(model: ir.Model) -> list[ConstantPath]:
    """Return what computes the weights of nodes, where that is more than an initializer that is turned or cast."""
    found: dict[ir.Value, ConstantPath] = {}
    for graph in model.graphs():
        for node in graph:
            if (node.domain, node.op_type) not in OPERATORS:
                continue
            indices = [i for i in OPERATORS[node.domain, node.op_type][1] if i < len(node.inputs)]
            paths = [_path(node.inputs[i]) for i in indices]
            if all(
                path or _constant(node.inputs[i]) for path, i in zip(paths, indices, strict=True)
            ) and node.op_type in ("MatMul", "Gemm"):
                continue  # nothing but constants
            for path in paths:
                if path is not None and any(each.op_type not in PASSED for each in path.nodes):
                    found.setdefault(path.value, path)
    return list(found.values())


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input()


def _path(value: ir.Value | None) -> ConstantPath | None:
    """Return what computes a value, if constants do alone."""
    if value is None or value.producer() is None:
        return None
    nodes: dict[ir.Node, None] = {}
    constants: dict[ir.Value, None] = {}
    pending, entered = [value], set[ir.Node]()
    while pending:
        at, node = pending[-1], pending[-1].producer()
        if at.is_graph_input():
            return None
        if at.const_value is not None and at.is_initializer():
            if at.const_value.dtype in CODES:
                return None
            constants[pending.pop()] = None
        elif node is None or node.domain != "" or node.op_type not in KNOWN or _is_lookup(node):
            return None
        elif node not in entered:
            entered.add(node)
            if len(entered) > MOST_NODES:
                return None
            pending += [each for each in reversed(node.inputs) if each is not None]
        else:  # what it takes is done
            nodes[node] = None
            pending.pop()
    return ConstantPath(value, tuple(nodes), tuple(constants))


def _is_lookup(node: ir.Node) -> bool:
    """Whether a node takes rows of a table, which is a weight itself; not a matrix of a stack of them."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and (table.shape is None or len(table.shape) < 3)


def constant_paths(model: ir.Model, most: int) -> list[ConstantPath]:
    """Return what computes the weights of a graph, where all its large constants would go away with it.

    `most`: the most bytes of the constants of one.
    """
    chosen = [path for path in _paths(model) if path.nbytes <= most]
    while True:
        nodes = {node for path in chosen for node in path.nodes}
        weights = {path.value for path in chosen}

        left = [path for path in chosen if _is_free(path, nodes, weights)]
        if len(left) == len(chosen):
            return chosen
        chosen = left


def _is_free(path: ConstantPath, nodes: Collection[ir.Node], weights: Collection[ir.Value]) -> bool:
    """Whether nothing takes what a weight is computed of but these nodes, and what takes these weights."""
    large = [value for value in path.constants if _bytes(value) >= LAZY_BYTES]
    between = [value for node in path.nodes for value in node.outputs if _is_large(value, large)]
    return not any(
        value.is_graph_output() or not all(user in nodes for user, _ in value.uses())
        for value in (*large, *between)
        if value not in weights or value.is_graph_output()
    )


def _is_large(value: ir.Value, large: Collection[ir.Value]) -> bool:
    """Whether a result has one of the large constants in it."""
    pending, seen = [value], {value}
    while pending:
        node = pending.pop().producer()
        inputs = [] if node is None else [each for each in node.inputs if each is not None]
        if any(each in large for each in inputs):
            return True
        pending += {each for each in inputs if each not in seen}
        seen.update(inputs)
    return False
