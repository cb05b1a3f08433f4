"""Make trained models smaller and training steps faster on a CPU.

Model files: `quantize_file`, `optimize_file`, `prune_file` and `crop_file` make one smaller, `compare_files` says what
that cost, `dequantize_file` goes back. Arrays: `quantize` and `dequantize`; more in `modelopt_rs.quant` (codes),
`modelopt_rs.prune` (zeros, fewer units), `modelopt_rs.reduce` (sums, norms, quantiles), `modelopt_rs.optim` (training)
and `modelopt_rs.preprocess` (images and embeddings into what a model reads). `modelopt_rs.files` reads and writes
safetensors. The command `modelopt-rs` does what the functions of files do. Unrelated to NVIDIA's Model Optimizer.
"""

# ruff: isort: skip_file
from modelopt_rs.start import end_on_interrupt, is_command

if is_command():  # whose first milliseconds are the imports below
    end_on_interrupt()

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np  # now, not at the first use: where it can't be imported (a subinterpreter) is where to say so

from modelopt_rs._core import FormatError, InternalError, LimitError, UnsupportedError, __version__
from modelopt_rs.signatures import show_options

if TYPE_CHECKING:
    from modelopt_rs import files, optim, preprocess, prune, quant, reduce
    from modelopt_rs.arrays import as_array, to_dlpack
    from modelopt_rs.errors import InPlaceError, OptionError
    from modelopt_rs.operations.calibrate import calibrate_file, merge_statistics
    from modelopt_rs.operations.compare import compare_files
    from modelopt_rs.operations.crop import crop_file
    from modelopt_rs.operations.dequantize import dequantize_file
    from modelopt_rs.operations.inspect import inspect_file
    from modelopt_rs.operations.optimize import optimize_file
    from modelopt_rs.operations.page import write_report
    from modelopt_rs.operations.prune import prune_file
    from modelopt_rs.operations.quantize import quantize_file
    from modelopt_rs.planning.onnx import OnnxOptions
    from modelopt_rs.planning.quantize import QuantizeOptions
    from modelopt_rs.planning.run import RunOptions
    from modelopt_rs.quant import QuantizedArray, dequantize, fake_quantize, quantize
    from modelopt_rs.report.run import MaxErrorExceeded
    from modelopt_rs.threads import get_num_threads, num_threads, set_num_threads

# What is loaded when it is first used: an import of all takes a tenth of a second, and few need all.
_WHERE: Final = {
    "InPlaceError": "errors",
    "MaxErrorExceeded": "report.run",
    "OnnxOptions": "planning.onnx",
    "OptionError": "errors",
    "as_array": "arrays",
    "QuantizeOptions": "planning.quantize",
    "QuantizedArray": "quant",
    "RunOptions": "planning.run",
    "calibrate_file": "operations.calibrate",
    "compare_files": "operations.compare",
    "crop_file": "operations.crop",
    "dequantize": "quant",
    "dequantize_file": "operations.dequantize",
    "fake_quantize": "quant",
    "get_num_threads": "threads",
    "inspect_file": "operations.inspect",
    "merge_statistics": "operations.calibrate",
    "num_threads": "threads",
    "optimize_file": "operations.optimize",
    "prune_file": "operations.prune",
    "quantize": "quant",
    "quantize_file": "operations.quantize",
    "set_num_threads": "threads",
    "to_dlpack": "arrays",
    "write_report": "operations.page",
}
_MODULES: Final = ("files", "optim", "preprocess", "prune", "quant", "reduce")

del end_on_interrupt, is_command, np

__all__ = [
    "FormatError",
    "InPlaceError",
    "InternalError",
    "LimitError",
    "MaxErrorExceeded",
    "OnnxOptions",
    "OptionError",
    "QuantizeOptions",
    "QuantizedArray",
    "RunOptions",
    "UnsupportedError",
    "__version__",
    "as_array",
    "calibrate_file",
    "compare_files",
    "crop_file",
    "dequantize",
    "dequantize_file",
    "fake_quantize",
    "files",
    "get_num_threads",
    "inspect_file",
    "merge_statistics",
    "num_threads",
    "optim",
    "optimize_file",
    "preprocess",
    "prune",
    "prune_file",
    "quant",
    "quantize",
    "quantize_file",
    "reduce",
    "set_num_threads",
    "to_dlpack",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = import_module(f"modelopt_rs.{name}")
    elif name in _WHERE:
        value = getattr(import_module(f"modelopt_rs.{_WHERE[name]}"), name)
        show_options({"__all__": (name,), name: value})
    else:
        raise AttributeError(f"module 'modelopt_rs' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
