"""`modelopt-rs compare`."""

from typing import Any

import click

from modelopt_rs.cli.options import common
from modelopt_rs.cli.run_options import run_options, running, show_run
from modelopt_rs.cli.show import decibels, line, number, progress, table, write_report
from modelopt_rs.pipeline import CompareReport, OptionError, compare_files
from modelopt_rs.pipeline.onnx_compare import compare_onnx, is_onnx
from modelopt_rs.pipeline.run_report import check_max_error

__all__ = ["compare"]


@click.command()
@click.argument("a", type=click.Path(), metavar="A")
@click.argument("b", type=click.Path(), metavar="B")
@running
@common
def compare(a: str, b: str, max_memory: int, threads: int | None, report_path: str | None, **run: Any) -> None:
    """Show how far the tensors of model B are from those of model A.

    Each is a safetensors file, a Hugging Face model directory, or a sharded
    checkpoint, quantized or not. SQNR is the power of A's values over that of
    the differences; 'exact' means that there are none.

    Two ONNX models are also run on the same inputs, those of --inputs or
    generated ones, to compare their outputs and their latency.

    \b
    modelopt-rs compare model.safetensors small.safetensors
    modelopt-rs compare model.onnx small.onnx --inputs data.npz --max-error 0.1
    """  # noqa: D301
    options = run_options(**run)
    if is_onnx(a) and is_onnx(b):
        with progress("compare") as callback:
            both = compare_onnx(a, b, options, max_memory=max_memory, threads=threads, progress=callback)
        write_report(report_path, both.to_json())
        _show(both.tensors)
        line(f"bytes  {both.bytes_a:,} -> {both.bytes_b:,}")
        show_run(both.run)
        check_max_error(both.run, options.max_error)
        return
    if options.inputs is not None or options.dims or options.max_error is not None:
        raise OptionError("--inputs, --dim and --max-error are for two ONNX models")
    with progress("compare") as callback:
        report = compare_files(a, b, max_memory=max_memory, threads=threads, progress=callback)
    write_report(report_path, report.to_json())
    _show(report)


def _show(report: CompareReport) -> None:
    table(
        ("tensor", "SQNR dB", "max error", "cosine"),
        [(t.name, decibels(t.sqnr_db), number(t.max_error), f"{t.cosine:.6f}") for t in report.tensors],
    )
    for name, shape_a, shape_b in report.shape_mismatches:
        line(f"shapes differ: {name}: {list(shape_a)} in A, {list(shape_b)} in B")
    for names, where in ((report.only_in_a, "only in A"), (report.only_in_b, "only in B")):
        for name in names:
            line(f"{where}: {name}")
    for name in report.not_compared:
        line(f"not compared, a dtype that is not read: {name}")
    line()
    line(
        f"all {len(report.tensors):,} compared tensors: SQNR {decibels(report.sqnr_db, ' dB')}, "
        f"largest error {number(report.max_error)}, cosine {report.cosine:.6f}"
    )
