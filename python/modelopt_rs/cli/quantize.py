"""`modelopt-rs quantize`."""

import click

from modelopt_rs.cli.command import Command
from modelopt_rs.cli.onnx_options import onnx_quantization, show_onnx
from modelopt_rs.cli.options import (
    SEARCHES,
    common,
    dry_run,
    links,
    measuring,
    model,
    need_output,
    output,
    quantization,
    read_bits_of,
    selection,
)
from modelopt_rs.cli.reports import ReportPaths
from modelopt_rs.cli.run_options import checking
from modelopt_rs.cli.show import progress, show_plan, show_totals, show_warnings
from modelopt_rs.operations.quantize import quantize_file
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.run import RunOptions

__all__ = ["quantize"]


@click.command(cls=Command)
@model
@output(required=False)
@quantization
@measuring
@selection("Quantize")
@click.option(
    "--statistics",
    type=click.Path(),
    metavar="FILE",
    help="Instead of --calibrate: what `calibrate` wrote, or an importance matrix of llama.cpp. Without --method gptq "
    "or awq searched scales weigh what goes in.",
)
@onnx_quantization
@checking
@dry_run
@links
@common
def quantize(
    *,
    model: str,
    output: str | None,
    bits: str,
    scheme: str | None,
    group_size: int | None,
    nonfinite: str,
    only_dequantize: bool,
    search: str,
    norm: float | None,
    scale_dtype: str | None,
    format: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    bits_of: tuple[str, ...],
    max_layer_error: float | None,
    uniform: bool,
    allow_symlinks_under: str | None,
    max_memory: int,
    threads: int | None,
    dry_run: bool,
    reports: ReportPaths,
    no_verify: bool,
    overwrite: bool,
    statistics: str | None,
    onnx: OnnxOptions | None,
    run: RunOptions | None,
    method: str | None = None,
    calibrate: str | None = None,
) -> None:
    """Quantize a model's linear layers to 8, 4 or 2 bits.

    FILE|DIR is a safetensors file, a Hugging Face model directory, or a sharded
    checkpoint; OUT is the same in the layout that transformers and vLLM load
    (compressed-tensors, pack-quantized). Files of torch (.pt, .pth, .bin) become
    safetensors; nothing in them is executed. Embeddings and the last head are left
    alone unless --include names them, norms always.

    Of an ONNX model all weights are taken that get smaller and no slower, those
    of embeddings, convolutions and recurrent layers too; OUT is checked, and run
    in onnxruntime beside the model, before it is put in place.

    Below 8 bits every layer is measured first (of an ONNX model its output, on
    --calibrate DATA, --inputs or made-up inputs): those that the bits asked for
    would take too far off get more, and so do those that would not get smaller.
    The summary says which; --uniform leaves all at --bits.

    \b
    modelopt-rs quantize model.safetensors -o small.safetensors --bits 4
    modelopt-rs quantize model.onnx -o small.onnx --bits 4 --dim batch=1
    modelopt-rs quantize model.onnx -o small.onnx --bits 4 --bits-of 'head.*=8'
    modelopt-rs quantize a.onnx -o b.onnx --bits 4 --method gptq --calibrate x.npz
    modelopt-rs quantize model/ --dry-run --include '*embeddings.weight'
    """  # noqa: D301
    need_output(output, dry_run)
    with progress("quantize") as callback:
        report = quantize_file(
            model,
            output or "",
            bits=int(bits),
            scheme=scheme,
            group_size=group_size,
            nonfinite=nonfinite,
            format=format,
            only_dequantize=only_dequantize,
            search=SEARCHES[search],
            scale_dtype=scale_dtype,
            norm=norm,
            method=method,
            calibrate=calibrate,
            statistics=statistics,
            include=include,
            exclude=exclude,
            bits_of=read_bits_of(bits_of),
            max_layer_error=max_layer_error,
            uniform=uniform,
            max_memory=max_memory,
            threads=threads,
            dry_run=dry_run,
            verify=not no_verify,
            overwrite=overwrite,
            onnx=onnx,
            run=run,
            allow_symlinks_under=allow_symlinks_under,
            progress=callback,
        )
    reports.write(report)
    show_plan(report)
    show_totals(report)
    show_onnx(report)
    show_warnings(report.warnings)
