"""`modelopt-rs quantize`."""

from collections import Counter

import click

from modelopt_rs.cli.options import common, model, output
from modelopt_rs.cli.show import decibels, line, number, progress, table, write_report
from modelopt_rs.pipeline import Report, quantize_file

__all__ = ["quantize", "show_totals"]


@click.command()
@model
@output(required=False)
@click.option("--bits", type=click.Choice(["8", "4", "2"]), default="8", show_default=True, help="Bits of a code.")
@click.option(
    "--scheme",
    default="symmetric",
    show_default=True,
    metavar="NAME",
    help="symmetric, or asymmetric: with a zero point (transformers then needs dequantize=True).",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=0),
    metavar="N",
    help="Elements of a row that share a scale; 0: the whole row.  [default: 0 at 8 bits, else 32]",
)
@click.option(
    "--nonfinite",
    type=click.Choice(["raise", "saturate"]),
    default="raise",
    show_default=True,
    help="NaN and infinities: refuse, or NaN to 0 and infinities to the largest code.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Quantize these tensors too. Repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these tensors alone; wins. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Show what would be done to each tensor and why; write nothing.")
@common
def quantize(
    *,
    model: str,
    output: str | None,
    bits: str,
    scheme: str,
    group_size: int | None,
    nonfinite: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_memory: int,
    threads: int | None,
    dry_run: bool,
    report_path: str | None,
    no_verify: bool,
    overwrite: bool,
) -> None:
    """Quantize a model's linear layers to 8, 4 or 2 bits.

    FILE|DIR is a safetensors file, a Hugging Face model directory, or a sharded
    checkpoint; OUT is the same in the layout that transformers and vLLM load
    (compressed-tensors, pack-quantized). Embeddings and the last head are left
    alone unless --include names them, norms always.

    \b
    modelopt-rs quantize model.safetensors -o small.safetensors --bits 4
    modelopt-rs quantize model/ --dry-run --include '*embeddings.weight'
    """  # noqa: D301
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output' (or --dry-run)")
    with progress("quantize") as callback:
        report = quantize_file(
            model,
            output or "",
            bits=int(bits),
            scheme=scheme,
            group_size=group_size,
            nonfinite=nonfinite,
            include=include,
            exclude=exclude,
            max_memory=max_memory,
            threads=threads,
            dry_run=dry_run,
            verify=not no_verify,
            overwrite=overwrite,
            progress=callback,
        )
    write_report(report_path, report.to_json())
    if dry_run:
        table(
            ("tensor", "decision and reason", "bytes", "after"),
            [
                (t.name, f"{t.decision}: {t.reason}", f"{t.bytes_before:,}", f"{t.bytes_after:,}")
                for t in report.tensors
            ],
            left=(0, 1),
        )
        line()
    show_totals(report)


def show_totals(report: Report) -> None:
    """Print what a report adds up to."""
    totals = report.totals
    line(f"{report.source} -> {report.output}" if report.output else report.source)
    line(f"{report.command}d  {totals.changed:,} tensors" + (" (dry run: nothing written)" if report.dry_run else ""))
    reasons = Counter(t.reason for t in report.tensors if t.decision == "copy")
    for reason, count in reasons.most_common():
        line(f"left  {count:,} tensors: {reason}")
    line(f"bytes  {totals.bytes_before:,} -> {totals.bytes_after:,} (ratio {totals.ratio:.2f})")
    if totals.sqnr_db is not None:
        line(f"SQNR  {decibels(totals.sqnr_db, ' dB')}, largest error {number(totals.max_error)}")
        line(f"worst  {totals.worst_tensor}: {decibels(totals.worst_sqnr_db, ' dB')}")
    if not report.dry_run:
        line(
            f"time  {totals.seconds:.2f} s, {totals.gb_per_s:.2f} GB/s of input, "
            f"peak memory {totals.peak_memory / 2**20:.0f} MiB"
        )
