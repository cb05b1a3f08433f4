"""`modelopt-rs inspect`."""

import click

from modelopt_rs.cli.command import Command
from modelopt_rs.cli.options import common, links, model
from modelopt_rs.cli.reports import ReportPaths
from modelopt_rs.cli.show import line, number, progress, show_warnings
from modelopt_rs.operations.inspect import inspect_file
from modelopt_rs.report.reports import TensorStatistics

__all__ = ["inspect"]

# The name has a line of its own: names alone may be wider than 80 columns.
FORM = "  {:6}{:14}{:>14}{:>10}{:>10}{:>10}{:>7}{:>7}"
HEADER = FORM.format("dtype", "shape", "bytes", "min", "max", "absmax", "zeros", "nonfin")


@click.command(cls=Command)
@model
@links
@common
def inspect(
    *, model: str, allow_symlinks_under: str | None, max_memory: int, threads: int | None, reports: ReportPaths
) -> None:
    """Show a model's tensors: shape, dtype, bytes, smallest and largest value, zeros, non-finite values.

    FILE|DIR is a safetensors file, a Hugging Face model directory, a sharded checkpoint, a file of torch (.pt,
    .pth, .bin) or Keras (.keras, .weights.h5, .h5), or an ONNX model (its tensors of 1 KiB and more). min, max and
    absmax pass over NaN.

    \b
    modelopt-rs inspect model.safetensors --json tensors.json
    """  # noqa: D301
    with progress("inspect") as callback:
        report = inspect_file(
            model,
            max_memory=max_memory,
            threads=threads,
            allow_symlinks_under=allow_symlinks_under,
            progress=callback,
        )
    reports.write(report)
    line("tensor")
    line(HEADER)
    for tensor in report.tensors:
        line(tensor.name)
        line(_figures(tensor))
    line()
    show_warnings(report.warnings)
    line(
        f"{len(report.tensors):,} tensors, {report.elements:,} elements, {report.bytes:,} bytes, "
        f"{report.nonfinite:,} non-finite"
    )


def _figures(t: TensorStatistics) -> str:
    shape = "x".join(str(n) for n in t.shape) or "scalar"
    zeros = "-" if t.sparsity is None else f"{100 * t.sparsity:.1f}%"
    nonfinite = "-" if t.nonfinite is None else f"{t.nonfinite:,}"
    values = (number(value, 3) for value in (t.min, t.max, t.absmax))
    return FORM.format(t.dtype, shape, f"{t.bytes:,}", *values, zeros, nonfinite)
