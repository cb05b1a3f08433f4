"""Steps whose length is that of the tensor. See `modelopt_rs.optim.adam` for what all have in common."""

from __future__ import annotations

from modelopt_rs._types import Bf16, OptionalTensors, StepNonfinite, Tensors
from modelopt_rs.optim.step import run_step, step_function

__all__ = ["lamb_step"]


@step_function
def lamb_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: Tensors,
    exp_avg_sq: Tensors,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float = 1.0,
    clip_value: float | None = None,
    master: OptionalTensors = None,
    rounding_seed: int | None = None,
    nonfinite: StepNonfinite = "propagate",
    dtype: Bf16 = None,
    threads: int | None = None,
) -> None:
    """Step LAMB in place: Adam's direction, as long as the learning rate times the parameter's norm.

    ::

        m = m + (1 - betas[0]) (g - m);  v = betas[1] v + (1 - betas[1]) g**2
        u = m / (1 - betas[0]**t) / (sqrt(v / (1 - betas[1]**t)) + eps) + weight_decay * param
        param = param - lr * norm(param) / norm(u) * u

    Each array has its own norms, in float64. Where one of them is 0, their ratio is taken to be 1.

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    exp_avg, exp_avg_sq : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32, C-contiguous. Written.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    betas : pair of float
        How much of each mean stays, from 0 to below 1.
    eps : float
        Added to the root.
    weight_decay : float
        ``weight_decay * param`` is added to the direction before its norm is taken.
    maximize, grad_scale, clip_value, master, rounding_seed, nonfinite, dtype, threads
        As for `adam_step`. A NaN in a gradient makes the norm NaN, and so the whole array.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    References
    ----------
    You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm 2 (arXiv
    1904.00962). As `optax.lamb`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([3.0, -4.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> m, v = np.zeros(2, np.float32), np.zeros(2, np.float32)
    >>> mo.optim.lamb_step(p, g, m, v, step=1, lr=0.1)
    >>> p.round(4)
    array([ 2.6464, -3.6464], dtype=float32)
    """
    states = [exp_avg, exp_avg_sq]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        ("lamb_step", (param, grad, states, master, rounding_seed), common, ([betas, eps], step, False, "torch")),
        nonfinite,
        dtype,
        threads,
    )
