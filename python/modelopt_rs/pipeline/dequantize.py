"""`dequantize_file`: a model file whose weights are packed or stored as bitmasks back to plain floats."""

import os
import time
from typing import Final, Literal

from modelopt_rs import files
from modelopt_rs._core import UnsupportedError
from modelopt_rs.files import Decompressed, Dequantized, Source
from modelopt_rs.files.dequantized import check_no_graph
from modelopt_rs.pipeline.plan import OptionError
from modelopt_rs.pipeline.report import Report, TensorReport, total
from modelopt_rs.pipeline.sinks import config_of, open_sink
from modelopt_rs.pipeline.tiles import DEFAULT_MEMORY, Progress, Road
from modelopt_rs.pipeline.transform import Copy, rewrite

__all__ = ["dequantize_file"]

DTYPES: Final[dict[str, Literal["F32", "F16", "BF16"]]] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
}


def dequantize_file(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    max_memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    durable: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Turn a quantized model file back into plain floats that any safetensors reader loads.

    Parameters
    ----------
    source_path : path
        What `quantize_file` or `prune_file` wrote, or another model in the layouts pack-quantized or sparse-bitmask
        of compressed-tensors.
    out_path : path
        Where to write: a file for a file, a directory for a directory (its config.json loses its
        `quantization_config`).
    dtype : {"float32", "float16", "bfloat16"}
        What the quantized weights become. All others keep their dtype.
    max_memory : int
        The most bytes that tiles may take.
    threads : int, optional
        Threads to compute with; never changes a byte of the output.
    verify : bool
        Read the output back before it takes its place, and compare.
    overwrite : bool
        Replace what is at `out_path`.
    durable : bool
        Wait until the output is on the disk.
    progress : callable, optional
        Called with (bytes done, bytes in all, tensor name) as the work goes on.

    Returns
    -------
    Report

    Raises
    ------
    FormatError
        If the source is malformed. `UnsupportedError`: it is an ONNX model, or quantized in a way that is not read.
    OSError
        If the operating system refuses to read or write.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> w = np.ones((32, 32), np.float32)
    >>> info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with mo.files.SafetensorsSink(f"{d}/a.safetensors", [info]) as sink:
    ...         sink.write("fc.weight", w)
    ...         sink.commit()
    ...     _ = mo.quantize_file(f"{d}/a.safetensors", f"{d}/b.safetensors", bits=4)
    ...     report = mo.dequantize_file(f"{d}/b.safetensors", f"{d}/c.safetensors")
    ...     mo.compare_files(f"{d}/a.safetensors", f"{d}/c.safetensors").max_error < 1e-6
    True
    """
    start = time.perf_counter()
    if dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    with files.open(source_path) as source:
        check_no_graph(source)
        masked = Decompressed(source, threads=threads)
        view = Dequantized(masked, dtype=DTYPES[dtype], threads=threads)
        _check_supported(source, bool(view.specs or masked.masked))
        road = Road(max_memory, threads, progress, sum(info.nbytes for info in view.tensors.values()))
        sink = open_sink(
            source,
            out_path,
            {masked.parts(view.origin(name))[0]: [info] for name, info in view.tensors.items()},
            specs={},
            quantization_config=None,
            overwrite=overwrite,
            durable=durable,
        )
        rewrite(view, sink, {name: Copy(info) for name, info in view.tensors.items()}, road, verify=verify)
        tensors = tuple(_tensor_report(view, masked, name) for name in view.tensors)
    return Report(
        command="dequantize",
        source=str(source_path),
        output=str(out_path),
        dry_run=False,
        options={"dtype": dtype},
        totals=total(tensors, {}, time.perf_counter() - start),
        tensors=tensors,
    )


def _check_supported(source: Source, is_read: bool) -> None:
    """Refuse a model that is quantized in a way that is not read: without its config it would be garbage."""
    config = config_of(source).get("quantization_config")
    if config and not is_read:
        method = config.get("quant_method") if isinstance(config, dict) else None
        raise UnsupportedError(f"{source.path}: quantization_config of method {method!r} has no packed weights to read")


def _tensor_report(view: Dequantized, masked: Decompressed, name: str) -> TensorReport:
    info = view.tensors[name]
    spec = view.specs.get(name)
    parts = [f"{name}{part}" for part in ("_packed", "_scale", "_shape", "_zero_point")] if spec else masked.parts(name)
    stored = masked.source.tensors
    if spec is not None:
        groups = f"groups of {spec.group_size}" if spec.group_size else "one scale a row"
        reason = f"{spec.bits} bits, {'symmetric' if spec.symmetric else 'asymmetric'}, {groups}"
    else:
        reason = "stored as a bitmask" if name in masked.masked else "not quantized"
    return TensorReport(
        name=name,
        dtype=info.dtype,
        shape=info.shape,
        decision="copy" if reason == "not quantized" else "dequantize",
        reason=reason,
        bytes_before=sum(stored[part].nbytes for part in parts if part in stored),
        bytes_after=info.nbytes,
    )
