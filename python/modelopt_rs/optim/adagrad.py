"""Steps divided by the root of accumulated squares. See `modelopt_rs.optim.adam` for what all have in common."""

from __future__ import annotations

from modelopt_rs._types import Bf16, OptionalTensors, States, StepNonfinite, Tensors
from modelopt_rs.arguments import check_number
from modelopt_rs.optim.step import run_step, step_function

__all__ = ["adadelta_step", "adagrad_step", "rmsprop_step"]


@step_function
def adagrad_step(
    param: Tensors,
    grad: Tensors,
    state_sum: States,
    *,
    step: int,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
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
    """Step Adagrad in place: the gradient over the root of the sum of its squares.

    ``s = s + g**2; param = param - lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps)``

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    state_sum : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    lr_decay : float
        How the learning rate falls with the steps.
    eps : float
        Added to the root.
    weight_decay : float
        L2: ``weight_decay * param`` is added to the gradient.
    maximize, grad_scale, clip_value, master, rounding_seed, nonfinite, dtype, threads
        As for `adam_step`.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    References
    ----------
    Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization". As
    `torch.optim.Adagrad`; an initial accumulator is a `state_sum` that does not begin with zeros.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> s = np.zeros(2, np.float32)
    >>> mo.optim.adagrad_step(p, g, s, step=1, lr=0.1)
    >>> p.round(4)
    array([ 0.9, -1.9], dtype=float32)
    """
    states = [state_sum]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        (
            "adagrad_step",
            (param, grad, states, master, rounding_seed),
            common,
            ([lr_decay, eps], step, False, "torch"),
        ),
        nonfinite,
        dtype,
        threads,
    )


@step_function
def rmsprop_step(
    param: Tensors,
    grad: Tensors,
    square_avg: States,
    momentum_buffer: States | None = None,
    grad_avg: States | None = None,
    *,
    step: int,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
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
    """Step RMSprop in place: the gradient over the root of a mean of its squares.

    ::

        v = alpha v + (1 - alpha) g**2;  centered: m = m + (1 - alpha) (g - m),  v - m**2 instead of v
        param = param - lr g / (sqrt(v) + eps);  with momentum: buf = momentum buf + g / (...),  param - lr buf

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    square_avg, momentum_buffer, grad_avg : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
        `grad_avg` makes it centered.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    alpha : float
        How much of the means stays, from 0 to below 1.
    eps : float
        Added to the root.
    momentum : float
        Greater than 0 only with a `momentum_buffer`, and the reverse.
    weight_decay : float
        L2: ``weight_decay * param`` is added to the gradient.
    maximize, grad_scale, clip_value, master, rounding_seed, nonfinite, dtype, threads
        As for `adam_step`.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    References
    ----------
    Tieleman and Hinton 2012, "Neural Networks for Machine Learning", lecture 6.5; centered: Graves 2013, "Generating
    Sequences With Recurrent Neural Networks" (arXiv 1308.0850). As `torch.optim.RMSprop`, but where rounding takes the
    centered variance below 0: it is 0 then, not NaN.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> v = np.zeros(2, np.float32)
    >>> mo.optim.rmsprop_step(p, g, v, step=1, lr=0.1)
    >>> p.round(4)
    array([ 0., -1.], dtype=float32)
    """
    check_number("rmsprop_step", "momentum", momentum)
    if (momentum_buffer is not None) != (momentum != 0):
        what = "given" if momentum_buffer is None else "None"
        raise ValueError(f"rmsprop_step: momentum_buffer must be {what} with momentum={momentum!r}")
    states = [square_avg, momentum_buffer, grad_avg]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        (
            "rmsprop_step",
            (param, grad, states, master, rounding_seed),
            common,
            ([alpha, eps, momentum], step, False, "torch"),
        ),
        nonfinite,
        dtype,
        threads,
    )


@step_function
def adadelta_step(
    param: Tensors,
    grad: Tensors,
    square_avg: States,
    acc_delta: States,
    *,
    step: int,
    lr: float = 1.0,
    rho: float = 0.9,
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
    """Step Adadelta in place: steps in the units of the parameter, by the ratio of two roots.

    ::

        v = rho v + (1 - rho) g**2;  d = sqrt(u + eps) / sqrt(v + eps) g;  u = rho u + (1 - rho) d**2
        param = param - lr d

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    square_avg, acc_delta : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    rho : float
        How much of both means stays, from 0 to below 1.
    eps : float
        Added under both roots.
    weight_decay : float
        L2: ``weight_decay * param`` is added to the gradient.
    maximize, grad_scale, clip_value, master, rounding_seed, nonfinite, dtype, threads
        As for `adam_step`.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    References
    ----------
    Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method", algorithm 1 (arXiv 1212.5701). As `torch.optim.Adadelta`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> v, u = np.zeros(2, np.float32), np.zeros(2, np.float32)
    >>> mo.optim.adadelta_step(p, g, v, u, step=1)
    >>> p.round(4)
    array([ 0.9968, -1.9968], dtype=float32)
    """
    states = [square_avg, acc_delta]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        ("adadelta_step", (param, grad, states, master, rounding_seed), common, ([rho, eps], step, False, "torch")),
        nonfinite,
        dtype,
        threads,
    )
