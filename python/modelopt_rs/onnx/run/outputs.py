"""How far what one model gives is from what another gives: figures of outputs that add up over runs."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.report.run import OutputDifference
from modelopt_rs.stream.error_figures import ErrorFigures

__all__ = ["OutputFigures"]


@dataclass(slots=True)
class OutputFigures:
    """The figures of one output so far.

    Attributes
    ----------
    figures : ErrorFigures
        Sums over the elements; infinite where one output is NaN or infinite and the other not the same.
    compared : int
        How many elements the figures are of: what is NaN or the same infinity in both says nothing.
    comparable : bool
        Whether both gave tensors of numbers, truth values or strings, every time.
    mismatch : tuple, optional
        The shapes of both where they differ.
    """

    name: str
    threads: int | None = None
    dtype: str = ""
    shape: tuple[int, ...] = ()
    figures: ErrorFigures = field(default_factory=ErrorFigures)
    floats: bool = False
    elements: int = 0
    equal: int = 0
    compared: int = 0
    nonfinite: int = 0
    comparable: bool = True
    mismatch: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def add(self, before: Any, after: Any) -> None:
        """Add what both have given in one run."""
        if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
            self.comparable = False  # sequences and maps
            return
        strings = [array.dtype.kind in "OUS" for array in (before, after)]
        if any(strings) and not all(strings):
            self.comparable = False
            return
        if not self.dtype:
            self.dtype, self.shape = ("str" if strings[0] else before.dtype.name), before.shape
            self.floats = before.dtype.kind == "f"
        if before.shape != after.shape:
            self.mismatch = self.mismatch or (before.shape, after.shape)
            return
        self.elements += before.size
        self.equal += int(np.count_nonzero(before == after))
        if strings[0]:
            self.compared += before.size
            self.figures += _strings(before, after)
        else:
            self.figures += self._numbers(before, after)

    def _numbers(self, before: Array, after: Array) -> ErrorFigures:
        x, y = (array.astype(np.float64).reshape(1, -1) for array in (before, after))
        lost = 0
        if x.size and not (np.isfinite(x).all() and np.isfinite(y).all()):
            finite = np.isfinite(x) & np.isfinite(y)
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            lost = int(np.count_nonzero(~finite & ~same))
            x, y = x[finite].reshape(1, -1), y[finite].reshape(1, -1)
        figures = ErrorFigures(*_core.error_stats(x, y, None, self.threads)) if x.size else ErrorFigures()
        self.nonfinite += lost
        self.compared += x.size + lost
        return figures + ErrorFigures(dd=math.inf, max_error=math.inf) if lost else figures

    def difference(self) -> OutputDifference:
        """Return the figures as a report has them."""
        return OutputDifference(
            name=self.name,
            dtype=self.dtype,
            shape=self.shape,
            elements=self.elements,
            sqnr_db=self.figures.sqnr_db if self.floats and self.compared else None,
            cosine=self.figures.cosine if self.floats and self.compared else None,
            max_error=self.figures.max_error,
            agree=None if self.floats else (self.equal / self.elements if self.elements else 1.0),
            nonfinite=self.nonfinite,
        )


def _strings(before: Array, after: Array) -> ErrorFigures:
    """Strings are equal or infinitely far apart."""
    return ErrorFigures() if np.array_equal(before, after) else ErrorFigures(dd=math.inf, max_error=math.inf)
