"""`modelopt-rs optimize`."""

from typing import Any

import click

from modelopt_rs.cli.command import Choice, Command
from modelopt_rs.cli.onnx_options import show_onnx
from modelopt_rs.cli.options import common, dry_run, links, model, need, need_output, output, parse_size, selection
from modelopt_rs.cli.reports import ReportPaths
from modelopt_rs.cli.run_options import checking
from modelopt_rs.cli.show import line, progress, show_plan, show_totals, show_warnings
from modelopt_rs.operations.optimize import optimize_file
from modelopt_rs.planning.loss_table import PRIORS
from modelopt_rs.planning.onnx import CHOICES, OnnxOptions
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.report.reports import Report

__all__ = ["optimize"]


@click.command(cls=Command)
@model
@output(required=False)
@click.option("--target-size", type=parse_size, metavar="SIZE", help="The most bytes of OUT, such as 15MB.")
@click.option("--target-bpw", type=float, metavar="BITS", help="Instead: bits for each weight that can be coded.")
@click.option("--max-loss", type=float, metavar="X", help="Write nothing if the loss would be larger.")
@click.option(
    "--prior",
    multiple=True,
    metavar="GLOB=NUMBER",
    help="What squared errors of some weights count. Repeatable; the first that matches counts.  "
    f"[default: {', '.join(f'{role} {prior:g}' for role, prior in PRIORS.items())}]",
)
@click.option("--table", type=click.Path(), metavar="FILE", help="Keep what is measured, or read it from there.")
@selection("Quantize")
@click.option(
    "--only-dequantize", is_flag=True, help="Take also what no loader reads back quantized, only modelopt-rs does."
)
@click.option(
    "--target",
    type=Choice(CHOICES["target"]),
    default="onnxruntime",
    show_default=True,
    help="ONNX: also the operators of onnxruntime, or only those of the standard.",
)
@checking
@dry_run
@links
@common
def optimize(
    *,
    model: str,
    output: str | None,
    target_size: int | None,
    target_bpw: float | None,
    max_loss: float | None,
    prior: tuple[str, ...],
    table: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    only_dequantize: bool,
    target: str,
    run: RunOptions | None,
    dry_run: bool,
    no_verify: bool,
    overwrite: bool,
    allow_symlinks_under: str | None,
    max_memory: int,
    threads: int | None,
    reports: ReportPaths,
) -> None:
    """Quantize a model to a size, with the bits where they matter most.

    Every weight is measured in 8, 4 and 2 bits; each gets one of them, or stays as it
    is, so that the loss is least: the sum of the squares of relative errors, each
    times its prior, or (of an ONNX model) what it does to the outputs. Weights that
    runtimes fuse share their bits.

    \b
    modelopt-rs optimize model.onnx -o small.onnx --target-size 15MB
    modelopt-rs optimize model/ -o small/ --target-bpw 4.25 --table losses.json
    """  # noqa: D301
    need_output(output, dry_run)
    need(target_size is not None or target_bpw is not None, "'--target-size' or '--target-bpw'")
    with progress("optimize") as callback:
        report = optimize_file(
            model,
            output or "",
            target_size=target_size,
            target_bpw=target_bpw,
            max_loss=max_loss,
            priors=read_priors(prior),
            table=table,
            include=include,
            exclude=exclude,
            only_dequantize=only_dequantize,
            max_memory=max_memory,
            threads=threads,
            dry_run=dry_run,
            verify=not no_verify,
            overwrite=overwrite,
            onnx=None if target == "onnxruntime" else OnnxOptions(target=target),
            run=run,
            allow_symlinks_under=allow_symlinks_under,
            progress=callback,
        )
    reports.write(report)
    show_plan(report)
    show_totals(report)
    show_allocation(report)
    show_onnx(report)
    show_warnings(report.warnings)


def read_priors(texts: tuple[str, ...]) -> dict[str, float]:
    """Return the priors by glob; of the same glob the first counts."""
    found: dict[str, float] = {}
    for text in texts:
        glob, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            glob = ""
        if not glob:
            raise click.BadParameter(
                f"{text!r} is not a glob and a number, such as '*.value.weight=2'", param_hint="'--prior'"
            )
        found.setdefault(glob, value)
    return found


def show_allocation(report: Report) -> None:
    """Print what could be had, and how near the answer is to the best."""
    said: dict[str, Any] = report.options["allocation"]
    line(f"sizes  {said['floor']:,} to {said['ceiling']:,} bytes can be had; this one has {said['size']:,}")
    line(f"loss  {said['loss']:.4g}; at most {100 * said['gap']:.2g} % less is possible at this size")
