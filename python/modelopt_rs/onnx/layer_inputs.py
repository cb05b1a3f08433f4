"""What layers take: a few rows of their inputs, from samples that the float model is run on in onnxruntime."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.errors import FormatError, UnsupportedError
from modelopt_rs.onnx.int8.observe import Observer
from modelopt_rs.onnx.run.inputs import Feed, known_of
from modelopt_rs.onnx.run.samples import Given, Samples
from modelopt_rs.onnx.run.sizes import Search
from modelopt_rs.planning.run import RunOptions

__all__ = ["Data", "Seen", "see"]

SAMPLES: Final = 8  # that the model is run on
ROWS: Final = 64  # of each sample that are kept of what a product takes
STEPS: Final = 64  # of a sequence, and pixels of an image along each side
LEAST: Final = 8  # of these
BATCH: Final = 2  # images

Seen: TypeAlias = Mapping[str, Sequence[Array]]
"""By name of a value what is kept of it, one array for each sample."""


@dataclass(frozen=True, slots=True)
class Data:
    """Where the inputs of the model come from.

    Attributes
    ----------
    calibrate : path, mapping, iterable or callable, optional
        Calibration data: what is taken first.
    run : RunOptions, optional
        Inputs that are given or how they are made up; None: only what calibrates.
    """

    calibrate: Given | None
    run: RunOptions | None

    @property
    def words(self) -> str | None:
        """What they are; None: there are none."""
        if self.calibrate is not None:
            return "calibration data"
        if self.run is None:
            return None
        # What an iterator has is good for one pass, which is that of the check.
        given = self.run.inputs is not None and not isinstance(self.run.inputs, Iterator)
        return "the given inputs" if given else "made-up inputs"


def see(
    model: ir.Model,
    path: str | os.PathLike[str],
    values: Mapping[str, str],
    data: Data,
    *,
    threads: int | None,
    max_memory: int,
) -> Seen | None:
    """Run a model, and keep a few rows of values; None where nothing is given and nothing could be made up.

    Parameters
    ----------
    model : Model
        As it was read from `path`.
    path : path
    values : mapping
        By name of a value what takes it: "rows" (a product), "maps" (a convolution) or "steps" (a recurrent layer).
    data : Data
    threads : int or None
    max_memory : int
        The bytes that runs may be expected to take; an eighth is for what is kept.

    Raises
    ------
    ValueError, TypeError
        If what is given does not fit the model.
    """
    made_up = data.words == "made-up inputs"
    try:
        observer = Observer(model, path, list(values), threads=threads)
        feeds, count = _feeds(model, observer, path, data, max_memory)
    except (FormatError, UnsupportedError):
        if made_up:
            return None
        raise
    seen: dict[str, list[Array]] = {name: [] for name in values}
    each = max_memory // 8 // max(len(values) * count, 1)

    def keep(name: str, array: Array) -> None:
        kept = cut(array, values[name], each)
        if kept is not None:
            seen[name].append(kept)

    observer.run(feeds, keep, list(values))
    return seen


def _feeds(
    model: ir.Model, observer: Observer, path: str | os.PathLike[str], data: Data, max_memory: int
) -> tuple[Iterable[Feed], int]:
    """Return what the model is run on, and how many these are at most."""
    infos, run = observer.infos, data.run
    if data.calibrate is not None:
        return itertools.islice(Samples(data.calibrate, infos, path), SAMPLES), SAMPLES
    assert run is not None  # or there would be no words
    if data.words == "the given inputs":
        assert run.inputs is not None
        return itertools.islice(Samples(run.inputs, infos, path, "inputs", run.dims), SAMPLES), SAMPLES
    outputs = [str(value.name) for value in model.graph.outputs]
    search = Search(lambda feed: observer.outputs(feed, outputs), infos, known_of(infos, path), run, max_memory)
    feeds = search().feeds[::-1][:SAMPLES]  # the small sizes first: in the first run few values come out at a time
    return feeds, len(feeds)


def cut(array: Array, kind: str, most: int) -> Array | None:
    """Return a copy of some of a value, the same of the same value; None where even that is too large, or nothing.

    Parameters
    ----------
    array : ndarray
    kind : {"rows", "maps", "steps"}
    most : int
        Bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.layer_inputs import cut
    >>> cut(np.zeros((2, 100, 8), np.float32), "rows", 1024).shape
    (32, 8)
    """
    if kind == "rows" and array.ndim:
        rows = array.reshape(-1, array.shape[-1])
        count = min(len(rows), ROWS, most // max(rows[:1].nbytes, 1))
        kept = rows[np.linspace(0, len(rows) - 1, count).astype(int)] if count else rows[:0]
        return kept.copy() if kept.nbytes else None
    length, batch = STEPS, BATCH
    while length >= LEAST:
        # Of states there are one or two, for the directions: as many as there are.
        shape = (batch, None, *[length] * (array.ndim - 2)) if kind == "maps" else (length,)
        kept = array[tuple(map(slice, shape))] if array.ndim else array
        if kept.nbytes <= most:
            return kept.copy() if kept.nbytes else None
        length, batch = length // 2, 1
    return None
