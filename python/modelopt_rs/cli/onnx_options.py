"""The options of `quantize` that only ONNX models have, and what is printed of an ONNX model that was written."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from modelopt_rs.cli.command import Choice, Whole
from modelopt_rs.cli.run_options import show_run
from modelopt_rs.cli.show import line, show_reasons
from modelopt_rs.planning.onnx import CHOICES, OnnxOptions
from modelopt_rs.planning.quantize import METHODS
from modelopt_rs.report.reports import CompareReport, Report

__all__ = ["onnx_quantization", "show_onnx"]


OPTIONS = (
    click.option("--opset", type=int, metavar="N", help="ONNX: the opset of OUT, at least."),
    click.option(
        "--accuracy-level",
        type=Whole(0, 4),
        default=4,
        show_default=True,
        metavar="N",
        help="ONNX: of MatMulNBits; 4 computes with int8 activations, 0 with float32.",
    ),
    click.option(
        "--smooth", type=float, metavar="ALPHA", help="ONNX: SmoothQuant, how much of ranges goes into weights."
    ),
    click.option("--equalize", is_flag=True, help="ONNX: make the ranges of channels alike first."),
    click.option(
        "--bias-correction/--no-bias-correction",
        default=None,
        help="ONNX: take the mean error of outputs out of biases. [default: of static layers that have one, of Conv]",
    ),
    click.option(
        "--method",
        type=Choice([*METHODS, *CHOICES["method"]]),
        help="gptq, awq: round weights by what goes into their layers with --calibrate. Others: how the ranges of "
        "activations of ONNX models are found.  [default for these: minmax]",
    ),
    click.option(
        "--calibrate",
        type=click.Path(),
        metavar="DATA.npz|DIR|TEXTS.txt",
        help="Calibration data, of --method gptq and awq (of Hugging Face directories texts, one in a line, or "
        "arrays). Without these of ONNX models: at 8 bits activations become static int8, below layers are measured "
        "with them.",
    ),
    click.option(
        "--activations",
        type=Choice(CHOICES["activations"]),
        help="ONNX: leave activations, or quantize them in each call or by ranges of calibration data.  "
        "[default: none; static with --calibrate at 8 bits]",
    ),
    click.option(
        "--target",
        type=Choice(CHOICES["target"]),
        default="onnxruntime",
        show_default=True,
        help="ONNX: also the operators of onnxruntime, or only those of the standard.",
    ),
)


def onnx_quantization(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ONNX models; it gets them as `onnx`, None if none was given."""

    @wraps(command)
    def with_onnx(
        *,
        target: str,
        activations: str | None,
        calibrate: str | None,
        method: str | None,
        bias_correction: bool | None,
        equalize: bool,
        smooth: float | None,
        accuracy_level: int,
        opset: int | None,
        **others: Any,
    ) -> None:
        by_inputs = method in METHODS
        if by_inputs and calibrate is None and others["statistics"] is None:
            raise click.UsageError(f"--method {method} needs --calibrate or --statistics")
        options = OnnxOptions(
            target=target,
            activations=activations,
            calibrate=None if by_inputs else calibrate,
            method="minmax" if by_inputs or method is None else method,
            bias_correction=bias_correction,
            equalize=equalize,
            smooth=smooth,
            accuracy_level=accuracy_level,
            opset=opset,
        )
        if by_inputs:
            others |= {"method": method, "calibrate": calibrate}
        command(onnx=None if options == OnnxOptions() else options, **others)

    added: Callable[..., None] = with_onnx
    for option in OPTIONS:
        added = option(added)
    return added


def show_onnx(report: Report | CompareReport) -> None:
    """Print which forms the weights of an ONNX model got, what became of its file, and what running both gave."""
    if report.file_bytes is not None:
        if isinstance(report, Report):
            show_reasons("form", (t.reason for t in report.tensors if t.decision == "quantize"))
        before, after = report.file_bytes
        line(f"file  {before:,} -> {after:,} bytes (ratio {before / after:.2f})")
    if report.run is not None:
        show_run(report.run)
