"""Scales and codes of a layer by what is known of its inputs: for weights of files, whose codes lie in given arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, Parts, Spec
from modelopt_rs.quant.search import Scales

__all__ = ["ByInputs", "Moments"]

Moments = Callable[[], Array]
"""Returns of a layer's inputs what `gptq` takes, (in, in), or their mean squares, (in,), in float64.

Of a convolution (groups, in, in): so many parts of its rows have inputs of their own. (0,) where nothing is known.
"""

PASS: Final = ("groups", False, 0.01, 128)
"""act_order, static_groups, damp and block_size of `gptq`.

MiniLM at 4 bits symmetric, groups of 32, mean and lowest cosine: 0.9889 and 0.9790; without an order 0.9882 and 0.9789;
by single columns with static groups 0.9885 and 0.9767, with a damp of 0.05 0.9888 and 0.9715.
"""


@dataclass(frozen=True, slots=True)
class ByInputs(Scales):
    """Codes by `gptq` where second moments are known; by a search that weighs columns where mean squares are.

    Attributes
    ----------
    moments : callable
        Called once for each array.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.quant.by_inputs import ByInputs
    >>> ByInputs("mse", None, lambda: np.array([4.0, 1.0])).importances(3)
    array([1.  , 0.25, 0.  ], dtype=float32)
    """

    # Of a field without a default there is no other way behind those that have one.
    moments: Moments = lambda: np.ones(0)

    def quantize(self, x: Array, parts: Parts, spec: Spec, nonfinite: str, dtype: Bf16, threads: int | None) -> None:
        """Write codes, scale and zero point of whole rows."""
        moments = self.moments()
        if moments.ndim == 1:
            Scales.quantize(self, x, parts, spec, nonfinite, dtype, threads)
            return
        groups = moments.reshape(-1, *moments.shape[-2:])
        rows = len(x) // len(groups)
        for i, of_group in enumerate(groups):
            at = slice(i * rows, (i + 1) * rows)
            zero_point = None if parts[2] is None else parts[2][at]
            self._by_gptq(x[at], of_group, (parts[0][at], parts[1][at], zero_point, None, None), spec, dtype, threads)
        self.check(parts[1])

    def _by_gptq(self, x: Array, moments: Array, parts: Parts, spec: Spec, dtype: Bf16, threads: int | None) -> None:
        if x.shape[-1] == len(moments):
            _core.gptq(x, moments, parts, spec, (self.search, self.dtype), PASS, (dtype, threads))
        else:
            self._filled(x, moments, parts, spec, dtype, threads)

    def _filled(self, x: Array, moments: Array, parts: Parts, spec: Spec, dtype: Bf16, threads: int | None) -> None:
        """Write codes of rows that zeros fill up, which meet no input."""
        columns, bits = len(moments), 8 * parts[0].shape[-1] // x.shape[-1]
        found: Parts = (np.empty((len(x), -(-columns * bits // 8)), np.uint8), *parts[1:])
        _core.gptq(x[:, :columns], moments, found, spec, (self.search, self.dtype), PASS, (dtype, threads))
        dense = np.empty((len(x), columns), np.float32)
        _core.dequantize(found, spec, dense, None, threads)
        # What has a code keeps it, and zeros get theirs.
        filled = np.pad(dense, ((0, 0), (0, x.shape[-1] - columns)))
        _core.quantize_given(filled, parts[0], (parts[1], parts[2]), spec, "raise", None, threads)

    def importances(self, columns: int) -> Array | None:
        """Return the mean squares; None where nothing is searched, or nothing known."""
        squares = np.empty(0) if self.search is None else self.moments()
        if not squares.size:
            return None
        most = squares.max(initial=0.0)
        # Only their ratios count, and float32 holds those.
        weights = (squares / most if most > 0.0 else np.ones_like(squares)).astype(np.float32)
        return np.pad(weights, (0, columns - len(weights)))
