"""SmoothQuant: what is hard to quantize in activations moved into the weights that take them."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from modelopt_rs import reduce
from modelopt_rs.onnx.int8.build import Builder, drop_unused
from modelopt_rs.onnx.int8.equalize import weight_matrix
from modelopt_rs.onnx.int8.layers import Layer, constant_tensor, constant_vector, only_use

__all__ = ["fold_into_norm", "norm_slots", "smooth", "smoothable"]

# No channel is made larger or smaller than by this.
LIMIT = 1e4
Vector = NDArray[np.float32]


def smoothable(layers: Sequence[Layer], float_values: set[ir.Value]) -> dict[ir.Value, list[Layer]]:
    """Return the values that are float and taken by a MatMul or Gemm of its own weight, with the layers that take them.

    Parameters
    ----------
    layers : sequence of Layer
    float_values : set
        Values that only layers take quantized.
    """
    takers: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        if layer.x in float_values:
            takers.setdefault(layer.x, []).append(layer)
    return {
        x: group
        for x, group in takers.items()
        if all(one.kind != "conv" and len(one.weight.uses) == 1 and one.in_scale is None for one in group)
    }


def smooth(
    groups: Mapping[ir.Value, Sequence[Layer]], peaks: Mapping[ir.Value, Vector], alpha: float
) -> dict[ir.Value, Vector]:
    """Divide the channels of activations by s, and multiply the weights that take them.

    ``s = max |x| ** alpha / max |w| ** (1 - alpha)`` for each channel; 1 where either is zero. Reads one
    weight at a time.

    Parameters
    ----------
    groups : mapping
        The layers that take a value. Their scales are changed.
    peaks : mapping
        The largest magnitude of each channel of a value.
    alpha : float
        From 0 to 1.

    Returns
    -------
    dict
        What the values are to be multiplied by: ``1 / s``.

    References
    ----------
    Xiao et al. 2022, "SmoothQuant", arXiv 2211.10438, equation 4.
    """
    factors: dict[ir.Value, Vector] = {}
    for x, layers in groups.items():
        if x not in peaks:
            continue
        weights = np.max([reduce.absmax(weight_matrix(layer), axis=(0, 2)) for layer in layers], axis=0)
        usable = (peaks[x] > 0) & (weights > 0)
        peak, weight = (np.where(usable, each, 1).astype(np.float64) for each in (peaks[x], weights))
        s = np.clip(peak**alpha / weight ** (1 - alpha), 1 / LIMIT, LIMIT)
        factor: Vector = np.where(usable, s, 1).astype(np.float32)
        for layer in layers:
            layer.scale_inputs(factor)
        factors[x] = np.reciprocal(factor)
    return factors


def fold_into_norm(model: ir.Model, build: Builder, x: ir.Value, factor: Vector, layers: Sequence[Layer]) -> bool:
    """Multiply the scale and bias of the normalization that makes a value, if nothing but the layers takes it.

    Returns
    -------
    bool
        Whether that was possible.
    """
    nodes = {layer.node for layer in layers}
    if x.is_graph_output() or any(node not in nodes for node, _ in x.uses()):
        return False
    slots = norm_slots(x, len(factor))
    for node, index in slots:
        old = node.inputs[index]
        vector, tensor = constant_vector(old, len(factor)), constant_tensor(old)
        assert old is not None
        assert vector is not None
        assert tensor is not None
        shaped = (vector * factor).reshape(tensor.shape.numpy())
        node.replace_input_with(index, build.constant(f"{old.name}_smoothed", shaped))
        drop_unused(model, [old])
    return bool(slots)


def norm_slots(x: ir.Value, length: int) -> list[tuple[ir.Node, int]]:
    """Return which inputs of which nodes are the scale and bias of a value; none where it has no such constants."""
    node = x.producer()
    if node is None or node.domain not in ("", "com.microsoft"):
        return []
    if node.op_type in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        slots = [(node, i) for i in range(1, len(node.inputs)) if node.inputs[i] is not None]
        return slots if all(constant_vector(node.inputs[i], length) is not None for _, i in slots) else []
    if node.op_type == "Mul":
        return _constant_slot(node, length)
    if node.op_type == "Add":
        # Normalized, times a constant, plus a constant: what exporters make of older opsets.
        bias = _constant_slot(node, length)
        product = node.inputs[1 - bias[0][1]] if bias else None
        before = None if product is None or only_use(product) is not node else product.producer()
        scale = _constant_slot(before, length) if before is not None and before.op_type == "Mul" else []
        return [*scale, *bias] if scale else []
    return []


def _constant_slot(node: ir.Node, length: int) -> list[tuple[ir.Node, int]]:
    return [(node, i) for i in range(2) if constant_vector(node.inputs[i], length) is not None][:1]
