"""What a step says."""

from typing import NamedTuple

__all__ = ["StepResult"]


class StepResult(NamedTuple):
    """What `Optimizer.step` returns.

    Attributes
    ----------
    stepped : bool
        Whether parameters were stepped; False where ``nonfinite="skip"`` has skipped the step.
    norm : float or None
        The 2-norm of all gradients after their scale and before clipping; None without `clip_norm` (``clip_norm=inf``
        measures and doesn't clip).
    rates : tuple of float
        The learning rate of each group in this step.
    """

    stepped: bool
    norm: float | None
    rates: tuple[float, ...]
