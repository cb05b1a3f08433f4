"""The types that the signatures share."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Axis: TypeAlias = int | tuple[int, ...] | None
Bf16: TypeAlias = Literal["bf16"] | None
"""uint16 arrays hold bfloat16 bits."""
Scheme: TypeAlias = Literal["symmetric", "asymmetric", "minmax"]
Nonfinite: TypeAlias = Literal["raise", "saturate"]
Spec: TypeAlias = tuple[int, str, int | None, int | None]
"""bits, scheme, axis, group_size."""
Parts: TypeAlias = tuple[Array, Array, Array | None, Array | None]
"""codes, scale, zero_point, offset."""
Semantics: TypeAlias = Literal["torch", "keras", "optax"]
Tensors: TypeAlias = Array | Sequence[Array]
"""One array, or a list of them."""
OptionalTensors: TypeAlias = Array | Sequence[Array | None] | None
"""The same, where some have none."""

__all__ = ["Array", "Axis", "Bf16", "Nonfinite", "OptionalTensors", "Parts", "Scheme", "Semantics", "Spec", "Tensors"]
