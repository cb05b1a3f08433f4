"""Quantization of arrays to 8, 4 and 2 bits, and the packing of codes."""

from modelopt_rs.quant.affine import QuantizedArray, dequantize, fake_quantize, quantize
from modelopt_rs.quant.packing import pack, unpack

__all__ = ["QuantizedArray", "dequantize", "fake_quantize", "pack", "quantize", "unpack"]
