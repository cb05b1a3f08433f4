"""Which `Sink` an operation writes to: a file for a file, a directory for a directory."""

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelopt_rs import files
from modelopt_rs.files import CheckpointSink, CheckpointSource, SafetensorsSink, Sink, Source, TensorInfo
from modelopt_rs.files.pack_quantized import METADATA_KEY

__all__ = ["check_place", "config_of", "graph_of", "open_sink"]


def config_of(source: Source) -> Mapping[str, Any]:
    """Return a model's config.json; empty where it has none."""
    return (source.config or {}) if isinstance(source, CheckpointSource) else {}


def graph_of(source: Source) -> Any:
    """Return the graph of an ONNX model, an `onnx_ir.Model`; None of what is no ONNX model."""
    return getattr(source, "model", None)


def check_place(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse to write a file where there is one: before long work, and again when it is opened.

    Raises
    ------
    FileExistsError
        If there is something at `path`, and `overwrite` is false.
    """
    if not overwrite and os.path.lexists(path):
        message = "the file exists; pass overwrite=True (--overwrite) to replace it"
        raise FileExistsError(errno.EEXIST, message, str(Path(path)))


def open_sink(
    source: Source,
    path: str | os.PathLike[str],
    outputs: Mapping[str, Sequence[TensorInfo]],
    *,
    specs: Mapping[str, files.PackedSpec],
    quantization_config: Mapping[str, Any] | None,
    overwrite: bool,
    durable: bool,
    config: Mapping[str, Any] | None = None,
) -> Sink:
    """Open a sink of the source's kind.

    Parameters
    ----------
    source : Source
        The model that is read, as it is stored.
    path : path
        The destination.
    outputs : mapping of str to sequence of TensorInfo
        The tensors to write, by the tensor of the source that they come of.
    specs : mapping of str to PackedSpec
        How weights are packed: for a reader that has the file alone.
    quantization_config : mapping or None
        The same for config.json; None: nothing is packed.
    overwrite : bool
        Replace what is at `path`.
    durable : bool
        Wait until the output is on the disk.
    config : mapping, optional
        The config.json of a directory, in place of the source's.

    Raises
    ------
    FileExistsError
        If there is something at `path`, and `overwrite` is false.
    """
    tensors = [info for infos in outputs.values() for info in infos]
    metadata = {key: value for key, value in source.metadata.items() if key != METADATA_KEY}
    if specs:
        metadata |= files.packed_metadata(specs)
    graph = graph_of(source)
    if graph is not None:
        from modelopt_rs.files.onnx import OnnxSink

        return OnnxSink(path, graph, tensors, durable=durable, overwrite=overwrite)
    if isinstance(source, CheckpointSource):
        config = source.config if config is None else config
        if config is not None:
            config = {key: value for key, value in config.items() if key != "quantization_config"}
            if quantization_config is not None:
                config["quantization_config"] = quantization_config
        origins = {info.name: name for name, infos in outputs.items() for info in infos}
        return CheckpointSink(
            source, path, tensors, origins, metadata, config=config, durable=durable, overwrite=overwrite
        )
    check_place(path, overwrite)
    return SafetensorsSink(path, tensors, metadata, durable=durable)
