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
from modelopt_rs.signatures import show_options

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


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
