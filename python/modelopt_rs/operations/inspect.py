"""`inspect_file`: what is in a model file, tensor by tensor, in one pass and bounded memory."""

import math
import os
import time

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.arguments import check_types
from modelopt_rs.containers.container import Access
from modelopt_rs.containers.registry import open_source
from modelopt_rs.dtypes import FLOATS, INTEGERS, widened
from modelopt_rs.report.peak import peak_memory
from modelopt_rs.report.reports import InspectReport, TensorStatistics
from modelopt_rs.stream.execution import Execution, Progress
from modelopt_rs.stream.memory import DEFAULT_MEMORY, bytes_of, tile_bytes
from modelopt_rs.stream.model import Source, TensorInfo

__all__ = ["inspect_file"]


def inspect_file(
    path: str | os.PathLike[str],
    *,
    max_memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> InspectReport:
    """Read every tensor of a model file once and say what is in it.

    Parameters
    ----------
    path : path
        A safetensors file, a Hugging Face model directory, a sharded checkpoint, a file of torch (`.pt`, `.pth`,
        `.bin`) or Keras, or an ONNX model (its tensors of 1 KiB and more). A quantized file is shown as it is stored,
        not dequantized.
    max_memory : int or str
        The most bytes, as a number or a text such as "64MiB", that a tile may take.
    threads : int, optional
        Threads to compute with; never changes a result.
    allow_symlinks_under : path, optional
        External data of an ONNX model may be symbolic links to files beneath this directory, as in a hub's cache.
    progress : callable, optional
        Called with (bytes done, bytes in all, tensor name) as the work goes on.

    Returns
    -------
    InspectReport

    Raises
    ------
    FormatError
        If the file is malformed.
    OSError
        If the operating system refuses to read.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import modelopt_rs as mo
    >>> w = np.array([[0.0, -2.0], [1.0, np.nan]], np.float32)
    >>> info = mo.files.TensorInfo("fc.weight", "F32", w.shape, w.nbytes)
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with mo.files.SafetensorsSink(f"{d}/model.safetensors", [info]) as sink:
    ...         sink.write("fc.weight", w)
    ...         sink.commit()
    ...     tensor = mo.inspect_file(f"{d}/model.safetensors").tensors[0]
    >>> tensor.min, tensor.max, tensor.absmax, tensor.sparsity, tensor.nonfinite
    (-2.0, 1.0, 2.0, 0.25, 1)
    """
    check_types(inspect_file, locals())
    max_memory = bytes_of("max_memory", max_memory)
    start = time.perf_counter()
    with open_source(path, Access(allow_symlinks_under=allow_symlinks_under)) as source:
        total = sum(info.nbytes for info in source.tensors.values())
        execution = Execution(max_memory, threads, progress, total)
        tensors = tuple(_statistics(source, info, execution) for info in source.tensors.values())
        notes = source.notes
    return InspectReport(
        source=str(path),
        bytes=total,
        elements=sum(math.prod(tensor.shape) for tensor in tensors),
        nonfinite=sum(tensor.nonfinite or 0 for tensor in tensors),
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(),
        tensors=tensors,
        warnings=notes,
    )


def _statistics(source: Source, info: TensorInfo, execution: Execution) -> TensorStatistics:
    size = math.prod(info.shape)
    low, high, nonzero, nonfinite = math.inf, -math.inf, 0, 0
    known = size > 0 and (info.dtype in FLOATS or info.dtype in INTEGERS)
    if known:
        for tile in source.tiles(info.name, tile_bytes(info, (), execution.max_memory)):
            figures = _float_figures if info.dtype in FLOATS else _integer_figures
            tile_low, tile_high, tile_nonzero, tile_nonfinite = figures(tile.array, info.dtype, execution.threads)
            # min() and max() keep the left one where the right one is NaN: a tile without any number.
            low, high = min(low, tile_low), max(high, tile_high)
            nonzero += tile_nonzero
            nonfinite += tile_nonfinite
            execution.advance(tile.array.nbytes, info.name)
    else:
        execution.advance(info.nbytes, info.name)
    numbers = known and low <= high
    return TensorStatistics(
        name=info.name,
        dtype=info.dtype,
        shape=info.shape,
        bytes=info.nbytes,
        min=low if numbers else None,
        max=high if numbers else None,
        absmax=max(abs(low), abs(high)) if numbers else None,
        sparsity=1.0 - nonzero / size if known else None,
        nonfinite=nonfinite if known else None,
    )


def _float_figures(array: Array, dtype: str, threads: int | None) -> tuple[float, float, int, int]:
    bf16 = FLOATS[dtype]
    low, high = _core.minmax(array, None, False, "ignore", bf16, threads)
    nonzero = _core.count_nonzero(array, None, False, bf16, threads)
    nonfinite = _core.count_nonfinite(array, None, False, bf16, threads)
    return float(widened(low, dtype)), float(widened(high, dtype)), int(nonzero), int(nonfinite)


def _integer_figures(array: Array, dtype: str, threads: int | None) -> tuple[float, float, int, int]:
    return float(array.min()), float(array.max()), int(np.count_nonzero(array)), 0
