"""What surrounds a step: averages of weights, sums of gradients, and their global norm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, OptimCall, StepCommon, Tensors
from modelopt_rs.optim.step import step_function

__all__ = ["accumulate_call", "accumulate_step", "ema_call", "ema_step", "global_norm"]

_PLAIN: Final[StepCommon] = (0.0, 1.0, None, 0.0, False)


def ema_call(average: Tensors, param: Tensors, decay: float) -> OptimCall:
    """Give `ema_step` as one of several calls, all of which are checked before the first write."""
    return ("ema_step", (average, param, [], None, None), _PLAIN, ([decay], 1, False, "torch"))


def accumulate_call(total: Tensors, grad: Tensors) -> OptimCall:
    """Give `accumulate_step` as one of several calls."""
    return ("accumulate_step", (total, grad, [], None, None), _PLAIN, ([], 1, False, "torch"))


@step_function
def ema_step(average: Tensors, param: Tensors, *, decay: float, dtype: Bf16 = None, threads: int | None = None) -> None:
    """Move an exponential moving average of weights towards the weights.

    ``average = average + (1 - decay) (param - average)``

    Parameters
    ----------
    average : ndarray, or list or dict of ndarray
        float32, float64, float16 or bfloat16; at first a copy of `param`. Written. In 16 bits small moves
        are lost: keep averages as float32.
    param : ndarray, or list or dict of ndarray
        In the shape of `average`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    decay : float
        How much of the average stays, from 0 to below 1.
    dtype, threads
        As for `adam_step`.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> average, p = np.zeros(2, np.float32), np.array([1.0, -2.0], np.float32)
    >>> mo.optim.ema_step(average, p, decay=0.9)
    >>> average
    array([ 0.1, -0.2], dtype=float32)
    """
    _core.optim_step([ema_call(average, param, decay)], "propagate", dtype, threads)


@step_function
def accumulate_step(total: Tensors, grad: Tensors, *, dtype: Bf16 = None, threads: int | None = None) -> None:
    """Add gradients to a total: ``total = total + grad``.

    A step with ``grad_scale=n`` then takes the mean of `n` of them.

    Parameters
    ----------
    total : ndarray, or list or dict of ndarray
        At first zeros: float32 (also for gradients in 16 bits) or float64. Written.
    grad : ndarray, or list or dict of ndarray
        In the shape of `total`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    dtype, threads
        As for `adam_step`.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> total = np.zeros(2, np.float32)
    >>> for grad in ([1.0, 2.0], [3.0, 4.0]):
    ...     mo.optim.accumulate_step(total, np.array(grad, np.float32))
    >>> total
    array([4., 6.], dtype=float32)
    """
    _core.optim_step([accumulate_call(total, grad)], "propagate", dtype, threads)


def global_norm(
    grads: Array | Sequence[Array | None] | Mapping[str, Array | None],
    *,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> float:
    """Compute the 2-norm of all arrays together, as if they were one: ``sqrt(sum(norm(g)**2))``.

    To clip by it without writing the gradients, give a step ``grad_scale=max(1.0, norm / max_norm)``; the optimizers do
    so with ``clip_norm=max_norm``.

    Parameters
    ----------
    grads : ndarray, list or dict of ndarray
        float32, float64, float16 or bfloat16, any strides. Where there is None, it is left out.
    dtype : "bf16", optional
        Read uint16 arrays as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    float
        The norm; NaN or infinity where a gradient is not finite.

    References
    ----------
    Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks" (arXiv 1211.5063).

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.optim.global_norm([np.array([3.0]), np.array([[4.0]])])
    5.0
    """
    arrays: Sequence[Array | None]
    if isinstance(grads, Mapping):
        arrays = list(grads.values())
    else:
        arrays = grads if isinstance(grads, list | tuple) else [grads]  # type: ignore[list-item]
    norms = _core.norms([g for g in arrays if g is not None], dtype, threads)
    # The norm of NaN and infinity is NaN, which `hypot` doesn't say.
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)
