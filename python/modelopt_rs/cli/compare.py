"""`modelopt-rs compare`."""

from collections.abc import Sequence

import click

from modelopt_rs.cli.command import Command
from modelopt_rs.cli.onnx_options import show_onnx
from modelopt_rs.cli.options import common, links
from modelopt_rs.cli.reports import ReportPaths
from modelopt_rs.cli.run_options import checking
from modelopt_rs.cli.show import count, decibels, line, number, progress, show_warnings, table
from modelopt_rs.operations.compare import compare_files
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.report.reports import CompareReport

__all__ = ["compare"]

MAX_NAMES = 20


@click.command(cls=Command)
@click.argument("a", type=click.Path(), metavar="A")
@click.argument("b", type=click.Path(), metavar="B")
@checking(calibrates=False)
@links
@common
def compare(
    *,
    a: str,
    b: str,
    allow_symlinks_under: str | None,
    max_memory: int,
    threads: int | None,
    reports: ReportPaths,
    run: RunOptions | None,
) -> None:
    """Show how far the tensors of model B are from those of model A.

    Each is a safetensors file, a Hugging Face model directory, a sharded
    checkpoint, a file of torch or Keras, or an ONNX model, quantized or not.
    SQNR is the power of A's values over that of the differences; 'exact' means
    that there are none.

    Two ONNX models are also run on the same inputs, those of --inputs or
    generated ones, to compare their outputs and their latency.

    \b
    modelopt-rs compare model.safetensors small.safetensors
    modelopt-rs compare model.onnx small.onnx --inputs data.npz --max-error 0.1
    """  # noqa: D301
    with progress("compare") as callback:
        report = compare_files(
            a,
            b,
            max_memory=max_memory,
            threads=threads,
            run=run,
            allow_symlinks_under=allow_symlinks_under,
            progress=callback,
        )
    reports.write(report)
    _show(report)
    show_onnx(report)


def _show(report: CompareReport) -> None:
    table(
        ("tensor", "SQNR dB", "max error", "cosine"),
        [(t.name, decibels(t.sqnr_db), number(t.max_error), f"{t.cosine:.6f}") for t in report.tensors],
    )
    shapes = [f"{name}: {list(one)} in A, {list(other)} in B" for name, one, other in report.shape_mismatches]
    _show_names("shapes differ", shapes)
    _show_names("only in A", report.only_in_a)
    _show_names("only in B", report.only_in_b)
    _show_names("not compared", report.not_compared)
    line()
    show_warnings(report.warnings)
    line(_summary(report))


def _summary(report: CompareReport) -> str:
    """Say how many tensors of A were compared, how many of them differ, and by how much."""
    compared, equal = len(report.tensors), len(report.tensors) - report.changed
    whole = compared + len(report.only_in_a) + len(report.shape_mismatches) + len(report.not_compared)
    said = f"{compared:,} of {count(whole, 'tensor')} of A {'was' if compared == 1 else 'were'} compared"
    if not compared:
        return f"{said}: nothing is known of how far they are apart"
    if not report.changed:
        return f"{said}, all equal"
    which = f"the {report.changed:,} that differ" if report.changed > 1 else "the one that differs"
    return (
        f"{said}, {equal:,} equal; {which}: SQNR {decibels(report.sqnr_db, ' dB')}, "
        f"largest error {number(report.max_error)}, cosine {report.cosine:.6f}"
    )


def _show_names(what: str, names: Sequence[str]) -> None:
    for name in names[:MAX_NAMES]:
        line(f"{what}: {name}")
    if len(names) > MAX_NAMES:
        line(f"{what}: {len(names) - MAX_NAMES:,} more, which --json lists")
