"""`Together`: several transforms of one tensor in one pass."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from modelopt_rs.errors import ScaleRangeError
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["Together"]


class Together(Transform):
    """Several codes of one weight, for their figures alone: nothing comes out.

    Attributes
    ----------
    able : list of Transform
        Those that its numbers were not too large for until now.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.able = list(transforms)
        self.outputs: Sequence[TensorInfo] = ()
        self.row_multiple = math.lcm(*(each.row_multiple for each in transforms))
        self.buffers = [buffer for each in transforms for buffer in each.buffers]
        self.sweeps = max(each.sweeps for each in transforms)
        self._turn = 0

    def _active(self) -> Iterator[Transform]:
        return (each for each in list(self.able) if self._turn < each.sweeps)

    def begin(self, rows: int) -> None:
        """Make the buffers of each."""
        for each in self.able:
            each.begin(rows)

    def __call__(self, array: Any) -> Rows:
        """Take a tile through each; none of them changes it."""
        for each in self._active():
            try:
                each(array)
            except ScaleRangeError:
                self.able.remove(each)
        return ()

    def end(self) -> Rows:
        """End the sweep of each."""
        for each in self._active():
            each.end()
        self._turn += 1
        return ()
