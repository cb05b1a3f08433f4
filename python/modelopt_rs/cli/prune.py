"""`modelopt-rs prune`."""

import re

import click

from modelopt_rs.cli.command import Choice
from modelopt_rs.cli.onnx_options import show_onnx
from modelopt_rs.cli.options import common, dry_run, links, model, need, need_output, output, parse_share, selection
from modelopt_rs.cli.reports import ReportPaths
from modelopt_rs.cli.run_options import checking
from modelopt_rs.cli.show import progress, show_plan, show_totals, show_warnings
from modelopt_rs.cli.then import Chain, then_option
from modelopt_rs.operations.prune import prune_file
from modelopt_rs.planning.prune import FORMATS, METHODS, NONFINITE, SCOPES
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.planning.run import RunOptions

__all__ = ["parse_n_of_m", "prune"]


def parse_n_of_m(text: str) -> tuple[int, int]:
    """Return the numbers that a text such as 2:4 says.

    Examples
    --------
    >>> from modelopt_rs.cli.prune import parse_n_of_m
    >>> parse_n_of_m("2:4")
    (2, 4)
    """
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{text!r} is not N:M such as 2:4")
    return int(match[1]), int(match[2])


@click.command(cls=Chain, former={"--keep": "--n-of-m", "--nan": "--nonfinite"})
@model
@output(required=False)
@click.option(
    "--sparsity", type=parse_share, metavar="SHARE", help="Share of weights that become zero, from 0 to 1, or in %."
)
@click.option(
    "--n-of-m",
    type=parse_n_of_m,
    metavar="N:M",
    help="Instead: N of each M consecutive inputs stay (axis 1: of a convolution, its input channels).",
)
@click.option(
    "--method",
    type=Choice(METHODS),
    default="magnitude",
    show_default=True,
    help="What goes: the smallest weights, or (with --calibrate) by what goes into layers as well; sparsegpt "
    "also corrects the weights that stay.",
)
@click.option(
    "--calibrate",
    type=click.Path(),
    metavar="DATA.npz|DIR|TEXTS.txt",
    help="Calibration data for wanda and sparsegpt: of ONNX models arrays, of Hugging Face directories (run by "
    "transformers) texts, one in a line, or arrays.",
)
@click.option(
    "--scope",
    type=Choice(SCOPES),
    default="tensor",
    show_default=True,
    help="What loses SHARE: each tensor, each of its rows, or all tensors as one.",
)
@click.option(
    "--format",
    type=Choice(FORMATS),
    default="dense",
    show_default=True,
    help="Store zeros, or a bit for each weight and those that are left.",
)
@click.option(
    "--nonfinite",
    type=Choice(NONFINITE),
    default="raise",
    show_default=True,
    help="NaN: refuse, or keep as larger than all numbers.",
)
@selection("Prune")
@then_option
@checking(calibrates=True)
@dry_run
@links
@common
def prune(
    *,
    model: str,
    output: str | None,
    sparsity: float | None,
    n_of_m: tuple[int, int] | None,
    method: str,
    calibrate: str | None,
    scope: str,
    format: str,
    nonfinite: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    then: QuantizeOptions | None,
    allow_symlinks_under: str | None,
    max_memory: int,
    threads: int | None,
    dry_run: bool,
    reports: ReportPaths,
    no_verify: bool,
    overwrite: bool,
    run: RunOptions | None,
) -> None:
    """Set the weights of a model that matter least to zero.

    FILE|DIR is a safetensors file, a Hugging Face model directory, a sharded
    checkpoint, or an ONNX model; OUT is the same. Files of torch (.pt, .pth,
    .bin) and Keras become safetensors. Exactly SHARE of the weights
    goes, among equal ones the first. Weights of two and more axes are pruned;
    embeddings, the last head and routers are left alone unless --include names
    them.

    \b
    modelopt-rs prune model.safetensors -o sparse.safetensors --sparsity 0.5
    modelopt-rs prune model/ -o small/ --sparsity 0.7 --format bitmask
    modelopt-rs prune model/ -o small/ --n-of-m 2:4 --then quantize --bits 4
    modelopt-rs prune a.onnx -o b.onnx --n-of-m 2:4 --method wanda --calibrate dir
    """  # noqa: D301
    need_output(output, dry_run)
    need(sparsity is not None or n_of_m is not None, "'--sparsity' or '--n-of-m'")
    with progress("prune") as callback:
        report = prune_file(
            model,
            output or "",
            sparsity=sparsity,
            n=n_of_m[0] if n_of_m else None,
            m=n_of_m[1] if n_of_m else None,
            method=method,
            calibrate=calibrate,
            scope=scope,
            format=format,
            then=then,
            nonfinite=nonfinite,
            include=include,
            exclude=exclude,
            max_memory=max_memory,
            threads=threads,
            dry_run=dry_run,
            verify=not no_verify,
            overwrite=overwrite,
            run=run,
            allow_symlinks_under=allow_symlinks_under,
            progress=callback,
        )
    reports.write(report)
    show_plan(report)
    show_totals(report)
    show_warnings(report.warnings)
    show_onnx(report)
