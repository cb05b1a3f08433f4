"""Tiles to codes with two levels of scales: one for each block, and one for the whole tensor, which is found first."""

from collections.abc import Sequence

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.dtypes import FLOATS, widened
from modelopt_rs.layouts.format_codec import FormatEncoder
from modelopt_rs.layouts.format_spec import FormatSpec
from modelopt_rs.stream.model import TensorInfo
from modelopt_rs.stream.transform import Rows

__all__ = ["TwoLevelEncoder"]


class TwoLevelEncoder(FormatEncoder):
    """As `FormatEncoder`; a first sweep finds the largest magnitude of the tensor, from which the global scale follows.

    The third output is the global scale.
    """

    sweeps = 2

    def __init__(
        self,
        info: TensorInfo,
        spec: FormatSpec,
        outputs: Sequence[TensorInfo],
        nonfinite: str,
        threads: int | None,
    ) -> None:
        super().__init__(info, spec, outputs, nonfinite, threads)
        self._global_info = outputs[2]
        self._global: Array = np.ones((), np.float32)
        self._largest, self._looked = 0.0, False

    def __call__(self, array: Array) -> Rows:
        """Look at a tile; quantize it in the second sweep."""
        if self._looked:
            return super().__call__(array)
        dtype = FLOATS[self._info.dtype]
        # Of bfloat16 its bits.
        largest = float(widened(_core.absmax(array, None, False, dtype, self._threads), self._info.dtype))
        if not np.isfinite(largest):
            largest = self._finite_absmax(array)
        self._largest = max(self._largest, largest)
        return []

    def _finite_absmax(self, array: Array) -> float:
        if self._nonfinite == "raise":
            raise ValueError('quantize: x has non-finite values; pass nonfinite="saturate" to map them')
        x = np.abs(np.asarray(widened(array, self._info.dtype), np.float32))
        return float(np.max(x, where=np.isfinite(x), initial=0.0))

    def _absmax(self) -> float:
        return self._largest

    def end(self) -> Rows:
        """Return the global scale after the second sweep."""
        if not self._looked:
            self._looked = True
            return []
        super().end()
        return [(self._global_info.name, self._global.reshape(1))]
