"""What layers take: a few rows of their inputs, from samples that the float model is run on."""

import os
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from modelopt_rs._types import Array
from modelopt_rs.errors import FormatError, UnsupportedError
from modelopt_rs.onnx.measure.layer_inputs import Data, InputStream

__all__ = ["Seen", "see"]

SAMPLES: Final = 8  # that the model is run on
ROWS: Final = 64  # of each sample that are kept of what a product takes
STEPS: Final = 64  # of a sequence, and pixels of an image along each side
LEAST: Final = 8  # of these
BATCH: Final = 2  # images

Seen: TypeAlias = Mapping[str, Sequence[Array]]
"""By name of a value what is kept of it, one array for each sample."""


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
    try:
        stream = InputStream(model, path, list(values), data, threads=threads, max_memory=max_memory, most=SAMPLES)
    except (FormatError, UnsupportedError):
        if data.made_up:
            return None
        raise
    seen: dict[str, list[Array]] = {name: [] for name in values}
    each = max_memory // 8 // max(len(values) * (stream.most or 1), 1)
    for name, array in stream.values(list(values)):
        part = cut(array, values[name], each)
        if part is not None:
            seen[name].append(part)
        del array  # before the next run
    return seen


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
    >>> from modelopt_rs.onnx.measure.layer_samples import cut
    >>> cut(np.zeros((2, 100, 8), np.float32), "rows", 1024).shape
    (32, 8)
    """
    if not array.size:
        return None
    if kind == "rows" and array.ndim:
        rows = array.reshape(-1, array.shape[-1])
        count = min(len(rows), ROWS, most // max(rows[:1].nbytes, 1))
        part = rows[np.linspace(0, len(rows) - 1, count).astype(int)] if count else rows[:0]
        return part.copy() if part.nbytes else None
    length, batch = STEPS, BATCH
    while length >= LEAST:
        # Of states there are one or two, for the directions: as many as there are.
        shape = (batch, None, *[length] * (array.ndim - 2)) if kind == "maps" else (length,)
        part = array[tuple(map(slice, shape))] if array.ndim else array
        if part.nbytes <= most:
            return part.copy() if part.nbytes else None
        length, batch = length // 2, 1
    return None
