"""`modelopt-rs compare`."""

import click

from modelopt_rs.cli.options import common
from modelopt_rs.cli.show import decibels, line, number, progress, table, write_report
from modelopt_rs.pipeline import compare_files

__all__ = ["compare"]


@click.command()
@click.argument("a", type=click.Path(), metavar="A")
@click.argument("b", type=click.Path(), metavar="B")
@common
def compare(a: str, b: str, max_memory: int, threads: int | None, report_path: str | None) -> None:
    """Show how far the tensors of model B are from those of model A.

    Each is a safetensors file, a Hugging Face model directory, or a sharded
    checkpoint, quantized or not. SQNR is the power of A's values over that of
    the differences; 'exact' means that there are none.

    \b
    modelopt-rs compare model.safetensors small.safetensors
    """  # noqa: D301
    with progress("compare") as callback:
        report = compare_files(a, b, max_memory=max_memory, threads=threads, progress=callback)
    write_report(report_path, report.to_json())
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
