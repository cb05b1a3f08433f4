"""Which weights need more bits than are asked for: those whose codes would be too far from them.

The error of a weight is that of its layer's output for inputs that are alike in all directions: the Frobenius norm of
what the codes are off, over that of the weight. It is measured with the encoder that will write it, tile by tile.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from modelopt_rs.errors import ScaleRangeError
from modelopt_rs.planning.loss_table import role_of
from modelopt_rs.stream.error_figures import ErrorFigures
from modelopt_rs.stream.execution import Execution
from modelopt_rs.stream.job import TensorJob
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Transform

__all__ = ["ACTIVATION_ERROR", "LAYER_ERRORS", "LayerError", "Sensitivity", "in_words", "layer_error"]

LAYER_ERRORS: Final[Mapping[int, float]] = {4: 0.15, 2: 0.5}
"""The largest error of a layer that is taken by default, by the bits that are asked for.

Whatever model the weights are from, 4 bits in groups of 32 are 0.07 to 0.10 off; a scale for whole rows of thousands
gives up to 0.2, and ruins what 4 bits are asked for. 2 bits are 0.33 to 0.46 off with zero points, and who asks for
them knows that something is lost; by the plain formula without zero points they are 0.6 off, and keep nothing.
"""

ACTIVATION_ERROR: Final = 0.06
"""The largest error of what goes into a layer that computes in int8.

Most numbers are 0.01 to 0.02 off in 8 bits, and up to 0.05 where a few are very large. Of MiniLM five of 36 layers take
some that are 0.062 to 0.1 off: with these in float it loses 0.4 points of its embeddings' cosine instead of 0.8. The
large numbers are the weights' doing, and made-up inputs find nearly the same layers: dynamic int8 loses 0.46 points
instead of 0.82 with four of them.
"""

VALUES_COUNT: Final = 2.0
"""What the error of a layer counts that makes the values of an attention.

Nothing stands between them and what is added to the stream, where queries and keys go through a softmax: with its six
values in 8 bits MiniLM of 4 bits loses 1.8 points of its embeddings' cosine instead of 2.5, for 3 % more bytes, and as
much as with all its layers that lead up, for 12 %.
"""

ON_WEIGHTS: Final = "its weights"
TOO_LARGE: Final = "numbers are too large for scales in 16 bits"
CLEARLY: Final = 0.98
"""What part of a limit is kept where a weight is only known to be no further off: stored scales are rounded."""


class Measured(Transform, Protocol):
    """A transform that knows how far what it made is from what it was made of."""

    @property
    def figures(self) -> ErrorFigures:
        """How far it is so far."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer is off, on what that was measured, and what it counts against a limit."""

    bits: int
    error: float
    on: str = ON_WEIGHTS
    counts: float = 1.0


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
    return math.inf if figures.xx == 0.0 else math.sqrt(figures.dd / figures.xx)


def in_words(found: LayerError, limit: float) -> tuple[str, str]:
    """Say that a layer is too far off, in general and how far.

    Examples
    --------
    >>> from modelopt_rs.planning.sensitivity import LayerError, in_words
    >>> in_words(LayerError(4, 0.26, "calibration data"), 0.15)[1]
    'its error at 4 bits is 0.26 on calibration data'
    >>> in_words(LayerError(4, 0.09, counts=2.0), 0.15)[0]
    'their error at 4 bits is over 0.075, the limit of attention values'
    """
    if found.on == TOO_LARGE:
        why = f"{TOO_LARGE} at {found.bits} bits"
        return f"their {why}", f"its {why}"
    why = f"error at {found.bits} bits is"
    on = "" if found.on == ON_WEIGHTS else f" on {found.on}"
    of_values = "" if found.counts == 1.0 else ", the limit of attention values"
    return f"their {why} over {limit / found.counts:g}{of_values}", f"its {why} {found.error:.2g}{on}"


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
    errors : dict
        What was measured last of each weight.
    """

    source: Source
    execution: Execution
    limit: float
    errors: dict[str, LayerError] = field(default_factory=dict)

    def too_far(
        self, name: str, bits: int, transforms: Sequence[Measured], is_value: bool | None = None
    ) -> tuple[str, str] | None:
        """Say that what a transform makes of a weight is too far off, in general and how far; None if it isn't.

        It is the last of those that are given; one before it does less and is never nearer, so that it may be enough
        to know that this one is near enough.

        Whether it makes values of an attention is known by its name if it isn't said; those of language models count
        like others, as runtimes make one matrix of them with queries and keys, and so of one code.

        The transforms are used up: their figures are those of this pass, so another must write the weight.
        """
        if is_value is None:
            is_value = role_of(name) == "value" and not name.endswith("v_proj.weight")
        *bounds, exact = transforms
        for bound in bounds:
            found = self._measured(name, bits, bound)
            if found.error * (VALUES_COUNT if is_value else 1.0) <= CLEARLY * min(self.limit, LAYER_ERRORS[4]):
                return self.judged(name, found, is_value)
        return self.judged(name, self._measured(name, bits, exact), is_value)

    def _measured(self, name: str, bits: int, transform: Measured) -> LayerError:
        quiet = replace(self.execution, progress=None, done=0)
        try:
            for _ in TensorJob(self.source, name, transform).run(quiet):
                pass
        except ScaleRangeError:  # nothing that could be written comes of it
            return LayerError(bits, math.inf, TOO_LARGE)
        return LayerError(bits, layer_error(transform.figures))

    def judged(self, name: str, found: LayerError, is_value: bool) -> tuple[str, str] | None:
        """Keep the error of a weight; say that it is too large, or None."""
        counted = replace(found, counts=VALUES_COUNT) if is_value else found
        self.errors[name] = counted
        # Of numbers that are none the error is none, whatever the bits.
        return in_words(counted, self.limit) if counted.error * counted.counts > self.limit else None
