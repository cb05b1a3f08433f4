"""Gradients added up between steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16
from modelopt_rs.optim.arrays import as_arrays, by_precision, wide_dtype
from modelopt_rs.optim.average import accumulate_call

__all__ = ["Accumulated"]


class Accumulated:
    """Sums of gradients, by the place of their parameter, and of how many.

    Parameters
    ----------
    params : sequence of ndarray
        Not written.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.optim.accumulated import Accumulated
    >>> sums = Accumulated([np.zeros(2, np.float32), np.zeros(1, np.float32)])
    >>> for x in (1.0, 2.0):
    ...     sums.add([np.full(2, x, np.float32), None], dtype=None, threads=None)
    >>> sums.sums("step")
    ([array([3., 3.], dtype=float32), None], 2)
    """

    def __init__(self, params: Sequence[Array]) -> None:
        self._params, self.count = params, 0
        # Arrays stay when sums are cleared: new pages cost more than zeros. Those that are not in `_summed` count as 0.
        self._totals: dict[int, Array] = {}
        self._summed: set[int] = set()

    def add(self, given: list[Array | None], *, dtype: Bf16, threads: int | None) -> None:
        """Add a gradient for each parameter; None adds nothing."""
        grads = as_arrays(given)
        places = [i for i, g in enumerate(grads) if g is not None]
        for i in places:
            if i not in self._totals:
                self._totals[i] = np.zeros(self._params[i].shape, wide_dtype(self._params[i]))
            elif i not in self._summed:
                self._totals[i].fill(0)
        calls = [accumulate_call(*lists) for lists in by_precision((self._totals[i], grads[i]) for i in places)]
        try:
            _core.optim_step(calls, "propagate", dtype, threads)
        except KeyboardInterrupt:  # it is raised when the call has returned
            self._count(places)
            raise
        self._count(places)

    def _count(self, places: list[int]) -> None:
        self._summed.update(places)
        self.count += 1

    def sums(self, where: str) -> tuple[list[Array | None], int]:
        """Return the sum for each parameter, None where nothing was added, and of how many it is; not copied."""
        if not self.count:
            raise ValueError(f"{where}: grads must be given where none were accumulated, got None")
        return [self._totals[i] if i in self._summed else None for i in range(len(self._params))], self.count

    def clear(self) -> None:
        """Forget all: what is there is zeroed when it is added to."""
        self._summed.clear()
        self.count = 0

    def set(self, totals: dict[int, Array], count: int) -> None:
        """Go on from such sums, which are kept; of none there are none."""
        self._totals = totals if count else {}
        self._summed, self.count = set(self._totals), count

    def as_dict(self) -> dict[str, Any]:
        """Return "count" and "sums", by the place of the parameter; not copied."""
        return {"count": self.count, "sums": {i: self._totals[i] for i in sorted(self._summed)}}
