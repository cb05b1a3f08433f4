"""Quantizing an ONNX model: its graph rewritten, its weights in tiles, both models run."""

import os
import time
from typing import TYPE_CHECKING

from modelopt_rs.files import TensorInfo
from modelopt_rs.pipeline.onnx_check import OnnxCheck
from modelopt_rs.pipeline.onnx_options import OnnxOptions
from modelopt_rs.pipeline.onnx_run_options import RunOptions
from modelopt_rs.pipeline.plan import Decision, QuantizeOptions
from modelopt_rs.pipeline.report import Report, TensorReport, total
from modelopt_rs.pipeline.sinks import check_place, open_sink
from modelopt_rs.pipeline.tiles import Road
from modelopt_rs.pipeline.transform import Copy, Transform, rewrite

if TYPE_CHECKING:
    from modelopt_rs.files.onnx import OnnxSource

__all__ = ["quantize_onnx"]


def quantize_onnx(
    source: "OnnxSource",
    out_path: str | os.PathLike[str],
    options: QuantizeOptions,
    onnx: OnnxOptions,
    run: RunOptions | None,
    road: Road,
    *,
    dry_run: bool,
    verify: bool,
    overwrite: bool,
    durable: bool,
) -> Report:
    """Quantize an ONNX model as `quantize_file` does.

    Parameters
    ----------
    source : OnnxSource
    out_path : path
    options : QuantizeOptions
    onnx : OnnxOptions
    run : RunOptions or None
    road : Road
    dry_run, verify, overwrite, durable : bool
        As for `quantize_file`.
    """
    from modelopt_rs.files.onnx.tensors import initializer_infos
    from modelopt_rs.graph.quantize import quantize_graph

    start = time.perf_counter()
    infos = initializer_infos(source.model)  # decisions are of weights in memory, too
    if not dry_run:
        check_place(out_path, overwrite)
    check = OnnxCheck(source, run, road.threads)
    changed, decisions = quantize_graph(
        source.model,
        source.tensors,
        options,
        onnx,
        path=source.path,
        threads=road.threads,
        max_memory=road.max_memory,
    )
    transforms: dict[str, Transform] = dict(changed)
    for name, info in source.tensors.items():
        if name not in changed and name in source.model.graph.initializers:
            transforms[name] = Copy(info)
    if not dry_run:
        sink = open_sink(
            source,
            out_path,
            {name: transform.outputs for name, transform in transforms.items()},
            specs={},
            quantization_config=None,
            overwrite=overwrite,
            durable=durable,
        )
        rewrite(source, sink, transforms, road, verify=verify, check=check)
    rows = [_tensor_report(infos[name], decision, transforms.get(name)) for name, decision in decisions.items()]
    return Report(
        command="quantize",
        source=str(source.path),
        output=str(out_path),
        dry_run=dry_run,
        # Where no size of blocks is given, each form has its own: the reasons say which.
        options={**options.as_dict(), "group_size": options.group_size, **onnx.as_dict()},
        totals=total(rows, {}, time.perf_counter() - start),
        tensors=tuple(rows),
        file_bytes=check.file_bytes,
        run=check.report,
    )


def _tensor_report(info: TensorInfo, decision: Decision, transform: Transform | None) -> TensorReport:
    quantized = decision.action == "quantize" and transform is not None
    return TensorReport(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        decision=decision.action,
        reason=decision.reason,
        bytes_before=info.nbytes,
        bytes_after=sum(output.nbytes for output in transform.outputs) if quantized and transform else info.nbytes,
    )
