"""The graphs of ONNX models (`onnx_ir.Model`), and runs of models in onnxruntime. Needs the extra `onnx`."""

import modelopt_rs.containers.onnx  # noqa: F401  (before onnx_ir, whose sympy it makes wait)
from modelopt_rs.onnx.crop.apply import crop_graph
from modelopt_rs.onnx.crop.coupling import GraphGroup, Refusal, find_groups
from modelopt_rs.onnx.int8.activations import quantize_activations
from modelopt_rs.onnx.quantize import quantize_graph
from modelopt_rs.onnx.weight_only.rewrite import quantize_weights
from modelopt_rs.onnx.weights import Use, Weight, find_weights

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
