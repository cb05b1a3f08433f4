"""ONNX models as a container. What needs the extra `onnx` is imported when there is such a model."""

import os
from pathlib import Path
from typing import Final

from modelopt_rs.containers.container import Access, Output
from modelopt_rs.errors import UnsupportedError
from modelopt_rs.stream.model import Sink, Source

__all__ = ["ONNX"]


class _Onnx:
    name = "onnx"
    suffixes = (".onnx",)
    written_as = "ONNX"

    def sniff(self, path: Path, begin: bytes) -> bool:
        # The first field of a model, as all write it, is the version of the format.
        return begin[:1] == b"\x08" and b"\0" < begin[1:2] < b" "

    def open(self, path: Path, access: Access) -> Source:
        from modelopt_rs.containers.onnx import OnnxSource

        return OnnxSource(
            path,
            max_header=access.max_header,
            max_tensors=access.max_tensors,
            allow_hard_links=access.allow_hard_links,
            allow_symlinks_under=access.allow_symlinks_under,
        )

    def create(self, path: str | os.PathLike[str], output: Output) -> Sink:
        if output.source.graph is None:
            raise UnsupportedError(f"{output.source.path}: has no graph, without which there is no ONNX model")
        from modelopt_rs.containers.onnx import OnnxSink

        return OnnxSink(path, output.source.graph, output.tensors, durable=output.durable, overwrite=output.overwrite)


ONNX: Final = _Onnx()
