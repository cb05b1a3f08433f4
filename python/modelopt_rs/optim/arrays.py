"""Gradients as arrays, and the dtype of what stands beside a parameter."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.arrays import as_array
from modelopt_rs.dtypes import bf16_to_float32

__all__ = ["as_arrays", "by_precision", "copied", "wide_copy", "wide_dtype"]


def as_arrays(grads: Iterable[Array | None]) -> list[Array | None]:
    """Make arrays of those of other libraries, and of the numbers that NumPy makes of arrays without axes."""
    return [g if type(g) is np.ndarray or g is None else _as_array(i, g) for i, g in enumerate(grads)]


def _as_array(i: int, grad: Any) -> Any:
    if isinstance(grad, np.generic):
        return np.asarray(grad)
    # What is no array the core refuses, with the name of the step.
    return as_array(grad, f"step: grads[{i}]") if hasattr(grad, "__dlpack__") else grad


def by_precision(pairs: Iterable[tuple[Array, Any]]) -> list[tuple[list[Array], list[Any]]]:
    """Lists of what is computed in float64 and of the rest, as kernels take them; none that are empty."""
    made: dict[bool, tuple[list[Array], list[Any]]] = {}
    for first, second in pairs:
        firsts, seconds = made.setdefault(first.dtype == np.float64, ([], []))
        firsts.append(first)
        seconds.append(second)
    return list(made.values())


def copied(where: str, params: Sequence[Array], places: Sequence[Any], given: Mapping[Any, Array]) -> dict[int, Array]:
    """Copy sums or averages that are given by `places`; by the places of their parameters."""
    copies = {}
    for k, (i, p) in enumerate(zip(places, params, strict=True)):
        if i in given:
            if np.shape(given[i]) != p.shape:
                raise ValueError(f"{where} must have shape {p.shape} for parameter {k}, got {np.shape(given[i])}")
            copies[k] = np.array(given[i], wide_dtype(p), order="C")
    return copies


def wide_dtype(param: Array) -> Any:
    """Return the dtype of what a parameter has beside it: states and sums."""
    return np.float64 if param.dtype == np.float64 else np.float32


def wide_copy(param: Array) -> Array:
    """Copy a parameter in the dtype of what it has beside it; two bytes without a sign are bits of bfloat16."""
    return np.array(bf16_to_float32(param) if param.dtype == np.uint16 else param, wide_dtype(param), order="C")
