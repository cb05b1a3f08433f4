"""Which format a path has: the one place that chooses."""

import os
from pathlib import Path

from modelopt_rs._core import FormatError
from modelopt_rs.files.checkpoint import INDEX_SUFFIX, CheckpointSource
from modelopt_rs.files.dequantized import plain
from modelopt_rs.files.model import Source
from modelopt_rs.files.safetensors import MAX_HEADER, MAX_TENSORS, SafetensorsSource, open_regular

__all__ = ["open"]


def open(
    path: str | os.PathLike[str],
    *,
    max_header: int = MAX_HEADER,
    max_tensors: int = MAX_TENSORS,
    dequantize: bool = False,
    allow_hard_links: bool = False,
    allow_symlinks_under: str | os.PathLike[str] | None = None,
) -> Source:
    """Open a model for reading, choosing the format by what the path is.

    Parameters
    ----------
    path : str or os.PathLike
        A safetensors file, a Hugging Face directory, the index of a sharded checkpoint, or an ONNX model.
    max_header : int
        The largest header to accept, in bytes.
    max_tensors : int
        The most tensors to accept.
    dequantize : bool
        Whether packed weights, and weights stored as bitmasks, show as plain tensors.
    allow_hard_links, allow_symlinks_under : bool, path or None
        What files of external data an ONNX model may have; see `modelopt_rs.files.onnx.OnnxSource`.

    Returns
    -------
    Source
        Close it, or use it in a `with` statement.

    Raises
    ------
    FormatError
        If it is no known format or is malformed. `UnsupportedError`: an ONNX model with `dequantize`.
    ImportError
        If it is an ONNX model, and the extra `onnx` is not installed.
    ValueError
        If it is neither a regular file nor a directory.
    OSError
        If it can't be opened.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from modelopt_rs import files
    >>> with tempfile.TemporaryDirectory() as d:
    ...     info = files.TensorInfo("x", "F32", (2, 2), 16)
    ...     with files.SafetensorsSink(f"{d}/a.safetensors", [info]) as sink:
    ...         sink.write("x", np.eye(2, dtype=np.float32))
    ...         sink.commit()
    ...     with files.open(f"{d}/a.safetensors") as source:
    ...         source.tensors["x"].shape
    (2, 2)
    """
    where = Path(path)
    source: Source
    if where.is_dir() or where.name.endswith(INDEX_SUFFIX):
        source = CheckpointSource(where, max_header=max_header, max_tensors=max_tensors)
    elif (kind := _kind(where)) == "safetensors":
        source = SafetensorsSource(where, max_header=max_header, max_tensors=max_tensors)
    elif kind == "onnx":
        from modelopt_rs.files.onnx import OnnxSource

        source = OnnxSource(
            where,
            max_header=max_header,
            max_tensors=max_tensors,
            allow_hard_links=allow_hard_links,
            allow_symlinks_under=allow_symlinks_under,
        )
    else:
        raise FormatError(
            f"{where}: not a model file that is supported: a safetensors file, a Hugging Face directory with "
            f"model.safetensors, model{INDEX_SUFFIX}, or an ONNX model"
        )
    if not dequantize:
        return source
    try:
        return plain(source)
    except BaseException:
        source.close()
        raise


def _kind(path: Path) -> str | None:
    """By the name, or by how the file begins: files in a hub's cache have no suffix."""
    fd = open_regular(path)
    try:
        begin = os.pread(fd, 9, 0)
    finally:
        os.close(fd)
    if path.suffix == ".safetensors" or begin[8:] == b"{":
        return "safetensors"
    # The first field of a model, as all write it, is the version of the format.
    is_onnx = begin[:1] == b"\x08" and b"\0" < begin[1:2] < b" "
    return "onnx" if path.suffix == ".onnx" or is_onnx else None
