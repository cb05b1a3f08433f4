"""`dequantize_file`: a model file whose weights are packed or stored as bitmasks back to plain floats."""

import os

from modelopt_rs.arguments import check_types
from modelopt_rs.dtypes import STORED
from modelopt_rs.errors import UnsupportedError, check_option
from modelopt_rs.layouts.view import Dequantized, check_no_graph
from modelopt_rs.operations.skeleton import Writing, perform
from modelopt_rs.planning.decide import not_read
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.report.reports import Report, TensorReport, total
from modelopt_rs.stream.execution import Execution, Progress
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Copy

__all__ = ["dequantize_file"]


def dequantize_file(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    max_memory: int | str = DEFAULT_MEMORY,
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
    max_memory : int or str
        The most bytes, as a number or a text such as "64MiB", that tiles may take.
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
    ...     mo.compare_files(f"{d}/a.safetensors", f"{d}/c.safetensors").max_error < 0.01
    True
    """
    check_types(dequantize_file, locals())
    max_memory = bytes_of("max_memory", max_memory)
    check_option("dtype", dtype, tuple(STORED))
    writing = Writing(
        max_memory=max_memory,
        threads=threads,
        verify=verify,
        overwrite=overwrite,
        durable=durable,
        progress=progress,
    )
    report: Report = perform(source_path, out_path, lambda source, execution: _plan(source, execution, dtype), writing)
    return report


def _plan(source: Source, execution: Execution, dtype: str) -> FilePlan:
    check_no_graph(source)
    view = Dequantized(source, dtype=STORED[dtype], threads=execution.threads)
    _check_supported(source, bool(view.stored))
    execution.total = sum(info.nbytes for info in view.tensors.values())

    def report(seconds: float) -> Report:
        tensors = tuple(_tensor_report(view, name) for name in view.tensors)
        return Report(
            command="dequantize",
            source=execution.source,
            output=execution.output,
            dry_run=False,
            options={"dtype": dtype},
            totals=total(tensors, {}, seconds),
            tensors=tensors,
        )

    return FilePlan(
        view=view,
        transforms={name: Copy(info) for name, info in view.tensors.items()},
        origins={name: view.origin(name) for name in view.tensors},
        report=report,
    )


def _check_supported(source: Source, is_read: bool) -> None:
    """Refuse a model that is quantized in a way that is not read: without its config it would be garbage."""
    unread = None if is_read else not_read(source.config or {})
    if unread is not None:
        raise UnsupportedError(f"{source.path}: {unread}")


def _tensor_report(view: Dequantized, name: str) -> TensorReport:
    info, stored = view.tensors[name], view.stored.get(name)
    return TensorReport(
        name=name,
        dtype=info.dtype,
        shape=info.shape,
        decision="copy" if stored is None else "dequantize",
        reason="not quantized" if stored is None else stored.words,
        bytes_before=view.stored_nbytes(name),
        bytes_after=info.nbytes,
    )
