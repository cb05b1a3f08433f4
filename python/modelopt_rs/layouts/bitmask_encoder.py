"""Tiles of a weight to the tensors of the sparse-bitmask layout."""

import math
from collections.abc import Sequence

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.dtypes import FLOATS
from modelopt_rs.layouts.bitmask import bitmask_tensors
from modelopt_rs.prune.sparse import compress_rows
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["Bitmask"]


class Bitmask(Transform):
    """Rows to the values that are not zero and a bit for each.

    Parameters
    ----------
    info : TensorInfo
        A weight of at least two axes.
    nonzero : int
        How many of its values are not zero.
    threads : int or None
    """

    def __init__(self, info: TensorInfo, nonzero: int, threads: int | None) -> None:
        self._info, self._threads = info, threads
        self.outputs: Sequence[TensorInfo] = bitmask_tensors(info, nonzero)
        self.row_multiple = info.rows // info.shape[0]
        values, bits = Buffer("u1", info.row_nbytes), Buffer("u1", -(-info.columns // 8))
        self.buffers = (values, bits, Buffer("i8", 2))  # offsets as they are made, and as they are written
        self._done = 0

    def __call__(self, array: Array) -> Rows:
        """Compress a tile."""
        outputs = array.reshape(-1, math.prod(self._info.shape[1:]))
        small = compress_rows(outputs, dtype=FLOATS[self._info.dtype], threads=self._threads)
        offsets = small.row_offsets[:-1] + self._done
        self._done += len(small.values)
        names = [output.name for output in self.outputs]
        return list(zip(names, (small.values, small.bitmask, offsets), strict=False))

    def end(self) -> Rows:
        """Return the shape."""
        return [(self.outputs[-1].name, np.array(self._info.shape, np.int64))]
