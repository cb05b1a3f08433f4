"""Units along an axis, as one label for each index, and which of them turn out to be the same."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["NONE", "Labels", "Units", "segments"]

Labels: TypeAlias = NDArray[np.int64]
"""For each index along an axis the unit that it belongs to, or `NONE`."""

NONE = -1


class Units:
    """Units of which some turn out to live and die together.

    Parameters
    ----------
    n : int
        How many there are at first, numbered from 0.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.crop.units import Units
    >>> units = Units(4)
    >>> units.join(np.array([0, -1, 2]), np.array([1, 3, 2]))
    >>> units.find(np.array([0, 1, 2, 3, -1]))
    array([ 0,  0,  2,  3, -1])
    """

    def __init__(self, n: int) -> None:
        self._first = np.arange(n)

    def find(self, labels: Labels) -> Labels:
        """Return the labels with one number for all units that are the same."""
        return np.where(labels < 0, NONE, self._first[labels])

    def join(self, a: Labels, b: Labels) -> None:
        """Make two units the same wherever both arrays have one."""
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        while True:
            left, right = self._first[a], self._first[b]
            if (left == right).all():
                return
            np.minimum.at(self._first, np.maximum(left, right), np.minimum(left, right))
            while (shorter := self._first[self._first]).tobytes() != self._first.tobytes():
                self._first = shorter

    def fold(self, rows: Labels) -> Labels:
        """Make all units within each row of a matrix the same; return a label for each row."""
        highest = rows.max(axis=1)
        self.join(rows, np.broadcast_to(highest[:, None], rows.shape))
        return self.find(highest)


def segments(labels: Labels, units: int) -> list[tuple[int, int]] | None:
    """Return where the units lie as (offset, size) of runs of all units in their order; None if they lie otherwise.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.onnx.crop.units import segments
    >>> segments(np.array([-1, 0, 0, 1, 1, 0, 1]), 2)
    [(1, 2), (5, 1)]
    """
    found: list[tuple[int, int]] = []
    place = 0
    while place < len(labels):
        if labels[place] < 0:
            place += 1
            continue
        others = np.flatnonzero(labels[place:] != labels[place])
        size = int(others[0]) if len(others) else len(labels) - place
        stop = place + size * units
        if stop > len(labels) or (labels[place:stop] != np.repeat(np.arange(units), size)).any():
            return None
        found.append((place, size))
        place = stop
    return found
