"""How far the scores of models are off that were made of one: which of them is nearest to it."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from modelopt_rs.containers.onnx import OnnxSource
from modelopt_rs.onnx.int8.observe import Observer
from modelopt_rs.onnx.measure.layer_inputs import Data, InputStream
from modelopt_rs.onnx.measure.output_errors import compared, relative, scores
from modelopt_rs.onnx.run.generate import axis_length
from modelopt_rs.onnx.run.inputs import graph_infos
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.model import Source

__all__ = ["WholeErrors"]

SAMPLES: Final = (16, 256)
"""How many inputs are made up at least, and at most: a classifier of digits gives ten numbers for each.

Of two perceptrons the one that is a sixth further off on digits was nearer in 24 of 60 sets of 16 normal inputs, in 4
of 60 of 256; where every other input has no signs in 3 of 60 sets of 16, in none of 256.
"""
WORK, FED = 2**26, 2**22  # bytes of weights, and of inputs at first, of all runs of a model where there are more
PART: Final = 16  # of the memory: what the first model gives is kept if it takes no more


class WholeErrors:
    """Runs a model and others that were made of it on the same samples.

    Scores are compared where outputs are probabilities: of these most are 0 or 1 whatever is done to weights, and how
    far off they are is said by the few samples on which a model is in doubt. Of a classifier of files in 4 bits the
    probabilities of two sets of 15 files were off by up to four times as much, and ranked answers to a size
    differently; the scores agreed within a tenth.

    Parameters
    ----------
    source : Source
        Has the graph, as it was read.
    data : Data
        Where inputs come from: all that are given are taken, or 16 are made up, of a small model up to 256.
    execution : Execution

    Raises
    ------
    FormatError, UnsupportedError
        If onnxruntime refuses the model, or inputs can't be made up.
    """

    def __init__(self, source: Source, data: Data, execution: Execution) -> None:
        self._execution, self._names = execution, scores(source.graph)
        self._ends = [str(value.name) for value in source.graph.graph.outputs]
        run = data.run
        if data.made_up and run is not None:
            data = replace(data, varied=max(_count(source, run.dims), run.samples))
        how: Any = {"threads": execution.threads, "max_memory": execution.max_memory, "most": data.varied or None}
        self._stream = InputStream(source.graph, source.path, self._names, data, **how)
        self._kept: dict[tuple[str, ...], list[list[Any]]] = {}

    def of(self, path: str | os.PathLike[str]) -> float | None:
        """Return how far the scores of the model in this file are off, relative to them; None: they say nothing.

        It is the root of the mean, over all of floats, of their squared relative errors.
        """
        with OnnxSource(path) as made:
            there = {str(value.name) for node in made.model.graph for value in node.outputs}
            names = self._names if there.issuperset(self._names) else self._ends
            observer = Observer(made.model, made.path, names, threads=self._execution.threads)
            found = (observer.outputs(feed, names) for feed in self._stream.feeds())
            return relative(compared(self._first(tuple(names)), found))

    def _first(self, names: tuple[str, ...]) -> Iterator[list[Any]]:
        """Yield what the first model gives, which is run once where that is little."""
        if names in self._kept:
            yield from self._kept[names]
            return
        room, kept = self._execution.max_memory // PART, list[list[Any]]()
        for values in self._stream.outputs(names):
            room -= sum(array.nbytes for array in values if isinstance(array, np.ndarray))
            if room >= 0:
                kept.append(values)
            yield values
        if room >= 0:
            self._kept[names] = kept


def _count(source: Source, dims: Mapping[str, int]) -> int:
    """Return how many inputs are made up: more of a small model that takes little."""
    infos = graph_infos(source.graph)
    if infos is None:
        return SAMPLES[0]
    sizes = [
        [axis_length(axis, f"{name}:{i}", dims) for i, axis in enumerate(info.shape)] for name, info in infos.items()
    ]
    fed = sum(np.dtype(info.dtype).itemsize * math.prod(size) for info, size in zip(infos.values(), sizes, strict=True))
    return min(max(SAMPLES[0], min(WORK // max(source.nbytes, 1), FED // max(fed, 1))), SAMPLES[1])
