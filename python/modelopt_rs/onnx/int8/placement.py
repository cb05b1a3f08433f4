"""Where activations are quantized, so that onnxruntime fuses what stands between into integer kernels.

A Conv becomes a QLinearConv if its input, weight, bias and output are quantized, a Gemm a QGemm and a MatMul a
MatMulIntegerToFloat also with a float output. What comes out of a Conv is therefore on a grid wherever it goes, and
stays there through operators that only move numbers (with the same scale) or have a kernel of their own. What comes out
of any other node stays float, but for the layers that take it.
"""

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Final

import onnx_ir as ir

from modelopt_rs.onnx.int8.layers import Layer, constant_tensor, only_use

__all__ = ["Placement", "activated", "as_add", "bounds", "place"]

# These give back numbers that they are given: the output has the scale of the first input.
MOVING: Final = (
    "DepthToSpace",
    "Flatten",
    "MaxPool",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
# onnxruntime has an integer kernel for these.
OWN_SCALE: Final = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")
# What stands between two convolutions as an activation, one number for one.
ACTIVATIONS: Final = ("Clip", "Elu", "HardSigmoid", "HardSwish", "Mish", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh")


@dataclass(slots=True)
class Placement:
    """Which values are quantized.

    Attributes
    ----------
    roots : dict
        The values, and for each the value whose range it has.
    whole : set
        Those of which every node takes the quantized numbers, not the layers only.
    """

    roots: dict[ir.Value, ir.Value] = field(default_factory=dict)
    whole: set[ir.Value] = field(default_factory=set)


def place(graph: ir.Graph, layers: Iterable[Layer], off: Container[ir.Value] = ()) -> Placement:
    """Find the values to quantize for these layers, which are nodes of the graph or, of products, of bodies in it.

    What is in `off` gets no codes, and so no layer here takes it.

    Examples
    --------
    >>> import numpy as np, onnx_ir as ir
    >>> from modelopt_rs.onnx.int8.layers import as_layer
    >>> from modelopt_rs.onnx.int8.placement import place
    >>> from modelopt_rs.onnx.weights import find_weights
    >>> x, w = ir.val("x"), ir.val("w", const_value=ir.tensor(np.ones((8, 3, 3, 3), np.float32), name="w"))
    >>> conv = ir.node("Conv", [x, w], outputs=[ir.val("c")])
    >>> relu = ir.node("Relu", conv.outputs, outputs=[ir.val("r")])
    >>> pool = ir.node("MaxPool", relu.outputs, {"kernel_shape": [2, 2]}, outputs=[ir.val("p")])
    >>> graph = ir.Graph([x], pool.outputs, nodes=[conv, relu, pool], initializers=[w], opset_imports={"": 17})
    >>> [weight] = find_weights(ir.Model(graph, ir_version=8))
    >>> placement = place(graph, [as_layer(weight, weight.uses[0])])
    >>> {value.name: root.name for value, root in placement.roots.items()}
    {'x': 'x', 'r': 'r', 'p': 'r'}
    """
    by_node = {layer.node: layer for layer in layers}
    found = Placement()
    for inner in by_node.values():
        if inner.use.inner:
            found.roots.setdefault(inner.x, inner.x)
    activations: set[ir.Value] = set()  # float results of what a Conv gives
    for node in graph:
        layer = by_node.get(node)
        if layer is not None:
            found.roots.setdefault(layer.x, layer.x)
            if layer.kind == "conv":
                _add(found, activated(layer.out), None)
        elif node.domain == "" and len(node.outputs) == 1:
            out = node.outputs[0]
            if _moves(node) and node.inputs[0] in found.whole:
                _add(found, out, found.roots[node.inputs[0]])
            elif _operator(node) in OWN_SCALE and _is_on_grid(node, found.whole, activations, off):
                # An activation that no kernel has costs less once on the grid than the way back of all else.
                for value in node.inputs:
                    if value is not None and value not in found.whole:
                        _add(found, value, None)
                _add(found, activated(out), None)
            elif node.op_type in ACTIVATIONS and (node.inputs[0] in found.whole or node.inputs[0] in activations):
                activations.add(out)
    return found


def _is_on_grid(
    node: ir.Node, whole: Container[ir.Value], activations: Container[ir.Value], off: Container[ir.Value]
) -> bool:
    """Whether a kernel of integers can compute a node: all that it takes and gives may be on a grid."""
    if activated(node.outputs[0]) in off:
        return False
    return all(value in whole or (value in activations and value not in off) for value in node.inputs)


def _moves(node: ir.Node) -> bool:
    """Whether a node only moves numbers: a Resize that takes the nearest does, but by its own roi it makes some up."""
    mode, places = (node.attributes.get(name) for name in ("mode", "coordinate_transformation_mode"))
    if node.op_type != "Resize":
        return node.op_type in MOVING
    nearest = mode is None or mode.as_string() == "nearest"
    return nearest and (places is None or places.as_string() != "tf_crop_and_resize")


def _operator(node: ir.Node) -> str:
    """Return the operator; of a Sum of two that of the same meaning that has a kernel."""
    return "Add" if node.op_type == "Sum" and len(node.inputs) == 2 else node.op_type


def as_add(graph: ir.Graph, placement: Placement) -> None:
    """Make an Add of every Sum whose output is on a grid."""
    for node in graph:
        if node.op_type == "Sum" and _operator(node) == "Add" and node.inputs[0] in placement.whole:
            node.op_type = _operator(node)


def _add(found: Placement, value: ir.Value, root: ir.Value | None) -> None:
    found.roots[value] = value if root is None else root
    found.whole.add(value)


def activated(out: ir.Value) -> ir.Value:
    """Return a value behind the Relu or Clip that only cuts its range, if there is one and nothing else takes it."""
    node = only_use(out)
    return out if node is None or bounds(node) is None or node.inputs[0] is not out else node.outputs[0]


def bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return what a Relu, or a Clip by constants, leaves of numbers; None for any other node."""
    if node.domain != "" or node.op_type not in ("Relu", "Clip"):
        return None
    if node.op_type == "Relu":
        return 0.0, math.inf
    found = [-math.inf, math.inf]
    for i, value in enumerate(node.inputs[1:]):
        if value is None:
            continue
        tensor = constant_tensor(value)
        if tensor is None or tensor.size != 1:
            return None
        found[i] = float(tensor.numpy().reshape(()))
    return found[0], found[1]
