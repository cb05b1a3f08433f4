"""What optimizers take: parameters, gradients, groups of options, and the options that all have."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from modelopt_rs._types import Array, Bf16, Coding

__all__ = ["Common", "Grads", "Group", "Groups", "How", "LearningRate", "Nonfinite", "Params", "StepTensors"]

LearningRate: TypeAlias = float | Callable[[int], float]
"""A number, or a schedule: a function of the number of the step, which is 1 for the first."""
Group: TypeAlias = dict[str, Any]
Params: TypeAlias = Array | Sequence[Array] | Mapping[str, Array] | Sequence[Group]
Grads: TypeAlias = Array | Sequence[Array | None] | Mapping[str, Array | None]
Groups: TypeAlias = list[tuple[Group, int]]
"""The options of each group, and of how many parameters it is."""
StepTensors: TypeAlias = tuple[list[Array], Sequence[Array | None], list[dict[str, Any]], list[Array | None] | None]
"""Parameters, gradients, states and bits of masks (or None for no masks at all), in the order of the groups."""
Nonfinite: TypeAlias = Literal["propagate", "raise", "skip"]
How: TypeAlias = tuple[float, float | None, Nonfinite, tuple[float, ...] | None]
"""grad_scale, clip_value, nonfinite, learning rates of the groups (None: their option "lr")."""


class Common(TypedDict, total=False):
    """What every optimizer takes as well, by keyword."""

    maximize: bool
    state_bits: Literal[32, 8, 4]
    coding: Coding
    state_min_size: int
    master: bool
    rounding_seed: int | None
    ema_decay: float | None
    dtype: Bf16
    threads: int | None
