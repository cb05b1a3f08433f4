"""What is held besides a tile, declared: the budget of memory follows from it."""

from dataclasses import dataclass, replace

import numpy as np

from modelopt_rs._types import Array

__all__ = ["Buffer"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array that is held besides a tile.

    Attributes
    ----------
    dtype : str
        As NumPy spells it.
    elements : int
        How many, for each `per` rows of the tile.
    per : int
        0: so many in all, whatever the tile.

    Examples
    --------
    >>> from modelopt_rs.stream.buffer import Buffer
    >>> scales = Buffer("f4", 8, per=2)
    >>> scales.nbytes(5), scales.empty(5).shape
    (96, (3, 8))
    """

    dtype: str
    elements: int
    per: int = 1

    def _rows(self, rows: int) -> int:
        return -(-rows // self.per) if self.per else 1

    def nbytes(self, rows: int) -> int:
        """Return its bytes for a tile of so many rows."""
        return np.dtype(self.dtype).itemsize * self.elements * self._rows(rows)

    def empty(self, rows: int) -> Array:
        """Make it: a row for each `per` rows of the tile."""
        return np.empty((self._rows(rows), self.elements), self.dtype)

    def times(self, n: int, per: int) -> "Buffer":
        """Return `n` of it for each `per` rows."""
        return replace(self, elements=n * self.elements, per=per)
