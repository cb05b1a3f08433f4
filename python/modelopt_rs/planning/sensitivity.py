"""Which weights need more bits than are asked for: those whose codes would be too far from them.

The error of a weight is that of its layer's output for inputs that are alike in all directions: the Frobenius norm of
what the codes are off, over that of the weight. It is measured with the encoder that will write it, tile by tile.
"""

import math
from dataclasses import dataclass, replace
from typing import Final, Protocol

from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Transform

__all__ = ["MAX_LAYER_ERROR", "Sensitivity", "layer_error"]

MAX_LAYER_ERROR: Final = 0.15
"""The largest error of a layer that is taken by default.

4 bits in groups of 32 are 0.07 to 0.10 off whatever model the weights are from, and keep what was measured of it; a
scale for whole rows of thousands gives up to 0.2, 2 bits 0.33 to 0.46 (symmetric 0.6), and ruin it.
"""


class Measured(Transform, Protocol):
    """A transform that knows how far what it made is from what it was made of."""

    @property
    def figures(self) -> ErrorFigures:
        """How far it is so far."""


def layer_error(figures: ErrorFigures) -> float:
    """Return the relative error: the root of the sum of squares of what is off, over that of what should be.

    Examples
    --------
    >>> from modelopt_rs.planning.sensitivity import layer_error
    >>> from modelopt_rs.stream.error_figures import ErrorFigures
    >>> layer_error(ErrorFigures(xx=4.0, dd=1.0))
    0.5
    """
    if figures.dd == 0.0:
        return 0.0
    return math.sqrt(figures.dd / figures.xx) if figures.xx > 0.0 else math.inf


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Measures weights of a model against a limit.

    Attributes
    ----------
    source : Source
    execution : Execution
        Whose memory and threads are used.
    limit : float
        The largest error that is taken.
    """

    source: Source
    execution: Execution
    limit: float

    def too_far(self, name: str, bits: int, transform: Measured) -> tuple[str, str] | None:
        """Say that what a transform makes of a weight is too far off, in general and how far; None if it isn't."""
        quiet = replace(self.execution, progress=None, done=0)
        for _ in TensorJob(self.source, name, transform).run(quiet):
            pass
        error = layer_error(transform.figures)
        if error <= self.limit:
            return None
        why = f"error at {bits} bits is"
        return f"their {why} over {self.limit:g}", f"its {why} {error:.2g}"
