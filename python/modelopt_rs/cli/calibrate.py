"""`modelopt-rs calibrate`."""

import click

from modelopt_rs.cli.command import Choice, Command, Whole
from modelopt_rs.cli.options import links, parse_size, selection
from modelopt_rs.cli.reports import check_apart, json_option, put_json
from modelopt_rs.cli.show import line
from modelopt_rs.operations.calibrate import calibrate_file, merge_statistics
from modelopt_rs.planning.statistics import KINDS
from modelopt_rs.report.statistics import CalibrateReport
from modelopt_rs.threads import MAX_THREADS

__all__ = ["calibrate"]


@click.command(cls=Command)
@click.argument("paths", type=click.Path(), metavar="MODEL|STATISTICS...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(), metavar="OUT.safetensors", required=True, help="Where to write the sums."
)
@click.option(
    "--calibrate",
    "data",
    type=click.Path(),
    metavar="DATA.npz|DIR|TEXTS.txt",
    help="The samples: of ONNX models arrays, of Hugging Face directories texts, one in a line, or arrays.",
)
@click.option(
    "--kind",
    type=Choice(KINDS),
    default="hessian",
    show_default=True,
    help="Sums of products (for --method gptq), or of squares (for awq and searched scales): far smaller.",
)
@click.option("--merge", is_flag=True, help="Add up files of statistics instead of running a model.")
@selection("Only these weights'; look at")
@click.option("--overwrite", is_flag=True, help="Replace what is at OUT.")
@links
@click.option(
    "--max-memory", type=parse_size, default="256MiB", show_default=True, metavar="SIZE", help="For sums, at a time."
)
@click.option("--threads", type=Whole(1, MAX_THREADS), metavar="N", help="Threads to compute with.")
@json_option
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def calibrate(
    *,
    paths: tuple[str, ...],
    output: str,
    data: str | None,
    kind: str,
    merge: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    overwrite: bool,
    allow_symlinks_under: str | None,
    max_memory: int,
    threads: int | None,
    json_path: str | None,
) -> None:
    """Write what goes into a model's layers while samples run through it.

    MODEL is an ONNX model, which onnxruntime runs, or a Hugging Face directory,
    which transformers runs. OUT has sums, never values; quantize --statistics
    takes it, where nothing is run. Files of several machines add up with --merge.

    \b
    modelopt-rs calibrate model/ --calibrate texts.txt -o stats.safetensors
    modelopt-rs calibrate --merge a.safetensors b.safetensors -o sum.safetensors
    modelopt-rs quantize model/ -o small/ --bits 4 --statistics stats.safetensors
    """  # noqa: D301
    check_apart()
    if merge:
        if data is not None or include or exclude:
            raise click.UsageError("--merge takes files of statistics alone, without --calibrate, --include, --exclude")
        report = merge_statistics(paths, output, overwrite=overwrite)
    else:
        if len(paths) != 1:
            raise click.UsageError(f"one MODEL, got {len(paths)}; or pass --merge")
        if data is None:
            raise click.UsageError("Missing option '--calibrate' (or --merge)")
        report = calibrate_file(
            paths[0],
            output,
            calibrate=data,
            kind=kind,
            include=include,
            exclude=exclude,
            max_memory=max_memory,
            threads=threads,
            overwrite=overwrite,
            allow_symlinks_under=allow_symlinks_under,
        )
    if json_path is not None:
        put_json(report, json_path)
    _show(report)


def _show(report: CalibrateReport) -> None:
    rows = [each.rows for each in report.weights]
    weights = "1 weight" if len(rows) == 1 else f"{len(rows):,} weights"
    seen = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
    line(f"{weights}, {seen} rows of inputs each: {report.output}")
    if report.left:
        name, reason = report.left[0]
        left = "1 weight is left" if len(report.left) == 1 else f"{len(report.left):,} weights are left"
        line(f"{left}, as {name}: {reason}")
