"""`compare_onnx`: two ONNX models by what they give and by the tensors of floats that both still have."""

import os
from dataclasses import dataclass
from pathlib import Path

from modelopt_rs.pipeline.compare import compare_files
from modelopt_rs.pipeline.onnx_run_options import RunOptions
from modelopt_rs.pipeline.report import CompareReport, to_json
from modelopt_rs.pipeline.run_report import RunReport
from modelopt_rs.pipeline.tiles import DEFAULT_MEMORY, Progress

__all__ = ["OnnxCompareReport", "compare_onnx", "is_onnx"]

SUFFIX = ".onnx"


@dataclass(frozen=True, slots=True)
class OnnxCompareReport:
    """The report of `compare_onnx`: `run` has the outputs, `tensors` those of the same names in both files."""

    a: str
    b: str
    bytes_a: int
    bytes_b: int
    run: RunReport
    tensors: CompareReport

    def to_json(self) -> str:
        """Return the report as a JSON text."""
        return to_json(self)


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is that of an ONNX model, which is told by its name.

    Examples
    --------
    >>> from modelopt_rs.pipeline.onnx_compare import is_onnx
    >>> is_onnx("model.onnx"), is_onnx("model.safetensors")
    (True, False)
    """
    return Path(path).suffix.lower() == SUFFIX


def compare_onnx(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    options: RunOptions | None = None,
    *,
    max_memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    progress: Progress | None = None,
) -> OnnxCompareReport:
    """Compare two ONNX models.

    A quantized one has its weights under other names and in other forms, so the models are compared by their
    outputs on the same inputs; tensors that both have under the same name and in the same shape, one by one.

    Parameters
    ----------
    a, b : path
        ONNX files; `a` is the reference.
    options : RunOptions, optional
        On which inputs they are run. ``max_error`` is not looked at: see `check_max_error`.
    max_memory : int
        The most bytes that the tiles of both may take.
    threads : int, optional
        Threads to compute with.
    progress : callable, optional
        Called with (bytes of `a` done, bytes in all, tensor name) as the work goes on.

    Raises
    ------
    FormatError
        If a file is malformed, or onnxruntime refuses it.
    ValueError, TypeError
        If the inputs don't fit the models.
    OSError
        If the operating system refuses to read.

    Examples
    --------
    With two files of models::

        report = compare_onnx("model.onnx", "small.onnx", RunOptions(inputs="data.npz"))
        report.run.cosine
    """
    tensors = compare_files(a, b, max_memory=max_memory, threads=threads, progress=progress)
    # Not before: without the extra `onnx` the files have been refused, and the message says so.
    from modelopt_rs.graph.run.pair import compare_models

    run = compare_models(a, b, options, threads=threads)
    return OnnxCompareReport(
        a=os.fspath(a),
        b=os.fspath(b),
        bytes_a=Path(a).stat().st_size,
        bytes_b=Path(b).stat().st_size,
        run=run,
        tensors=tensors,
    )
