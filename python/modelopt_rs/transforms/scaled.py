"""A whole weight times factors along its axes, before another transform."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.dtypes import rounded, widened
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Rows, Transform

__all__ = ["Scaled"]


class Scaled(Transform):
    """Multiplies a weight of float32, float16 or bfloat16 in float32, and hands it to another transform in its dtype.

    Parameters
    ----------
    info : TensorInfo
    factors : mapping
        By axis a number for each index.
    then : Transform

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.stream.model import TensorInfo
    >>> from modelopt_rs.stream.transform import Copy
    >>> from modelopt_rs.transforms.scaled import Scaled
    >>> info = TensorInfo("w", "F32", (2, 2), 16)
    >>> [(_, array)] = Scaled(info, {0: np.array([1, 2], np.float32)}, Copy(info))(np.ones((2, 2), np.float32))
    >>> array
    array([[1., 1.],
           [2., 2.]], dtype=float32)
    """

    def __init__(self, info: TensorInfo, factors: Mapping[int, Array], then: Transform) -> None:
        self._shape, self._factors, self._then, self._dtype = info.shape, factors, then, info.dtype
        self.outputs: Sequence[TensorInfo] = then.outputs
        self.buffers = [*then.buffers, Buffer("f4", math.prod(info.shape), per=0)]
        self.row_multiple, self.sweeps = info.rows, then.sweeps

    @property
    def figures(self) -> ErrorFigures | None:
        """How far the codes are from the weight times its factors, if the other transform knows it."""
        found = getattr(self._then, "figures", None)
        return found if isinstance(found, ErrorFigures) else None

    def begin(self, rows: int) -> None:
        """Get the other transform ready."""
        self._then.begin(rows)

    def __call__(self, array: Array) -> Rows:
        """Multiply the weight."""
        whole = widened(array, self._dtype).reshape(self._shape)
        for axis, factor in self._factors.items():
            shape = [-1 if i == axis else 1 for i in range(len(self._shape))]
            whole = np.multiply(whole, factor.reshape(shape), dtype=np.float32)
        return self._then(rounded(whole.reshape(array.shape), self._dtype))

    def end(self) -> Rows:
        """Return what the other transform has left."""
        return self._then.end()
