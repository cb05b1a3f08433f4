"""`modelopt-rs quantize`."""

from collections import Counter

import click

from modelopt_rs.cli.options import common, dry_run, model, output, quantization, selection
from modelopt_rs.cli.show import decibels, line, number, progress, table, write_report
from modelopt_rs.pipeline import Report, quantize_file

__all__ = ["quantize", "show_plan", "show_totals"]


@click.command()
@model
@output(required=False)
@quantization
@selection("Quantize")
@dry_run
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
    show_plan(report)
    show_totals(report)


def show_plan(report: Report) -> None:
    """Print what a dry run has decided for each tensor."""
    if report.dry_run:
        table(
            ("tensor", "decision and reason", "bytes", "after"),
            [
                (t.name, f"{t.decision}: {t.reason}", f"{t.bytes_before:,}", f"{t.bytes_after:,}")
                for t in report.tensors
            ],
            left=(0, 1),
        )
        line()


def show_totals(report: Report) -> None:
    """Print what a report adds up to."""
    totals = report.totals
    line(f"{report.source} -> {report.output}" if report.output else report.source)
    changed = Counter(t.decision for t in report.tensors if t.decision != "copy")
    for decision, count in changed.items() or [(report.command, 0)]:
        verb = decision.replace("+", "d and ") + "d"
        line(f"{verb}  {count:,} tensors" + (" (dry run: nothing written)" if report.dry_run else ""))
    reasons = Counter(t.reason for t in report.tensors if t.decision == "copy")
    for reason, count in reasons.most_common():
        line(f"left  {count:,} tensors: {reason}")
    line(f"bytes  {totals.bytes_before:,} -> {totals.bytes_after:,} (ratio {totals.ratio:.2f})")
    if totals.sparsity_before is not None and totals.sparsity_after is not None:
        line(
            f"zeros  {totals.zeros_before:,} -> {totals.zeros_after:,} of the pruned tensors "
            f"({100 * totals.sparsity_before:.1f} % -> {100 * totals.sparsity_after:.1f} %)"
        )
    if totals.sqnr_db is not None:
        line(f"SQNR  {decibels(totals.sqnr_db, ' dB')}, largest error {number(totals.max_error)}")
        line(f"worst  {totals.worst_tensor}: {decibels(totals.worst_sqnr_db, ' dB')}")
    if not report.dry_run:
        line(
            f"time  {totals.seconds:.2f} s, {totals.gb_per_s:.2f} GB/s of input, "
            f"peak memory {totals.peak_memory / 2**20:.0f} MiB"
        )
