"""Which weights are computed in int8, and why the others are not."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from modelopt_rs.containers.onnx.dtypes import tensor_info
from modelopt_rs.errors import OptionError
from modelopt_rs.onnx.int8.bodies import made_often
from modelopt_rs.onnx.int8.layers import Layer, as_layer
from modelopt_rs.onnx.int8.recurrent import partner, why_no_lstm
from modelopt_rs.onnx.weights import Use, Weight, find_weights, why_no_weight
from modelopt_rs.planning.decide import Decision, decide
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions, why_never
from modelopt_rs.stream.model import TensorInfo

__all__ = ["Candidates", "check_options", "find_candidates"]

WORDS = {
    "static": "int8, a scale for each output; activations by calibrated ranges",
    "dynamic": "int8, a scale for each output; activations by the range of each call",
}


@dataclass(frozen=True, slots=True)
class Candidates:
    """What was decided for every weight, and the layers of those that are quantized.

    Attributes
    ----------
    decisions : dict
        By name of the tensor.
    infos : dict
        All tensors, also those that are in memory.
    layers : dict
        By name of the weight: one for each node that takes it.
    recurrent : dict
        The weights of LSTMs by name; of each node both are here.
    """

    decisions: dict[str, Decision]
    infos: dict[str, TensorInfo]
    layers: dict[str, list[Layer]]
    recurrent: dict[str, Weight] = field(default_factory=dict)


def check_options(options: QuantizeOptions, onnx: OnnxOptions) -> None:
    """Refuse options that integer kernels have no form for.

    Raises
    ------
    OptionError
        If bits, scheme or group size are others than int8 kernels have.
    """
    asked = f"activations {onnx.activations!r}" if onnx.calibrate is None else "calibrate (static activations)"
    if onnx.activations == "none":
        raise OptionError("activations must be 'dynamic' or 'static', got 'none'")
    if options.bits != 8:
        raise OptionError(f"{asked} needs bits 8, got {options.bits}: integer kernels take int8 weights")
    if options.scheme not in (None, "symmetric"):
        raise OptionError(f"{asked} needs scheme 'symmetric', got {options.scheme!r}: so are the kernels' weights")
    if options.group_size:
        raise OptionError(
            f"{asked} needs group_size 0, got {options.group_size}: weights have a scale for each output channel"
        )


def find_candidates(
    model: ir.Model, tensors: Mapping[str, TensorInfo], options: QuantizeOptions, onnx: OnnxOptions
) -> Candidates:
    """Decide for every tensor whether it becomes the int8 weight of its nodes.

    Parameters
    ----------
    model : Model
    tensors : mapping
        The initializers that a source has tiles of.
    options : QuantizeOptions
        `include` and `exclude` are globs over their names.
    onnx : OnnxOptions
    """
    weights = {weight.name: weight for weight in find_weights(model)}
    small = {name: _info(weight) for name, weight in weights.items() if name not in tensors}
    infos = {**tensors, **small}
    often = made_often(model) if onnx.activations == "static" else set()
    found = {name: _layers(model, weights.get(name), info, onnx, often) for name, info in infos.items()}
    cannot = {name: each if isinstance(each, str) else None for name, each in found.items()}
    default = dict.fromkeys(found, Decision("quantize", WORDS[str(onnx.activations)]))
    decisions = decide("quantize", infos, cannot, options.include, options.exclude, default)
    layers = {
        name: each for name, each in found.items() if isinstance(each, list) and decisions[name].action == "quantize"
    }
    return Candidates(decisions, infos, layers, _in_pairs(found, decisions))


def _in_pairs(found: Mapping[str, "list[Layer] | Weight | str"], decisions: dict[str, Decision]) -> dict[str, Weight]:
    """Return the weights of LSTMs of which both are quantized; of the others the decision is changed."""
    chosen = {
        name: each for name, each in found.items() if isinstance(each, Weight) and decisions[name].action == "quantize"
    }
    while True:
        taken = {(use.node, use.index) for each in chosen.values() for use in each.uses}
        alone = {name: use for name, each in chosen.items() for use in each.uses if partner(use) not in taken}
        if not alone:
            return chosen
        for name, use in alone.items():
            decisions[name] = Decision("copy", f"{use.where}: its other weight is not quantized")
            del chosen[name]


def _info(weight: Weight) -> TensorInfo:
    assert weight.value.const_value is not None
    return tensor_info(weight.name, weight.value.const_value.dtype.value, weight.shape)


def _layers(
    model: ir.Model, weight: Weight | None, info: TensorInfo, onnx: OnnxOptions, often: Container[str]
) -> list[Layer] | Weight | str:
    """Return a layer for each use of a weight, itself if LSTMs take it, or why a tensor is left alone."""
    if weight is None:
        return why_no_weight(model, info.name)
    if weight.others:
        return f"also used by {', '.join(dict.fromkeys(weight.others))}"
    if (reason := why_never(info)) is not None:
        return reason
    if onnx.activations == "dynamic" and all(use.kind == "lstm" for use in weight.uses):
        reasons = (why_no_lstm(use, onnx.target) for use in weight.uses)
        return next((reason for reason in reasons if reason is not None), weight)
    if len({use.out_axis for use in weight.uses}) > 1:
        return "its nodes take it in different directions"
    layers = []
    for use in weight.uses:
        layer = _where(use, onnx, often) or as_layer(weight, use)
        if isinstance(layer, str):
            return layer
        layers.append(layer)
    return layers


def _where(use: Use, onnx: OnnxOptions, often: Container[str]) -> str | None:
    """Say why a node can't be reached with these activations; `often` has the names of several values."""
    if use.kind == "conv" and onnx.activations == "dynamic":
        return f"{use.where}: a Conv that quantizes its input in each call is slower than float32"
    if use.kind == "conv" and use.chain:
        return f"{use.where} takes it behind {use.chain[-1].op_type}"
    if onnx.activations == "static" and use.inner:
        where, x = f"{use.where} is in the body of another node", use.node.inputs[0]
        if use.kind == "conv":
            return f"{where}: only of MatMul and Gemm activations are calibrated there"
        if onnx.equalize or onnx.smooth is not None:
            return f"{where}: equalize and smooth do not reach there"
        if x is not None and x.name in often:
            return f"{where}: several values are named as what it takes"
    return None
