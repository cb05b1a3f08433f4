"""ONNX model files: the graph in memory, the weights in row tiles; needs the extra `onnx`."""

from modelopt_rs.containers.onnx.later import later
from modelopt_rs.interrupts import uninterrupted

try:
    # For arithmetic on symbolic lengths, which is rare; sympy takes half of the time of a short run, and 30 MB. An
    # interrupt within protobuf's C code, as it imports, ends in a segmentation fault (1 of 60).
    with uninterrupted(), later("sympy"), later("onnx_ir._symbolic_shapes"):
        import onnx
        import onnx_ir
except ImportError as error:
    raise ImportError('open: an ONNX model needs the extra onnx: pip install "modelopt_rs[onnx]"') from error

from modelopt_rs.containers.onnx.sink import OnnxSink, placeholder
from modelopt_rs.containers.onnx.source import OnnxSource

__all__ = ["OnnxSink", "OnnxSource", "placeholder"]

del later, onnx, onnx_ir, uninterrupted
