"""AWQ of ONNX models: weights times factors of their inputs, where what makes these inputs can be divided by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.errors import quote
from modelopt_rs.onnx.int8.build import drop_unused
from modelopt_rs.onnx.int8.layers import constant_tensor, constant_vector
from modelopt_rs.onnx.int8.smooth import norm_slots
from modelopt_rs.onnx.names import Names
from modelopt_rs.onnx.weight_only.plan import WeightPlan, plan_weights
from modelopt_rs.onnx.weights import Weight, find_weights
from modelopt_rs.planning.by_inputs import KnownInputs
from modelopt_rs.planning.decide import Decision
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.quant.awq import awq_scales
from modelopt_rs.quant.by_inputs import Moments
from modelopt_rs.stream.model import Source, TensorInfo
from modelopt_rs.stream.transform import Transform
from modelopt_rs.transforms.scaled import Scaled

__all__ = ["Factors", "find_factors"]

Slot: TypeAlias = tuple[ir.Node, int]


@dataclass(slots=True)
class Factors:
    """What a model is multiplied by so that its results stay.

    Attributes
    ----------
    weights : dict
        By name of a weight, by axis, what its elements are multiplied by.
    moments : dict
        By name of a weight what gives the moments of its inputs, which are divided.
    divided : set of str
        Constants that are divided.
    """

    weights: dict[str, dict[int, Array]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    divided: set[str] = field(default_factory=set)

    def transforms(self, infos: Mapping[str, TensorInfo], then: Mapping[str, Transform]) -> dict[str, Transform]:
        """Return what becomes of tensors: times their factors, those that have some."""
        return {
            name: Scaled(infos[name], self.weights[name], each) if name in self.weights else each
            for name, each in then.items()
        }

    def decided(self, decisions: Mapping[str, Decision]) -> dict[str, Decision]:
        """Return decisions that say which constants are divided."""
        divided = Decision("copy", "divided by the factors of AWQ")
        return {name: divided if name in self.divided else each for name, each in decisions.items()}


@dataclass(frozen=True, slots=True)
class _Group:
    """Weights that take the same input, and what makes it."""

    names: Sequence[str]
    slots: Sequence[Slot]
    before: Sequence[str]


def find_factors(source: Source, known: KnownInputs, options: QuantizeOptions, onnx: OnnxOptions) -> Factors:
    """Find factors of the inputs of weights, and divide what makes these inputs: the graph is changed.

    Parameters
    ----------
    source : Source
    known : KnownInputs
        What is known of the inputs; weights whose inputs can't be divided are taken out of it. Of a dry run nothing,
        and then nothing is changed.
    options : QuantizeOptions
    onnx : OnnxOptions
    """
    if known.method != "awq":
        return Factors()
    model = source.graph
    plan = plan_weights(model.clone(), source.tensors, options, onnx, None)
    groups, unseen = _groups(source, known, plan)
    known.leave(unseen)
    found, names = Factors(), Names(model)
    for group in groups if known.is_looked_at else ():
        squares = known.moments[group.names[0]]()
        if not squares.size:
            continue
        s = _factors(source, plan, group, np.sqrt(squares), options)
        for name in group.names:
            axis = plan.weights[name].in_axis
            found.weights.setdefault(name, {})[axis] = s
            found.moments[name] = partial(np.divide, squares, np.square(s, dtype=np.float64))
        for name in group.before:
            found.weights.setdefault(name, {})[plan.weights[name].out_axis] = 1 / s
        for node, index in group.slots:
            _divide(model, names, node, index, s, found)
    return found


def _factors(source: Source, plan: WeightPlan, group: _Group, magnitudes: Array, options: QuantizeOptions) -> Array:
    """Return the factors of one input."""
    first = group.names[0]
    block = next(iter(plan.forms[first].values())).block
    matrices = [source.read(name) for name in group.names]
    turned = [w.T if plan.weights[k].in_axis == 0 else w for k, w in zip(group.names, matrices, strict=True)]
    at = options.with_bits(plan.bits[first])
    return awq_scales(
        np.concatenate(turned),
        magnitudes,
        bits=at.bits,
        scheme=at.spec.scheme,
        axis=None if block else 0,
        group_size=block or None,
        search="mse" if options.search == "mse" else None,
        scale_dtype="float16" if at.has_half_scales else None,
    )


def _groups(source: Source, known: KnownInputs, plan: WeightPlan) -> tuple[list[_Group], dict[str, str]]:
    """Return the weights by their inputs, where these can be divided, and why others are left."""
    weights = {weight.name: weight for weight in find_weights(source.graph)}
    takers: dict[ir.Value, list[str]] = {}
    for name in known.moments:
        if name in plan.forms:
            for use in weights[name].uses:
                x = use.node.inputs[0]
                assert x is not None
                takers.setdefault(x, []).append(name)
    groups, unseen = list[_Group](), dict[str, str]()
    for x, names in takers.items():
        length = weights[names[0]].shape[weights[names[0]].in_axis]
        alone = all(len(weights[name].uses) == 1 and _is_float(source, name) for name in names)
        nodes = {use.node for name in names for use in weights[name].uses}
        made = _made(source, weights, x, nodes, length) if alone else None
        if made is None:
            reason = f"what makes its input {quote(x.name or '')} can't be divided, or others take it too"
            unseen |= dict.fromkeys(names, reason)
        else:
            groups.append(_Group(names, *made))
    return [each for each in groups if not any(name in unseen for name in each.names)], unseen


def _is_float(source: Source, name: str) -> bool:
    return source.tensors[name].dtype == "F32"


def _made(
    source: Source, weights: Mapping[str, Weight], x: ir.Value, takers: set[ir.Node], length: int
) -> tuple[list[Slot], list[str]] | None:
    """Return the constants and the weights that are divided where a value is; None where it can't be."""
    left: list[tuple[ir.Value, set[ir.Node], list[Slot]]] = [(x, takers, [])]
    seen: set[ir.Value] = set()  # a node may take a value twice, and one behind the other thousands
    while left:
        value, takers, biases = left.pop()
        if value in seen or value.is_graph_output() or any(node not in takers for node, _ in value.uses()):
            continue
        seen.add(value)
        slots, node = norm_slots(value, length), value.producer()
        if slots:
            return [*slots, *biases], []
        if node is None or node.domain != "":
            continue
        if node.op_type in ("MatMul", "Gemm"):
            made = _product(source, weights, node, length)
            if made is not None:
                return [*made[0], *biases], made[1]
            continue
        # Max(z, 0) / s is Max(z / s, 0), for s > 0.
        through = node.inputs if node.op_type in ("Relu", "Mul", "Add") else ()
        bias = [(node, i) for i, each in enumerate(through) if constant_vector(each, length) is not None]
        if node.op_type == "Add" and len(bias) != 1:
            continue
        behind = [*bias, *biases] if node.op_type == "Add" else biases
        left += [(each, {node}, behind) for each in reversed(through) if each is not None and each.producer()]
    return None


def _product(
    source: Source, weights: Mapping[str, Weight], node: ir.Node, length: int
) -> tuple[list[Slot], list[str]] | None:
    """Return the weight of a product, and its bias."""
    bias = [(node, 2)] if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None else []
    if any(constant_vector(node.inputs[2], length) is None for _ in bias):
        return None
    for name, weight in weights.items():
        alone = len(weight.uses) == 1 and not weight.others and name in source.tensors
        if alone and weight.uses[0].node is node and weight.uses[0].reason is None and len(weight.shape) == 2:
            return (bias, [name]) if _is_float(source, name) and not weight.uses[0].chain else None
    return None


def _divide(model: ir.Model, names: Names, node: ir.Node, index: int, s: Array, found: Factors) -> None:
    """Divide a constant of a node."""
    old = node.inputs[index]
    vector, tensor = constant_vector(old, len(s)), constant_tensor(old)
    assert old is not None
    assert vector is not None
    assert tensor is not None
    divided = (vector / s).astype(np.float32).reshape(tensor.shape.numpy())
    node.replace_input_with(index, names.constant(f"{old.name}_divided", divided))
    found.divided.add(str(old.name))
    drop_unused(model, [old])
