"""Adafactor. See `modelopt_rs.optim.adam` for what all steps have in common."""

from __future__ import annotations

from modelopt_rs import _core
from modelopt_rs._types import Bf16, OptionalTensors, StepNonfinite, Tensors
from modelopt_rs.optim.step import step_function

__all__ = ["adafactor_step"]


@step_function
def adafactor_step(
    param: Tensors,
    grad: Tensors,
    row_var: OptionalTensors = None,
    col_var: OptionalTensors = None,
    variance: OptionalTensors = None,
    *,
    step: int,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
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
    """Step Adafactor in place: the second moments of a matrix are kept as a column and a row.

    ::

        w = step**beta2_decay;  alpha = max(eps[1], rms(param)) * min(lr, 1 / sqrt(step))
        row_var = (1 - w) row_var + w mean(g**2, axis=-1);  col_var = (1 - w) col_var + w mean(g**2, axis=-2)
        v = row_var * col_var / max(mean(row_var, axis=-2), eps[0])
        u = g / sqrt(max(v, eps[0]**2))
        param = (1 - lr * weight_decay) param - alpha / max(1, rms(u) / d) * u

    with ``v = variance = (1 - w) variance + w g**2`` for an array of fewer than two axes. An array of more than two is
    factored over its last two. The states are torch's in name and shape.

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    row_var, col_var : ndarray or list, optional
        The state of arrays of shape (..., n, m): of shape (..., n, 1) and (..., 1, m), at first zeros; float64 for a
        float64 `param`, else float32, C-contiguous. Written. In a list, None stands for an array of fewer axes.
    variance : ndarray or list, optional
        The state of arrays of fewer than two axes, of their shape. In a list, None stands for an array of more axes.
    step : int
        The number of this step: the first is 1.
    lr : float
        The largest relative step size.
    beta2_decay : float
        At most 0: how fast the share of new gradients in the state falls.
    eps : pair of float
        The floor of the roots of second moments (None: the epsilon of the state's dtype, also for 16-bit parameters),
        and that of the parameter's root mean square.
    d : float
        At least 1: an update with a larger root mean square is scaled down to it.
    weight_decay : float
        Decoupled: the parameter is multiplied by ``1 - lr * weight_decay`` first.
    maximize, grad_scale, clip_value, master, rounding_seed, nonfinite, dtype, threads
        As for `adam_step`.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`, and if a state is missing or one too many; then nothing was written.

    References
    ----------
    Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", algorithms 4 and 5 (arXiv
    1804.04235). As `torch.optim.Adafactor`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.ones((2, 3), np.float32), np.float32([[1, 2, 3], [2, 4, 6]])
    >>> row, col = np.zeros((2, 1), np.float32), np.zeros((1, 3), np.float32)
    >>> mo.optim.adafactor_step(p, g, row, col, step=1, lr=0.1)
    >>> p.round(4)
    array([[0.9, 0.9, 0.9],
           [0.9, 0.9, 0.9]], dtype=float32)
    >>> bias, v = np.ones(2, np.float32), np.zeros(2, np.float32)
    >>> mo.optim.adafactor_step([p, bias], [g, bias / 2], [row, None], [col, None], [None, v], step=2)
    """
    arrays = (param, grad, row_var, col_var, variance, master, rounding_seed)
    call = (arrays, (lr, grad_scale, clip_value, weight_decay, maximize), (step, beta2_decay, eps, d))
    _core.adafactor_step([call], nonfinite, dtype, threads)
