"""ONNX model files: the graph in memory, the weights in row tiles; needs the extra `onnx`."""

from modelopt_rs.containers.onnx import OnnxSink, OnnxSource, placeholder
from modelopt_rs.signatures import show_options

__all__ = ["OnnxSink", "OnnxSource", "placeholder"]


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
