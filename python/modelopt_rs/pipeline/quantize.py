"""`quantize_file`: a model file in, one of a quarter to a tenth of its size out, in bounded memory."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from modelopt_rs import _core, files
from modelopt_rs.files import PackedSpec, TensorInfo
from modelopt_rs.files.model import Array
from modelopt_rs.files.pack_quantized import words
from modelopt_rs.pipeline.onnx_check import check_not_run
from modelopt_rs.pipeline.onnx_options import OnnxOptions
from modelopt_rs.pipeline.onnx_run_options import DEFAULT_RUN, RunOptions
from modelopt_rs.pipeline.plan import Decision, OptionError, QuantizeOptions, plan_quantize
from modelopt_rs.pipeline.quantize_onnx import quantize_onnx
from modelopt_rs.pipeline.report import ErrorFigures, Report, TensorReport, total
from modelopt_rs.pipeline.rows import RowQuantizer, bytes_per_row
from modelopt_rs.pipeline.sinks import config_of, graph_of, open_sink
from modelopt_rs.pipeline.tiles import DEFAULT_MEMORY, Progress, Road
from modelopt_rs.pipeline.transform import Copy, Transform, rewrite

__all__ = ["Quantize", "packed_config", "packed_specs", "quantize_file"]


def quantize_file(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    bits: int = 8,
    scheme: str | None = None,
    group_size: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    dry_run: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    nonfinite: str = "raise",
    durable: bool = True,
    onnx: OnnxOptions | None = None,
    run: RunOptions | None = DEFAULT_RUN,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantize the linear layers of a model file to 8, 4 or 2 bits.

    The output has the pack-quantized layout of compressed-tensors, which transformers and vLLM load; or it is an ONNX
    model that onnxruntime runs, with quantized weights (of convolutions, embeddings and recurrent layers too) and, if
    asked for, quantized activations. Nothing shows at `out_path` before all of it is written and read back; whatever
    goes wrong, what was there stays.

    Parameters
    ----------
    source_path : path
        A safetensors file, a Hugging Face model directory, a sharded checkpoint, or an ONNX model.
    out_path : path
        Where to write: a file for a file, a directory for a directory.
    bits : {8, 4, 2}
        Bits of a code.
    scheme : {"symmetric", "asymmetric"}, optional
        Whether the range is around zero, or has a zero point of its own. By default symmetric; below 8 bits asymmetric
        for ONNX models, which lose less so and are read by every loader of the format.
    group_size : int, optional
        Consecutive elements of a row that share a scale; 0: the whole row (a scale for each output channel).
        By default 0 at 8 bits, 32 at 4 and 2 bits; in ONNX models what fits the operator.
    include, exclude : sequence of str
        Globs over tensor names: what to quantize besides the default, and what not to. `exclude` wins.
    max_memory : int
        The most bytes that tiles and their results may take at a time.
    threads : int, optional
        Threads to compute with; never changes a byte of the output.
    dry_run : bool
        Decide and report, write nothing.
    verify : bool
        Read the output back before it takes its place, and compare.
    overwrite : bool
        Replace what is at `out_path`.
    nonfinite : {"raise", "saturate"}
        What to do with weights that are NaN or infinite.
    durable : bool
        Wait until the output is on the disk.
    onnx : OnnxOptions, optional
        Of an ONNX model: for which runtime, and whether its activations are quantized too.
    run : RunOptions or None
        Of an ONNX model: on which inputs it is run beside the old one before it takes its place; None: not run.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory, as in a hub's cache.
    progress : callable, optional
        Called with (bytes done, bytes in all, tensor name) as the work goes on.

    Returns
    -------
    Report
        What was decided for every tensor and why, sizes, and how far the quantized weights (of an ONNX model: its
        outputs) are off.

    Raises
    ------
    ValueError
        If an option is wrong, or (`OptionError` apart) a weight to be quantized is not finite, or
        (`MaxErrorExceeded`) outputs of the ONNX model are further off than `run` allows.
    FormatError
        If the source is malformed, or onnxruntime refuses the ONNX model.
    ImportError
        If the source is an ONNX model, and the extra `onnx` is not installed.
    OSError
        If the operating system refuses to read or write.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with mo.files.SafetensorsSink(f"{d}/model.safetensors", [info]) as sink:
    ...         sink.write("fc.weight", w)
    ...         sink.commit()
    ...     report = mo.quantize_file(f"{d}/model.safetensors", f"{d}/small.safetensors", bits=4)
    >>> report.totals.changed
    1
    >>> report.totals.ratio > 6
    True
    """
    start = time.perf_counter()
    options = QuantizeOptions(
        bits=bits,
        scheme=scheme or "symmetric",
        group_size=group_size,
        include=include,
        exclude=exclude,
        nonfinite=nonfinite,
    )
    with files.open(source_path, allow_symlinks_under=allow_symlinks_under) as source:
        tensors = source.tensors
        if graph_of(source) is not None:
            if scheme is None and bits < 8:
                options = replace(options, scheme="asymmetric")
            road = Road(max_memory, threads, progress, sum(info.nbytes for info in tensors.values()))
            written = {"dry_run": dry_run, "verify": verify, "overwrite": overwrite, "durable": durable}
            return quantize_onnx(cast(Any, source), out_path, options, onnx or OnnxOptions(), run, road, **written)
        if onnx is not None:
            given = "onnx (--target, --activations and others)"
            raise OptionError(f"{given} must be left out for a model that is no ONNX model, got it for {source.path}")
        check_not_run(source, run)
        plan = plan_quantize(tensors, config_of(source), options)
        transforms = {name: _transform(tensors[name], decision, options, threads) for name, decision in plan.items()}
        if not dry_run:
            road = Road(max_memory, threads, progress, sum(info.nbytes for info in tensors.values()))
            sink = open_sink(
                source,
                out_path,
                {name: transform.outputs for name, transform in transforms.items()},
                specs=packed_specs(plan, options),
                quantization_config=packed_config(tensors, plan, options),
                overwrite=overwrite,
                durable=durable,
            )
            rewrite(source, sink, transforms, road, verify=verify)
        rows = [_tensor_report(tensors[name], plan[name], transforms[name], dry_run) for name in plan]
        figures = {} if dry_run else {n: t.figures for n, t in transforms.items() if isinstance(t, Quantize)}
    return Report(
        command="quantize",
        source=str(source_path),
        output=str(out_path),
        dry_run=dry_run,
        options=options.as_dict(),
        totals=total(rows, figures, time.perf_counter() - start),
        tensors=tuple(rows),
    )


