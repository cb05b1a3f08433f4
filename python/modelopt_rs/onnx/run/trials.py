"""Which lengths the open axes of a model's inputs may have, in the order in which they are tried."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from modelopt_rs.onnx.run.generate import axis_length, is_batch, parts_of
from modelopt_rs.onnx.run.inputs import InputInfo

__all__ = ["LADDER", "lengths", "open_axes"]

# Lengths that open axes have in turn: powers of two, what images and windows of sound have, multiples of 32.
LADDER: Final = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 336, 384, 416, 448, 480, 512,
                 518, 576, 640, 768, 800, 1024)  # fmt: skip
PAIRS: Final = (8, 16, 32, 48, 64, 128, 224, 320)


def open_axes(infos: Mapping[str, InputInfo], dims: Mapping[str, int]) -> dict[str, str]:
    """Return the axes whose length nobody has said, by name (by INPUT:NUMBER where they have none), and their kind.

    Parameters
    ----------
    infos : mapping
        The inputs of the model.
    dims : mapping
        Lengths that are given.

    Returns
    -------
    dict of str to {"batch", "past", "free"}
        Axes of one name have one length.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.inputs import InputInfo
    >>> from modelopt_rs.onnx.run.trials import open_axes
    >>> infos = {"x": InputInfo("x", "float32", ("N", 3, "h", None))}
    >>> open_axes(infos, {"h": 64})
    {'N': 'batch', 'x:3': 'free'}
    """
    found: dict[str, str] = {}
    for info in infos.values():
        for i, axis in enumerate(info.shape):
            place = f"{info.name}:{i}"
            if isinstance(axis, int) or place in dims:
                continue
            for part in parts_of(axis) or [place]:
                if part not in dims:
                    found.setdefault(part, _kind(axis and part, i, len(info.shape)))
    return found


def _kind(name: str | None, at: int, rank: int) -> str:
    if name is not None and axis_length(name, "", {}) == 0:
        return "past"
    if name is not None and is_batch(name):
        return "batch"
    unsaid = name is None or axis_length(name, "", {}) == 1
    return "batch" if unsaid and at == 0 and rank > 1 else "free"


def lengths(axes: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Give lengths of open axes: none (what their names suggest), then small to large, all alike and one or two apart.

    Parameters
    ----------
    axes : mapping
        As `open_axes` returns them. All that are called a batch are 1 long, but at the end.

    Examples
    --------
    >>> from modelopt_rs.onnx.run.trials import lengths
    >>> found = list(lengths({"n": "batch", "h": "free", "w": "free"}))
    >>> found[:4], {"h": 48, "w": 320} in found, found[-1]
    ([{}, {'h': 1, 'w': 1}, {'h': 2, 'w': 2}, {'h': 4, 'w': 4}], True, {'n': 1024, 'h': 1024, 'w': 1024})
    """
    free = [key for key, kind in axes.items() if kind == "free"]
    short = dict.fromkeys(free, 1)
    yield {}
    for n in LADDER if free else ():
        yield dict.fromkeys(free, n)
    if len(free) > 1:
        yield from ({**short, key: n} for n in LADDER[1:] for key in free)
        for n, m in itertools.product(PAIRS, repeat=2):
            if n != m:
                yield from ({**short, one: n, other: m} for one, other in itertools.combinations(free, 2))
    if len(axes) > len(free):
        yield from (dict.fromkeys(axes, n) for n in LADDER[1:])
