"""ONNX model files: the graph in memory, the weights in row tiles; needs the extra `onnx`."""

try:
    import onnx
    import onnx_ir
except ImportError as error:
    raise ImportError('open: an ONNX model needs the extra onnx: pip install "modelopt_rs[onnx]"') from error

from modelopt_rs.files.onnx.sink import OnnxSink, placeholder
from modelopt_rs.files.onnx.source import OnnxSource

__all__ = ["OnnxSink", "OnnxSource", "placeholder"]

del onnx, onnx_ir
