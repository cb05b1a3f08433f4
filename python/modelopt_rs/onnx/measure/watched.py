"""A model that is run to see how far its activations are off in 8 bits: on inputs that are given or made up."""

import os
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.errors import FormatError, UnsupportedError
from modelopt_rs.onnx.int8.far_off import Watched
from modelopt_rs.onnx.measure.layer_inputs import Data, InputStream
from modelopt_rs.stream.execution import Execution

__all__ = ["watched"]

SAMPLES = 8  # what is far off is so in every one


def watched(model: ir.Model, path: str | os.PathLike[str], data: Data, execution: Execution) -> Watched | None:
    """Return what runs a model when it is asked for values; None where there are no inputs.

    Parameters
    ----------
    model : Model
        As it was read from `path`.
    path : path
    data : Data
    execution : Execution
        Whose memory and threads are used.
    """
    if data.words is None:
        return None

    def values(names: Sequence[str]) -> Iterator[tuple[str, Array]]:
        threads, max_memory = execution.threads, execution.max_memory
        try:
            stream = InputStream(model, path, names, data, threads=threads, max_memory=max_memory, most=SAMPLES)
        except (FormatError, UnsupportedError):
            if not data.made_up:
                raise
            return
        yield from stream.values(names)

    return Watched(values, data.words)
