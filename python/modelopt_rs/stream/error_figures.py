"""How far what was made of weights is from them: sums that add up over tiles and tensors."""

import math
from dataclasses import dataclass

__all__ = ["ErrorFigures"]


@dataclass(frozen=True, slots=True)
class ErrorFigures:
    """How far y is from its reference x: sums over elements, which add up over tiles and tensors."""

    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0
    dd: float = 0.0
    max_error: float = 0.0

    def __add__(self, other: "ErrorFigures") -> "ErrorFigures":
        # max() would drop a NaN that stands on its right.
        worst = math.nan if math.isnan(other.max_error) else max(self.max_error, other.max_error)
        return ErrorFigures(self.xx + other.xx, self.yy + other.yy, self.xy + other.xy, self.dd + other.dd, worst)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 10 log10(sum x² / sum (x-y)²): infinite where nothing changed."""
        if self.dd == 0.0:
            return math.inf
        ratio = self.xx / self.dd
        return 10.0 * math.log10(ratio) if ratio > 0.0 else (-math.inf if ratio == 0.0 else math.nan)

    @property
    def cosine(self) -> float:
        """The cosine of the angle between x and y; 1 where both are zero."""
        if self.dd == 0.0:
            return 1.0
        length = math.sqrt(self.xx) * math.sqrt(self.yy)
        return self.xy / length if length > 0.0 else 0.0
