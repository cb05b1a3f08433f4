"""Quantization of arrays to 8, 4 and 2 bits, plainly or by calibration; packing of codes; ranges of activations."""

from modelopt_rs.quant.affine import dequantize_linear, quantize_linear, requantize_linear
from modelopt_rs.quant.array import QuantizedArray, dequantize
from modelopt_rs.quant.awq import awq_scales
from modelopt_rs.quant.calibrator import Calibrator
from modelopt_rs.quant.coding import fake_quantize, quantize
from modelopt_rs.quant.formats import Format, formats
from modelopt_rs.quant.gptq import gptq
from modelopt_rs.quant.linear import linear
from modelopt_rs.quant.packed_weight import PackedWeight
from modelopt_rs.quant.packing import pack, unpack
from modelopt_rs.signatures import show_options

__all__ = [
    "Calibrator",
    "Format",
    "PackedWeight",
    "QuantizedArray",
    "awq_scales",
    "dequantize",
    "dequantize_linear",
    "fake_quantize",
    "formats",
    "gptq",
    "linear",
    "pack",
    "quantize",
    "quantize_linear",
    "requantize_linear",
    "unpack",
]


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
