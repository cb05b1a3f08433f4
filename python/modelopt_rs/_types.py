"""The types that the signatures share."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Axis: TypeAlias = int | tuple[int, ...] | None
Bf16: TypeAlias = Literal["bf16"] | None
"""uint16 arrays hold bfloat16 bits."""
Scheme: TypeAlias = Literal["symmetric", "asymmetric", "minmax"]
Nonfinite: TypeAlias = Literal["raise", "saturate"]
Rounding: TypeAlias = Literal["even", "away"]
Search: TypeAlias = Literal["mse"] | None
ScaleDtype: TypeAlias = Literal["float32", "float16", "bfloat16"] | None
"""What scales are rounded to; None: their own dtype."""
GroupSize: TypeAlias = int | tuple[int, int] | None
"""Elements of a group, or rows and columns of a tile."""
Format: TypeAlias = str | tuple[int, str | None]
"""The name of a format, or bits and scheme of uniform codes."""
Spec: TypeAlias = tuple[Format, int | None, GroupSize]
"""format, axis, group_size."""
Parts: TypeAlias = tuple[Array, Array, Array | None, Array | None, Array | None]
"""codes, scale, zero_point, offset, global_scale."""
Nan: TypeAlias = Literal["raise", "largest"]
StepNonfinite: TypeAlias = Literal["propagate", "raise"]
MaskKind: TypeAlias = Literal["bool", "bits"] | None
PruneCall: TypeAlias = tuple[str, Bf16, int | None]
"""nan, dtype, threads."""
Semantics: TypeAlias = Literal["torch", "keras", "optax"]
Tensors: TypeAlias = Array | Sequence[Array] | Mapping[str, Array]
"""One array, or a list or dict of them."""


class CodedState(Protocol):
    """A state in blocks of codes: `modelopt_rs.optim.BlockState`."""

    codes: Array
    absmax: Array
    shape: tuple[int, ...]
    coding: str
    signed: bool


States: TypeAlias = Array | CodedState | Sequence[Array | CodedState] | Mapping[str, Array | CodedState]
"""One state, or a list or dict of them."""
OptionalTensors: TypeAlias = Array | Sequence[Array | None] | Mapping[str, Array | None] | None
"""The same, where some have none."""
Coding: TypeAlias = Literal["minifloat", "dynamic", "dynamic4"]
StepCommon: TypeAlias = tuple[float, float, float | None, float, bool]
"""(lr, grad_scale, clip_value, weight_decay, maximize)."""
OptimCall: TypeAlias = tuple[
    str,
    tuple[Tensors, Tensors, Sequence[States | None], OptionalTensors, int | None],
    StepCommon,
    tuple[Sequence[float | tuple[float, float]], int, bool, str],
]
"""function; (param, grad, states or None in their order, master, rounding_seed); what all have in common; (the
algorithm's numbers, betas as one pair, then step, nesterov, semantics)."""
AdafactorCall: TypeAlias = tuple[
    tuple[Tensors, Tensors, OptionalTensors, OptionalTensors, OptionalTensors, OptionalTensors, int | None],
    StepCommon,
    tuple[int, float, tuple[float | None, float], float],
]
"""(param, grad, row_var, col_var, variance, master, rounding_seed); what all have in common; (step, beta2_decay, eps,
d)."""

__all__ = [
    "AdafactorCall",
    "Array",
    "Axis",
    "Bf16",
    "Coding",
    "Format",
    "GroupSize",
    "MaskKind",
    "Nan",
    "Nonfinite",
    "OptimCall",
    "OptionalTensors",
    "Parts",
    "PruneCall",
    "Rounding",
    "ScaleDtype",
    "Scheme",
    "Search",
    "Semantics",
    "Spec",
    "States",
    "StepCommon",
    "StepNonfinite",
    "Tensors",
]
