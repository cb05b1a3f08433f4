"""Operations on whole model files, in bounded memory: plan -> run -> verify -> report."""

from modelopt_rs.pipeline.compare import compare_files
from modelopt_rs.pipeline.crop import crop_file
from modelopt_rs.pipeline.crop_plan import CropOptions
from modelopt_rs.pipeline.dequantize import dequantize_file
from modelopt_rs.pipeline.inspect import inspect_file
from modelopt_rs.pipeline.onnx_options import OnnxOptions
from modelopt_rs.pipeline.onnx_run_options import RunOptions
from modelopt_rs.pipeline.plan import Decision, OptionError, QuantizeOptions, plan_quantize
from modelopt_rs.pipeline.prune import prune_file
from modelopt_rs.pipeline.prune_plan import PruneOptions, plan_prune
from modelopt_rs.pipeline.quantize import quantize_file
from modelopt_rs.pipeline.report import (
    CompareReport,
    CropFileReport,
    CroppedGroup,
    InspectReport,
    Report,
    TensorDifference,
    TensorReport,
    TensorStatistics,
    Totals,
)
from modelopt_rs.pipeline.run_report import MaxErrorExceeded, RunReport

__all__ = [
    "CompareReport",
    "CropFileReport",
    "CropOptions",
    "CroppedGroup",
    "Decision",
    "InspectReport",
    "MaxErrorExceeded",
    "OnnxOptions",
    "OptionError",
    "PruneOptions",
    "QuantizeOptions",
    "Report",
    "RunOptions",
    "RunReport",
    "TensorDifference",
    "TensorReport",
    "TensorStatistics",
    "Totals",
    "compare_files",
    "crop_file",
    "dequantize_file",
    "inspect_file",
    "plan_prune",
    "plan_quantize",
    "prune_file",
    "quantize_file",
]
