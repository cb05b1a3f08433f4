"""`compare_files`: how far one model file is from another, quantized or not: by tensors, ONNX models by outputs too."""

import os
import time
from typing import Any, cast

import numpy as np

from modelopt_rs import _core, files
from modelopt_rs.files import Source, TensorInfo
from modelopt_rs.files.model import FLOATS, Array
from modelopt_rs.pipeline.inspect import INTEGERS
from modelopt_rs.pipeline.onnx_check import check_not_run
from modelopt_rs.pipeline.onnx_run_options import DEFAULT_RUN, RunOptions
from modelopt_rs.pipeline.report import CompareReport, ErrorFigures, TensorDifference, peak_memory
from modelopt_rs.pipeline.run_report import RunReport
from modelopt_rs.pipeline.sinks import graph_of
from modelopt_rs.pipeline.tiles import DEFAULT_MEMORY, Progress, Road, packed_memory, tile_bytes, widened

__all__ = ["compare_files"]


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    max_memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    run: RunOptions | None = DEFAULT_RUN,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> CompareReport:
    """Compare two model files tensor by tensor; a quantized one is dequantized on the way.

    Two ONNX models, whose quantized weights have other names and forms, are also run on the same inputs.

    Parameters
    ----------
    a, b : path
        A safetensors file, a Hugging Face model directory, a sharded checkpoint, or an ONNX model each; `a` is the
        reference.
    max_memory : int
        The most bytes that the tiles of both may take.
    threads : int, optional
        Threads to compute with; never changes a result.
    run : RunOptions or None
        Of two ONNX models: on which inputs they are run; None: not run.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory, as in a hub's cache.
    progress : callable, optional
        Called with (bytes of `a` done, bytes in all, tensor name) as the work goes on.

    Returns
    -------
    CompareReport
        For each tensor that both have in the same shape: SQNR in dB (infinite where equal), the largest error
        and the cosine. Names that only one has, and shapes that differ, are listed. Of two ONNX models also the size
        of both, how far the outputs are apart, and the latency.

    Raises
    ------
    FormatError
        If a file is malformed, or onnxruntime refuses an ONNX model.
    ValueError
        If the inputs don't fit the models, (`OptionError`) `run` is given for others than two ONNX models, or
        (`MaxErrorExceeded`) outputs are further off than it allows.
    OSError
        If the operating system refuses to read.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> x = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    >>> info = mo.files.TensorInfo("fc.weight", "F32", x.shape, x.nbytes)
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with mo.files.SafetensorsSink(f"{d}/a.safetensors", [info]) as sink:
    ...         sink.write("fc.weight", x)
    ...         sink.commit()
    ...     _ = mo.quantize_file(f"{d}/a.safetensors", f"{d}/b.safetensors", bits=8)
    ...     report = mo.compare_files(f"{d}/a.safetensors", f"{d}/b.safetensors")
    >>> report.sqnr_db > 40
    True
    """
    start = time.perf_counter()
    first = files.open(a, allow_symlinks_under=allow_symlinks_under)
    with first as stored_a, files.open(b, allow_symlinks_under=allow_symlinks_under) as stored_b:
        others = [source for source in (stored_a, stored_b) if graph_of(source) is None]
        if others:
            check_not_run(others[0], run)
        left, right = _plain(stored_a, threads), _plain(stored_b, threads)
        both = [name for name in left.tensors if name in right.tensors]
        shapes = {name: (left.tensors[name].shape, right.tensors[name].shape) for name in both}
        same = [name for name, (one, other) in shapes.items() if one == other]
        known = [name for name in same if _readable(left.tensors[name]) and _readable(right.tensors[name])]
        road = Road(max_memory, threads, progress, sum(left.tensors[name].nbytes for name in known))
        figures = {name: _compare(left, right, name, road) for name in known}
        only_in_a = tuple(name for name in left.tensors if name not in right.tensors)
        only_in_b = tuple(name for name in right.tensors if name not in left.tensors)
        tensors = tuple(
            TensorDifference(name, shapes[name][0], f.sqnr_db, f.max_error, f.cosine) for name, f in figures.items()
        )
        file_bytes = None if others else (cast(Any, stored_a).nbytes, cast(Any, stored_b).nbytes)
        ran = None if others or run is None else _run(a, b, run, threads)
    # Position ids and the like would drown the weights in the sums.
    whole = sum((f for name, f in figures.items() if left.tensors[name].dtype in FLOATS), ErrorFigures())
    return CompareReport(
        a=str(a),
        b=str(b),
        sqnr_db=whole.sqnr_db,
        max_error=whole.max_error,
        cosine=whole.cosine,
        worst_tensor=min(figures, key=lambda name: figures[name].sqnr_db, default=None),
        only_in_a=only_in_a,
        only_in_b=only_in_b,
        shape_mismatches=tuple((name, *shapes[name]) for name in both if name not in same),
        not_compared=tuple(name for name in same if name not in figures),
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(),
        tensors=tensors,
        file_bytes=file_bytes,
        run=ran,
    )


def _plain(source: Source, threads: int | None) -> Source:
    """Return a view of a model with plain weights; of an ONNX model it is itself: there the graph dequantizes."""
    return source if graph_of(source) is not None else files.plain(source, threads=threads)


def _run(a: str | os.PathLike[str], b: str | os.PathLike[str], options: RunOptions, threads: int | None) -> RunReport:
    from modelopt_rs.graph.run.pair import run_pair

    return run_pair(a, b, options, threads=threads)


def _readable(info: TensorInfo) -> bool:
    return info.dtype in FLOATS or info.dtype in INTEGERS


def _compare(left: Source, right: Source, name: str, road: Road) -> ErrorFigures:
    a, b = left.tensors[name], right.tensors[name]
    if a.nbytes == 0:
        return ErrorFigures()
    # Tiles of both with the same rows, and what `_float` makes of them.
    (extra_a, kept_a), (extra_b, kept_b) = packed_memory(left, name), packed_memory(right, name)
    extra = extra_a + extra_b + b.row_nbytes + 16 * a.columns
    rows = tile_bytes(a, extra, road.max_memory, kept=kept_a + kept_b) // a.row_nbytes
    figures = ErrorFigures()
    tiles = zip(left.tiles(name, rows * a.row_nbytes), right.tiles(name, rows * b.row_nbytes), strict=True)
    for one, other in tiles:
        x, y = _float(one.array, a.dtype), _float(other.array, b.dtype)
        figures += ErrorFigures(*_core.error_stats(x, y, None, road.threads))
        road.advance(one.array.nbytes, name)
    return figures


def _float(array: Array, dtype: str) -> Array:
    """Return a tile in a dtype that NumPy and the core both have."""
    return widened(array, dtype) if dtype in FLOATS else array.astype(np.float64)
