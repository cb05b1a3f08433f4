"""Inputs made up from a graph: numbers that a model can take, in shapes that its axes' names suggest."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from modelopt_rs._types import Array

__all__ = ["VALUES", "axis_length", "generate", "is_batch", "is_image", "is_sequence", "parts_of"]

# By what an open axis's name has in it, the first that fits.
LENGTHS: Final[tuple[tuple[tuple[str, ...], int], ...]] = (
    (("past", "cache"), 0),
    (("batch",), 1),
    (("seq", "len", "token", "time"), 16),
    (("height", "width"), 224),
)
IDS = 10  # how many ids there are where no table says it
VALUES: Final = ("usual", "positive", "zero", "image")
COLORS: Final = (1, 3, 4)  # how many channels an image has
SMALLEST: Final = 16  # its pixels along a side


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


def parts_of(axis: int | str | None) -> list[str]:
    """Return the names in what an open axis is called, which may be a sum.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.generate import parts_of
    >>> parts_of("past_length + sequence_length"), parts_of("n + 1"), parts_of(None)
    (['past_length', 'sequence_length'], ['n'], [])
    """
    if not isinstance(axis, str):
        return []
    return [part for each in axis.split("+") if (part := each.strip()) and not part.isdecimal()]


def is_batch(axis: int | str | None) -> bool:
    """Whether an axis is called a batch."""
    return isinstance(axis, str) and "batch" in axis.lower()


def is_sequence(axis: int | str | None) -> bool:
    """Whether an axis is called a sequence, old or new."""
    return isinstance(axis, str) and any(word in axis.lower() for i in (0, 2) for word in LENGTHS[i][0])


def is_image(dtype: str, shape: Sequence[int | str | None]) -> bool:
    """Whether an input may be images: of one, three or four channels, first or last, and of enough pixels.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.generate import is_image
    >>> [is_image("float32", shape) for shape in (("N", 3, 224, 224), (1, None, None, 3), (1, 8, 64, 64))]
    [True, True, False]
    """
    if len(shape) != 4 or not dtype.startswith("float"):
        return False
    sides = (shape[2:], shape[1:3])[shape[1] not in COLORS]
    colors = shape[1] in COLORS or shape[3] in COLORS
    return colors and all(not isinstance(side, int) or side >= SMALLEST for side in sides)


def _images(size: Sequence[int], channels_first: bool, rng: np.random.Generator) -> Array:
    """Make up images in the numbers of files, 0 to 255: amplitudes that fall with the frequency.

    So are those of pictures of anything (Field 1987, "Relations between the statistics of natural images").
    """
    last = size if channels_first else (size[0], size[3], size[1], size[2])
    height, width = last[2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # the mean
    amplitudes = np.fft.rfft2(rng.standard_normal(last)) / frequency
    found = np.fft.irfft2(amplitudes, (height, width))
    spread = found.std(axis=(2, 3), keepdims=True)
    found = np.clip(128 + 64 * found / np.where(spread > 0, spread, 1), 0, 255)
    return found if channels_first else np.moveaxis(found, 1, -1)


def generate(
    name: str,
    dtype: str,
    shape: Sequence[int | str | None],
    dims: Mapping[str, int],
    limits: Mapping[str, int],
    rng: np.random.Generator,
    values: str = "usual",
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
    values : {"usual", "positive", "zero", "image"}
        As above; or floats from 0 to 1, and integers and truth values that are all 1 (where the table has more than
        one row), or all 0; or what may be images as smooth ones of 0 to 255, and all others as usual.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.run.generate import generate
    >>> generate("attention_mask", "int64", ("batch", 3), {}, {}, np.random.default_rng(0))
    array([[1, 1, 1]])
    """
    size = [axis_length(axis, f"{name}:{i}", dims) for i, axis in enumerate(shape)]
    if values == "image" and is_image(dtype, shape) and all(size):
        return np.ascontiguousarray(_images(size, shape[1] in COLORS, rng).astype(dtype))
    if values in ("positive", "zero"):
        one = int(values == "positive" and limits.get(name, IDS) > 1)
        return np.asarray(rng.random(size) if dtype.startswith("float") else np.full(size, one)).astype(dtype)
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
    ids = min(limits.get(name, IDS), int(np.iinfo(dtype).max) + 1)
    if "position" in lower and size:
        return np.asarray(np.broadcast_to(np.arange(size[-1]) % ids, size)).astype(dtype)
    if not size and name not in limits:
        return np.ones(size, dtype)
    return np.asarray(rng.integers(0, ids, size)).astype(dtype)