def _transform(info: TensorInfo, decision: Decision, options: QuantizeOptions, threads: int | None) -> Transform:
    return Quantize(info, options, threads) if decision.action == "quantize" else Copy(info)


class Quantize:
    """Rows to packed codes, scales and zero points.

    Parameters
    ----------
    info : TensorInfo
        A tensor that `plan.why_not` has nothing against.
    options : QuantizeOptions
    threads : int or None

    Attributes
    ----------
    figures : ErrorFigures
        How far the codes so far are from what they were made of.
    """

    kept = 0
    passes = 1

    def __init__(self, info: TensorInfo, options: QuantizeOptions, threads: int | None) -> None:
        self._info, self._options, self._threads = info, options, threads
        self.outputs: Sequence[TensorInfo] = files.packed_tensors(info.name, info.shape, options.spec)
        self.bytes_per_row = bytes_per_row(info, options)
        # Zero points are packed along the first axis: a word of them has those of 32 / bits rows.
        self.unit = 1 if options.spec.symmetric else 32 // options.bits
        self.figures = ErrorFigures()

    def begin(self, rows: int) -> None:
        """Make the buffers."""
        self._quantizer = RowQuantizer(self._info, self._options, rows, self._threads)

    def __call__(self, array: Array) -> Sequence[tuple[str, Array]]:
        """Quantize a tile."""
        name = self._info.name
        packed, scale, zero_point = self._quantizer(array)
        self.figures += self._quantizer.figures(array)
        parts = [(f"{name}_packed", packed), (f"{name}_scale", scale)]
        if zero_point is not None:
            parts.append((f"{name}_zero_point", pack_zero_points(zero_point, self._options.bits, self._threads)))
        return parts

    def end(self) -> Sequence[tuple[str, Array]]:
        """Let go of the buffers, or there would be some for each tensor; return the shape."""
        del self._quantizer
        return [(f"{self._info.name}_shape", np.array(self._info.shape, np.int64))]


def pack_zero_points(zero_points: Array, bits: int, threads: int | None) -> Array:
    """Pack unsigned zero points [out, groups] along the first axis, as the layout wants them.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.pipeline.quantize import pack_zero_points
    >>> pack_zero_points(np.full((4, 1), 1, np.uint8), 8, None)
    array([[16843009]], dtype=int32)
    """
    columns = np.ascontiguousarray(zero_points.T)
    stream = np.zeros((len(columns), words(len(zero_points), bits)), np.int32)
    packed = np.empty((len(columns), -(-len(zero_points) * bits // 8)), np.uint8)
    _core.pack(columns, bits, packed, threads)
    np.copyto(stream.view(np.uint8)[:, : packed.shape[1]], packed)
    return np.ascontiguousarray(stream.T)


def packed_specs(plan: Mapping[str, Decision], options: QuantizeOptions) -> dict[str, PackedSpec]:
    """Return how each weight that is quantized is packed."""
    return {name: options.spec for name, decision in plan.items() if decision.action == "quantize"}


def packed_config(
    tensors: Mapping[str, TensorInfo], plan: Mapping[str, Decision], options: QuantizeOptions
) -> dict[str, Any]:
    """Describe the output to its loaders, which look for the codes of every layer that is not ignored."""
    left = [
        name.removesuffix(".weight")
        for name, decision in plan.items()
        if decision.action == "copy" and name.endswith(".weight") and len(tensors[name].shape) == 2
    ]
    # A head that is tied to the embedding is a layer of the model, but not in the file.
    if not any("lm_head" in name.split(".") for name in tensors):
        left.append("lm_head")
    return files.quantization_config({options.spec: ["Linear"]}, ignore=left)


def _tensor_report(info: TensorInfo, decision: Decision, transform: Transform, dry_run: bool) -> TensorReport:
    figures = transform.figures if isinstance(transform, Quantize) and not dry_run else None
    return TensorReport(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        decision=decision.action,
        reason=decision.reason,
        bytes_before=info.nbytes,
        bytes_after=sum(output.nbytes for output in transform.outputs),
        sqnr_db=None if figures is None else figures.sqnr_db,
        max_error=None if figures is None else figures.max_error,
    )
