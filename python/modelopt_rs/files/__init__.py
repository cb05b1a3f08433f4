"""Model files: read a tensor in row tiles, write a tensor in row tiles.

`open` gives a `Source` for whatever the path is; the classes can be used by themselves.
"""

import os

from modelopt_rs.containers.checkpoint import CheckpointSource
from modelopt_rs.containers.checkpoint_sink import CheckpointSink
from modelopt_rs.containers.container import Access
from modelopt_rs.containers.reading import MAX_HEADER, MAX_TENSORS
from modelopt_rs.containers.registry import open_source
from modelopt_rs.containers.safetensors import SafetensorsSource
from modelopt_rs.containers.safetensors_sink import SafetensorsSink
from modelopt_rs.layouts.bitmask import bitmask_tensors, sparsity_config
from modelopt_rs.layouts.pack_quantized import packed_metadata, packed_tensors, quantization_config
from modelopt_rs.layouts.packed_spec import PackedSpec
from modelopt_rs.layouts.view import Decompressed, Dequantized, plain
from modelopt_rs.signatures import show_options
from modelopt_rs.stream.model import Sink, Source, TensorInfo, Tile

__all__ = [
    "CheckpointSink",
    "CheckpointSource",
    "Decompressed",
    "Dequantized",
    "PackedSpec",
    "SafetensorsSink",
    "SafetensorsSource",
    "Sink",
    "Source",
    "TensorInfo",
    "Tile",
    "bitmask_tensors",
    "open",
    "packed_metadata",
    "packed_tensors",
    "plain",
    "quantization_config",
    "sparsity_config",
]


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
        A safetensors file, a Hugging Face directory, the index of a sharded checkpoint, a file of `torch.save` or
        Keras, or an ONNX model. Nothing in a file is executed.
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
        If it is an ONNX model, and the extra `onnx` is not installed; or a file of Keras without `keras-files`.
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
    access = Access(
        max_header=max_header,
        max_tensors=max_tensors,
        allow_hard_links=allow_hard_links,
        allow_symlinks_under=allow_symlinks_under,
    )
    source = open_source(path, access)
    if not dequantize:
        return source
    try:
        return plain(source)
    except BaseException:
        source.close()
        raise


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
