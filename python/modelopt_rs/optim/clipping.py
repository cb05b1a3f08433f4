"""Gradients clipped by the norm of all, as torch does it where one is not finite."""

import math
from collections.abc import Iterable

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16
from modelopt_rs.arguments import check_choice, check_number
from modelopt_rs.dtypes import bf16_to_float32
from modelopt_rs.optim.arrays import as_arrays
from modelopt_rs.optim.average import global_norm
from modelopt_rs.optim.options import Nonfinite

__all__ = ["check_limits", "clipped"]


def check_limits(where: str, clip_norm: float, grad_scale: float, nonfinite: Nonfinite) -> bool:
    """Refuse what can't clip; False where the step itself will refuse the scale.

    Examples
    --------
    >>> from modelopt_rs.optim.clipping import check_limits
    >>> check_limits("SGD.step", 1.0, 1.0, "skip")
    True
    """
    check_number(where, "clip_norm", clip_norm)
    check_number(where, "grad_scale", grad_scale)
    check_choice(where, "nonfinite", nonfinite, ("propagate", "raise", "skip"))
    if grad_scale > 0 and not clip_norm > 0:
        raise ValueError(f"{where}: clip_norm must be greater than 0, got {clip_norm!r}")
    return grad_scale > 0


def clipped(
    given: list[Array | None], limits: tuple[float, float, Nonfinite], *, dtype: Bf16, threads: int | None
) -> tuple[list[Array | None], float]:
    """Return gradients as torch's factor leaves them where that is 0 or NaN, else as given, and their norm.

    Parameters
    ----------
    given : list of ndarray or None
        Not written.
    limits : tuple
        clip_norm, grad_scale, nonfinite of `Optimizer.step`.
    dtype, threads
        As for `global_norm`.
    """
    clip_norm, grad_scale, nonfinite = limits
    arrays = as_arrays(given)
    norm = global_norm(arrays, dtype=dtype, threads=threads) / grad_scale
    if math.isfinite(norm) or (nonfinite != "propagate" and _has_nonfinite(arrays, dtype, threads)):
        return given, norm
    wide = [bf16_to_float32(g) if g is not None and g.dtype == np.uint16 else g for g in arrays]
    with np.errstate(invalid="ignore"):
        return [None if g is None else np.asarray(g * g.dtype.type(clip_norm / norm)) for g in wide], norm


def _has_nonfinite(grads: Iterable[Array | None], dtype: Bf16, threads: int | None) -> bool:
    bits = [(g, dtype if g.dtype == np.uint16 else None) for g in grads if g is not None]
    return any(int(_core.count_nonfinite(g, None, False, as_bf16, threads)) for g, as_bf16 in bits)
