"""ONNX model files: the graph in memory, the weights in row tiles; needs the extra `onnx`."""

from modelopt_rs.containers.onnx import OnnxSink, OnnxSource, placeholder

__all__ = ["OnnxSink", "OnnxSource", "placeholder"]
