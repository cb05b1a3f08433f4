"""Inputs made up from a graph: numbers that a model can take, in shapes that its axes' names suggest."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelopt_rs.files.model import Array

__all__ = ["axis_length", "generate", "vocabulary"]

# By what an open axis's name has in it, the first that fits.
LENGTHS: Final[tuple[tuple[tuple[str, ...], int], ...]] = (
    (("past", "cache"), 0),
    (("batch",), 1),
    (("seq", "len", "token", "time"), 16),
    (("height", "width"), 224),
)
IDS = 10  # how many ids there are where no table says it
# What hands an input on to a table without changing its numbers.
CARRIERS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice")
TABLES: Final[dict[str, int]] = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherBlockQuantized": 1,
    "EmbedLayerNormalization": 0,
}


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
    >>> from modelopt_rs.graph.generate import axis_length
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
    >>> from modelopt_rs.graph.generate import generate
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


def vocabulary(path: str | os.PathLike[str]) -> dict[str, int]:
    """Return how many rows the tables have that the inputs of a model are looked up in, by input.

    Examples
    --------
    With a file of a model that looks words up::

        vocabulary("model.onnx")  # {'input_ids': 30522}
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    names = {node.name for node in graph.input}
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    source = {name: name for name in names}
    limits: dict[str, int] = {}
    for node in graph.node:  # in the order of their work
        inputs = list(node.input)
        if node.op_type in CARRIERS and inputs and inputs[0] in source:
            source[node.output[0]] = source[inputs[0]]
        elif node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None:
                shapes[node.output[0]] = list(value.dims)
        elif node.op_type in TABLES and len(inputs) > 1:
            _limit(node, source, shapes, limits)
    return limits


def _limit(node: Any, source: Mapping[str, str], shapes: Mapping[str, list[int]], limits: dict[str, int]) -> None:
    """Take note of one look-up."""
    at = TABLES[node.op_type]
    name = source.get(node.input[at])
    table = node.input[0] if at else (node.input[2] if len(node.input) > 2 else "")
    if name is None or table not in shapes or not shapes[table]:
        return
    axis = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
    shape = shapes[table]
    rows = shape[axis] if -len(shape) <= axis < len(shape) else 0
    if rows > 0:
        limits[name] = min(rows, limits.get(name, rows))
