"""Operations on the graph of an ONNX model (`onnx_ir.Model`); knows no files. Needs the extra `onnx`."""

from modelopt_rs.graph.weight_only import quantize_weights
from modelopt_rs.graph.weights import Use, Weight, find_weights

__all__ = ["Use", "Weight", "find_weights", "quantize_weights"]
