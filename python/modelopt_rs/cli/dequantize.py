"""`modelopt-rs dequantize`."""

import click

from modelopt_rs.cli.command import Choice, Command
from modelopt_rs.cli.options import common, model, output
from modelopt_rs.cli.reports import ReportPaths
from modelopt_rs.cli.show import progress, show_totals, show_warnings
from modelopt_rs.dtypes import STORED
from modelopt_rs.operations.dequantize import dequantize_file

__all__ = ["dequantize"]


@click.command(cls=Command)
@model
@output(required=True)
@click.option(
    "--dtype",
    type=Choice(list(STORED)),
    default="float32",
    show_default=True,
    help="What the quantized weights become.",
)
@common
def dequantize(
    *,
    model: str,
    output: str,
    dtype: str,
    max_memory: int,
    threads: int | None,
    reports: ReportPaths,
    no_verify: bool,
    overwrite: bool,
) -> None:
    """Turn a quantized model back into plain floats that any safetensors reader loads.

    \b
    modelopt-rs dequantize small.safetensors -o plain.safetensors --dtype float16
    """  # noqa: D301
    with progress("dequantize") as callback:
        report = dequantize_file(
            model,
            output,
            dtype=dtype,
            max_memory=max_memory,
            threads=threads,
            verify=not no_verify,
            overwrite=overwrite,
            progress=callback,
        )
    reports.write(report)
    show_totals(report)
    show_warnings(report.warnings)
