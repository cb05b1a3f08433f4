"""Cross-layer equalization: channels of two layers in a row made alike, without changing what the model computes."""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from modelopt_rs import reduce
from modelopt_rs.onnx.int8.layers import Layer, only_use

__all__ = ["equalize", "find_pairs", "weight_matrix"]

# The ranges of a chain of layers hardly change after so many rounds; each reads every weight once.
ROUNDS = 4
Vector = NDArray[np.float32]


def find_pairs(layers: Iterable[Layer]) -> list[tuple[Layer, Layer]]:
    """Find the layers of which one takes what the other gives, as it is or behind a Relu, and nothing else does.

    The weights of both are of one node. A Relu gives ``s * y`` of ``s * x`` for every positive s; a Clip doesn't.
    """
    # A weight of several nodes can't have the scales of one.
    alone = [layer for layer in layers if len(layer.weight.uses) == 1]
    by_node = {layer.node: layer for layer in alone}
    pairs = []
    for first in alone:
        taker = only_use(first.out)
        if taker is not None and taker.domain == "" and taker.op_type == "Relu":
            taker = only_use(taker.outputs[0])
        second = None if taker is None else by_node.get(taker)
        if second is not None and first.outputs == second.inputs and (first.kind == "conv") == (second.kind == "conv"):
            pairs.append((first, second))
    return pairs


def equalize(pairs: Sequence[tuple[Layer, Layer]]) -> dict[ir.Value, Vector]:
    """Scale the weights of pairs so that both have the same range in every channel between them.

    ``s = sqrt(r1 / r2)``: the first layer's outputs and bias over s, the second's inputs times s. Reads one weight at a
    time.

    Parameters
    ----------
    pairs : sequence of (Layer, Layer)
        Their scales and biases are changed.

    Returns
    -------
    dict
        What the values between are multiplied by, channel by channel.

    References
    ----------
    Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", arXiv 1906.04721,
    equation 11.
    """
    found: dict[ir.Value, Vector] = {}
    for _ in range(ROUNDS if len(pairs) > 1 else 1):
        for first, second in pairs:
            out_range, in_range = _range(first, outputs=True), _range(second, outputs=False)
            usable = (out_range > 0) & (in_range > 0)
            factor: Vector = np.sqrt(np.where(usable, in_range, 1) / np.where(usable, out_range, 1)).astype(np.float32)
            first.scale_outputs(factor)
            second.scale_inputs(np.reciprocal(factor))
            found[first.out] = found[second.x] = factor * found.get(second.x, np.float32(1))
    return found


def weight_matrix(layer: Layer) -> Vector:
    """Read a layer's weight as it will be quantized: [out, in within its group, all the rest]."""
    assert layer.weight.value.const_value is not None
    w = np.asarray(layer.weight.value.const_value.numpy(), np.float32)
    w = np.moveaxis(w, (layer.use.out_axis, layer.use.in_axis), (0, 1))
    w = w.reshape(*w.shape[:2], -1)
    if layer.in_scale is not None:
        w = w * np.repeat(layer.in_scale.reshape(layer.groups, 1, -1), len(w) // layer.groups, axis=0).reshape(
            len(w), -1, 1
        )
    return w if layer.out_scale is None else w * layer.out_scale[:, None, None]


def _range(layer: Layer, *, outputs: bool) -> Vector:
    """Return the largest magnitude of a weight for each of its output or input channels."""
    w = weight_matrix(layer)
    if outputs:
        return np.asarray(reduce.absmax(w, axis=(1, 2)))
    groups = w.reshape(layer.groups, -1, *w.shape[1:])
    return np.asarray(reduce.absmax(groups, axis=(1, 3))).reshape(-1)
