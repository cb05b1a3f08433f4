"""Gradient descent, momentum and Lion. See `modelopt_rs.optim.adam` for what all have in common."""

from __future__ import annotations

from modelopt_rs._types import Bf16, OptionalTensors, States, StepNonfinite, Tensors
from modelopt_rs.arguments import check_flag, check_number
from modelopt_rs.optim.step import run_step, step_function

__all__ = ["lion_step", "sgd_step"]


@step_function
def sgd_step(
    param: Tensors,
    grad: Tensors,
    momentum_buffer: States | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
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
    """Step gradient descent in place, with momentum where there is a buffer.

    ``param = param - lr g``; with momentum ``buf = momentum buf + (1 - dampening) g`` (in the first step ``buf = g``),
    ``param - lr buf``, Nesterov ``param - lr (g + momentum buf)``

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    momentum_buffer : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    momentum, dampening : float
        Greater than 0 only with a `momentum_buffer`.
    nesterov : bool
        Nesterov's momentum: needs momentum and no dampening.
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
    Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning". As `torch.optim.SGD`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> mo.optim.sgd_step(p, g, step=1, lr=0.1)
    >>> p
    array([ 0.95, -1.95], dtype=float32)
    >>> buffer = np.zeros(2, np.float32)
    >>> mo.optim.sgd_step([p], [g], [buffer], step=1, lr=0.1, momentum=0.9)
    >>> buffer
    array([ 0.5, -0.5], dtype=float32)
    """
    check_flag("sgd_step", "nesterov", nesterov)
    check_number("sgd_step", "momentum", momentum)
    check_number("sgd_step", "dampening", dampening)
    if nesterov and not (momentum > 0 and dampening == 0):
        got = f"momentum={momentum!r}, dampening={dampening!r}"
        raise ValueError(f"sgd_step: nesterov must be False without momentum or with dampening, got True with {got}")
    if momentum_buffer is None and momentum != 0:
        raise ValueError(f"sgd_step: momentum_buffer must be given with momentum={momentum!r}")
    states = [momentum_buffer]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        (
            "sgd_step",
            (param, grad, states, master, rounding_seed),
            common,
            ([momentum, dampening], step, nesterov, "torch"),
        ),
        nonfinite,
        dtype,
        threads,
    )


@step_function
def lion_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: States,
    *,
    step: int,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
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
    """Step Lion in place: by the sign of an interpolation between mean and gradient.

    ``param = param - lr sign(betas[0] m + (1 - betas[0]) g); m = betas[1] m + (1 - betas[1]) g``; sign(0) is 0.

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    exp_avg : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    betas : pair of float
        How much of the mean counts in the step, and stays; from 0 to below 1.
    weight_decay : float
        Decoupled: the parameter is multiplied by ``1 - lr * weight_decay`` first.
    maximize, grad_scale, clip_value, master, rounding_seed, nonfinite, dtype, threads
        As for `adam_step`.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    References
    ----------
    Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1 (arXiv 2302.06675).

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> m = np.zeros(2, np.float32)
    >>> mo.optim.lion_step(p, g, m, step=1, lr=0.1)
    >>> p.round(4)
    array([ 0.9, -1.9], dtype=float32)
    """
    states = [exp_avg]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        ("lion_step", (param, grad, states, master, rounding_seed), common, ([betas], step, False, "torch")),
        nonfinite,
        dtype,
        threads,
    )
