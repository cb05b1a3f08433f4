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
) -> Source:
    """Open a model for reading, choosing the format by what the path is.

    Parameters
    ----------
    path : str or os.PathLike
        A safetensors file, a Hugging Face directory, or the index of a sharded checkpoint.
    max_header : int
        The largest header to accept, in bytes.
    max_tensors : int
        The most tensors to accept.
    dequantize : bool
        Whether packed weights, and weights stored as bitmasks, show as plain tensors.

    Returns
    -------
    Source
        Close it, or use it in a `with` statement.

    Raises
    ------
    FormatError
        If it is no known format or is malformed.
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
    elif _is_safetensors(where):
        source = SafetensorsSource(where, max_header=max_header, max_tensors=max_tensors)
    else:
        raise FormatError(
            f"{where}: not a model file that is supported: a safetensors file, a Hugging Face directory with "
            f"model.safetensors, or model{INDEX_SUFFIX}"
        )
    if not dequantize:
        return source
    try:
        return plain(source)
    except BaseException:
        source.close()
        raise


def _is_safetensors(path: Path) -> bool:
    """By the name, or by the brace that the header begins with: files in a hub's cache have no suffix."""
    fd = open_regular(path)
    try:
        return path.suffix == ".safetensors" or os.pread(fd, 1, 8) == b"{"
    finally:
        os.close(fd)
