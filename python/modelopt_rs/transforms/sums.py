"""Statistics of rows that come a few at a time."""

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.prune.sparsegpt import Hessian
from modelopt_rs.prune.wanda import ColumnNorms

__all__ = ["Sums"]


class Sums:
    """Statistics that take rows some at a time: products of few rows cost as much as those of as many as columns."""

    def __init__(self, statistics: ColumnNorms | Hessian) -> None:
        self.statistics = statistics
        self._rows: list[Array] = []
        self._count = 0

    def add(self, rows: Array) -> None:
        """Take rows in, now or later."""
        self._rows.append(rows)
        self._count += len(rows)
        if isinstance(self.statistics, ColumnNorms) or self._count >= rows.shape[1]:
            self.flush()

    def flush(self) -> None:
        """Take in what is left."""
        if self._count:
            self.statistics.update(self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows))
        self._rows, self._count = [], 0
