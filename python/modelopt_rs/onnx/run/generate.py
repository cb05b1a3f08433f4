"""Inputs made up from a graph: numbers that a model can take, in shapes that its axes' names suggest."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from modelopt_rs._types import Array

__all__ = ["axis_length", "generate"]

# By what an open axis's name has in it, the first that fits.
LENGTHS: Final[tuple[tuple[tuple[str, ...], int], ...]] = (
    (("past", "cache"), 0),
    (("batch",), 1),
    (("seq", "len", "token", "time"), 16),
    (("height", "width"), 224),
)
IDS = 10  # how many ids there are where no table says it


def axis_length(axis: int | str | None, place: str, dims: Mapping[str, int]) -> int:
    """Return how long an axis of a generated input is.

    Parameters
    ----------
    axis : int, str or None
        Its length, its name (or a sum of names and numbers), or None.
    place : str
        "INPUT:AXIS".
    dims : mapping
        Lengths by name or place.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.generate import axis_length
    >>> axis_length("past_length + sequence_length", "mask:1", {"past_length": 4})
    20
    """
    if isinstance(axis, int):
        return axis
    if place in dims:
        return dims[place]
    if axis is None:
        return 1
    if axis in dims:
        return dims[axis]
    if "+" in axis:
        parts = (part.strip() for part in axis.split("+"))
        return sum(int(part) if part.isdecimal() else axis_length(part, place, dims) for part in parts)
    name = axis.lower()
    return next((length for words, length in LENGTHS if any(word in name for word in words)), 1)


def generate(
    name: str,
    dtype: str,
    shape: Sequence[int | str | None],
    dims: Mapping[str, int],
    limits: Mapping[str, int],
    rng: np.random.Generator,
) -> Array:
    """Make up one input.

    Floats are standard normal, masks ones, token types zeros, positions 0, 1, 2 ..., a single integer 1, other
    integers ids below the length of the table that they are looked up in (10 where there is none), 8-bit ones any.

    Parameters
    ----------
    name : str
        Of the input.
    dtype : str
        As NumPy spells it.
    shape : sequence
        Lengths or names of its axes.
    dims : mapping
        Lengths of open axes.
    limits : mapping
        How many ids an input may have.
    rng : Generator

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.run.generate import generate
    >>> generate("attention_mask", "int64", ("batch", 3), {}, {}, np.random.default_rng(0))
    array([[1, 1, 1]])
    """
    size = [axis_length(axis, f"{name}:{i}", dims) for i, axis in enumerate(shape)]
    lower = name.lower()
    if "mask" in lower:
        return np.ones(size, dtype)
    if dtype.startswith("float"):
        return np.asarray(rng.standard_normal(size)).astype(dtype)
    if dtype == "bool":
        return np.asarray(rng.integers(0, 2, size)).astype(bool)
    if dtype in ("int8", "uint8") and name not in limits:
        info = np.iinfo(dtype)
        return np.asarray(rng.integers(info.min, info.max + 1, size)).astype(dtype)
    if "token_type" in lower or "segment" in lower:
        return np.zeros(size, dtype)
    ids = limits.get(name, IDS)
    if "position" in lower and size:
        return np.asarray(np.broadcast_to(np.arange(size[-1]) % ids, size)).astype(dtype)
    if not size and name not in limits:
        return np.ones(size, dtype)
    return np.asarray(rng.integers(0, ids, size)).astype(dtype)
