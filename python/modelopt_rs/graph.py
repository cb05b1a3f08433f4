"""The graphs of ONNX models (`onnx_ir.Model`): the public name of `modelopt_rs.onnx`. Needs the extra `onnx`."""

from modelopt_rs.onnx import (
    GraphGroup,
    Refusal,
    Use,
    Weight,
    crop_graph,
    find_groups,
    find_weights,
    quantize_activations,
    quantize_graph,
    quantize_weights,
)

__all__ = [
    "GraphGroup",
    "Refusal",
    "Use",
    "Weight",
    "crop_graph",
    "find_groups",
    "find_weights",
    "quantize_activations",
    "quantize_graph",
    "quantize_weights",
]
