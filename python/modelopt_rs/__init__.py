"""Make trained models smaller and training steps faster on a CPU.

Unrelated to NVIDIA's Model Optimizer. See `modelopt_rs.reduce`, `modelopt_rs.quant`, `modelopt_rs.optim`,
`modelopt_rs.prune`, `modelopt_rs.files` and the command line `modelopt-rs`.
"""

from modelopt_rs import files, optim, prune, quant, reduce
from modelopt_rs._core import FormatError, InternalError, LimitError, UnsupportedError, __version__
from modelopt_rs.pipeline import (
    MaxErrorExceeded,
    OnnxOptions,
    QuantizeOptions,
    RunOptions,
    compare_files,
    crop_file,
    dequantize_file,
    inspect_file,
    prune_file,
    quantize_file,
)
from modelopt_rs.quant import QuantizedArray, dequantize, fake_quantize, quantize
from modelopt_rs.threads import get_num_threads, num_threads, set_num_threads

__all__ = [
    "FormatError",
    "InternalError",
    "LimitError",
    "MaxErrorExceeded",
    "OnnxOptions",
    "QuantizeOptions",
    "QuantizedArray",
    "RunOptions",
    "UnsupportedError",
    "__version__",
    "compare_files",
    "crop_file",
    "dequantize",
    "dequantize_file",
    "fake_quantize",
    "files",
    "get_num_threads",
    "inspect_file",
    "num_threads",
    "optim",
    "prune",
    "prune_file",
    "quant",
    "quantize",
    "quantize_file",
    "reduce",
    "set_num_threads",
]
