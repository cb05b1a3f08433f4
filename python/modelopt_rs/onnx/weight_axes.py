"""How the weights of a graph lie in their tensors, and which of them are pruned if nothing else is said."""

import sys
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from modelopt_rs.onnx.constant_paths import MOVING, ConstantPath, constant_paths
from modelopt_rs.onnx.weights import OPERATORS, Weight, find_weights, other_use
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.prune import WeightAxes

__all__ = ["find_weight_axes"]

# What may stand between the last layer of a model and its output.
BEHIND_A_HEAD = (
    "Add",
    "ArgMax",
    "Cast",
    "Flatten",
    "Identity",
    "LogSoftmax",
    "Reshape",
    "Sigmoid",
    "Softmax",
    "Squeeze",
)


TABLES = ("gather", "tables")


def find_weight_axes(model: ir.Model) -> dict[str, WeightAxes]:
    """Find how each weight of a graph lies in its tensor: which axis a node sums over, and which makes its outputs.

    Weights of MatMul, Gemm, Conv, ConvTranspose, LSTM and GRU are pruned by default, also where they are put together
    or cut from others first (Concat, Split, Reshape ...); tables, and the weight whose result is an output of the
    model, are left alone.

    Parameters
    ----------
    model : ir.Model

    Returns
    -------
    dict
        For each initializer, weight or not.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> from modelopt_rs.onnx.weight_axes import find_weight_axes
    >>> model = ir.from_onnx_text('''
    ...     <ir_version: 10, opset_import: ["": 21]>
    ...     net (float[n, 2] x) => (float[n, 2] y)
    ...     <float[2, 3] a = {1, 2, 3, 4, 5, 6}, float[3, 2] b = {1, 2, 3, 4, 5, 6}>
    ...     { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }''')
    >>> {name: (each.in_axis, each.default.reason) for name, each in find_weight_axes(model).items()}
    {'a': (0, 'weight of MatMul'), 'b': (0, 'its result is an output of the model')}
    """
    weights = {weight.name: weight for weight in find_weights(model)}
    moved = _moved(model)
    axes = {}
    for name, value in model.graph.initializers.items():
        if name in weights:
            axes[name] = _layout(weights[name])
        elif value in moved:
            axes[name] = _behind_nodes(moved[value])
        else:
            reason = other_use(value)
            axes[name] = WeightAxes(None, None, Decision("copy", reason), refused=reason)
    return axes


def _moved(model: ir.Model) -> dict[ir.Value, list[ConstantPath]]:
    """Return the initializers of which nodes that only move numbers make weights, with what they do: zeros stay."""
    found: dict[ir.Value, list[ConstantPath]] = {}
    paths = constant_paths(model, sys.maxsize)
    computed = {each for path in paths if any(n.op_type not in MOVING for n in path.nodes) for each in path.constants}
    for path in paths:
        for value in path.constants:
            if value not in computed:
                found.setdefault(value, []).append(path)
    return found


def _behind_nodes(paths: Sequence[ConstantPath]) -> WeightAxes:
    """Return how an initializer lies in its tensor of which weights are made: nodes would have to be followed back."""
    uses = [use for path in paths for use in path.value.uses()]
    kinds = {OPERATORS.get((node.domain, node.op_type), ("other",))[0] for node, _ in uses}
    operators = ", ".join(dict.fromkeys(node.op_type for node, _ in uses))
    between = ", ".join(dict.fromkeys(node.op_type for path in paths for node in path.nodes))
    decision = Decision("prune", f"weight of {operators}, behind {between}")
    if kinds & {*TABLES}:
        decision = Decision("copy", "an embedding")
    elif "other" in kinds:
        decision = Decision("copy", f"also used by {operators}")
    elif any(_is_output(node.outputs[0]) for node, _ in uses):
        decision = Decision("copy", "its result is an output of the model")
    return WeightAxes(None, None, decision, unclear=f"it goes through {between}")


def _layout(weight: Weight) -> WeightAxes:
    odd = next((use.reason for use in weight.uses if use.reason is not None), None)
    axes = {(use.out_axis, use.in_axis) for use in weight.uses if use.kind not in TABLES}
    tables = [use for use in weight.uses if use.kind in TABLES]
    operators = ", ".join(dict.fromkeys(use.node.op_type for use in weight.uses))
    decision = Decision("prune", f"weight of {operators}")
    if tables:
        decision = Decision("copy", "an embedding")
    elif weight.others:
        decision = Decision("copy", f"also used by {', '.join(weight.others)}")
    elif any(_is_output(use.node.outputs[0]) for use in weight.uses):
        decision = Decision("copy", "its result is an output of the model")
    if odd is not None and not tables:
        return WeightAxes(None, None, decision, unclear=odd)
    if len(axes) > 1:
        return WeightAxes(None, None, decision, unclear="used along both axes")
    # The rows of a table are its outputs, their columns what the model goes on with.
    out_axis, in_axis = axes.pop() if axes else (0, 1)
    return WeightAxes(out_axis, in_axis, decision)


def _is_output(value: ir.Value) -> bool:
    """Say whether a value is an output of the model, or only a bias or a softmax away from it."""
    pending, seen = [value], {value}
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return True
        behind = [out for out in _behind(value) if out not in seen]
        pending += behind
        seen |= set(behind)
    return False


def _behind(value: ir.Value) -> Iterator[ir.Value]:
    for node, _ in value.uses():
        others = [each for each in node.inputs if each is not None and each is not value]
        if node.op_type in BEHIND_A_HEAD and all(each.is_initializer() for each in others):
            yield node.outputs[0]
