"""One tensor's tiles in, rows of named tensors out: what every operation that writes a model file is made of."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from modelopt_rs._types import Array
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import TensorInfo

__all__ = ["Copy", "Rows", "Transform"]

Rows: TypeAlias = Sequence[tuple[str, Array]]
"""Rows, each with the name of the output that they belong to."""


class Transform(Protocol):
    """What becomes of one tensor. Before `begin` it is but a specification: it can be pickled, and runs anywhere.

    Attributes
    ----------
    outputs : sequence of TensorInfo
        The tensors that it makes.
    buffers : sequence of Buffer
        What it holds besides a tile.
    row_multiple : int
        Every tile but the last has a multiple of so many rows.
    sweeps : int
        How often it must see the tensor from the first tile to the last.
    """

    outputs: Sequence[TensorInfo]
    buffers: Sequence[Buffer] = ()
    row_multiple: int = 1
    sweeps: int = 1

    def begin(self, rows: int) -> None:
        """Get ready for tiles of at most `rows` rows."""
        return

    def __call__(self, array: Array) -> Rows:
        """Take the next tile, which may be overwritten; return what is made of it."""

    def end(self) -> Rows:
        """Return what is left to write after the last tile of a sweep."""
        return ()

    def starts(self, row: int) -> Mapping[str, int] | None:
        """Return the row of each output at which begins what is made of rows from `row` on.

        None where only all rows together can be taken through it. A part that is not the last has no `end`.
        """
        return {info.name: 0 for info in self.outputs} if row == 0 else None


class Copy(Transform):
    """The transform that changes nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.files import TensorInfo
    >>> from modelopt_rs.stream.transform import Copy
    >>> Copy(TensorInfo("fc.bias", "F32", (2,), 8))(np.ones((2, 1), np.float32))[0][0]
    'fc.bias'
    """

    def __init__(self, info: TensorInfo) -> None:
        self.outputs: Sequence[TensorInfo] = [info]
        self._name = info.name

    def __call__(self, array: Array) -> Rows:
        """Return the tile as it is."""
        return [(self._name, array)]

    def starts(self, row: int) -> Mapping[str, int] | None:
        """Return the same row."""
        return {self._name: row}
