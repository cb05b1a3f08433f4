"""Adam and its family, one step in place: each function steps one array, or a list of arrays in one parallel region.

Hyper-parameters are torch's; what follows from them is computed in float64, everything else in the dtype of the states.
"""

from __future__ import annotations

from modelopt_rs._types import Bf16, OptionalTensors, Semantics, States, StepNonfinite, Tensors
from modelopt_rs.optim.step import run_step, step_function

__all__ = ["adam_step", "adamax_step", "adamw_step", "nadam_step", "radam_step"]


@step_function
def adam_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: States,
    exp_avg_sq: States,
    max_exp_avg_sq: States | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
    semantics: Semantics = "torch",
    grad_scale: float = 1.0,
    clip_value: float | None = None,
    master: OptionalTensors = None,
    rounding_seed: int | None = None,
    nonfinite: StepNonfinite = "propagate",
    dtype: Bf16 = None,
    threads: int | None = None,
) -> None:
    """Step Adam in place: a mean of gradients over the root of a mean of their squares.

    ::

        m = m + (1 - betas[0]) (g - m);  v = betas[1] v + (1 - betas[1]) g**2
        param = param - lr / (1 - betas[0]**t) * m / (sqrt(v) / sqrt(1 - betas[1]**t) + eps)

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    exp_avg, exp_avg_sq, max_exp_avg_sq : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
        With `max_exp_avg_sq` it is AMSGrad.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    betas : pair of float
        How much of each mean stays, from 0 to below 1.
    eps : float
        Added to the root.
    weight_decay : float
        L2: ``weight_decay * param`` is added to the gradient. `adamw_step` decays the parameter instead.
    semantics : {"torch", "keras", "optax"}
        Where eps stands and what AMSGrad keeps: torch ``sqrt(v) / sqrt(1 - betas[1]**t) + eps``, the largest v as it
        is; keras ``sqrt(v) + eps`` with the correction in the step size (so its eps is larger by its root); optax
        ``sqrt(v / (1 - betas[1]**t)) + eps``, the largest of the corrected v (the paper's formula).
    maximize : bool
        Ascend instead of descend.
    grad_scale : float
        The gradient is divided by it on the way (a loss scale is taken back here); `grad` is not written.
    clip_value : float, optional
        The gradient is then clamped to ± this. NaN stays NaN.
    master : ndarray or list of ndarray or None, optional
        Float32 copies of parameters in 16 bits: these are stepped, and `param` becomes them, rounded. Written.
    rounding_seed : int, optional
        Round parameters in 16 bits by chance, up or down, so that on average small steps are not lost. The chance of an
        element follows from this seed, `step`, its array's place in the list and its own place: always the same.
    nonfinite : {"propagate", "raise"}
        What becomes of a gradient that is NaN or infinite: it goes through, as in torch; or all are looked at first,
        and one raises.
    dtype : "bf16", optional
        Read uint16 parameters and gradients as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If an argument has a wrong type or dtype.
    ValueError
        If a number is out of its range, arrays do not go together, overlap or are read-only, or a
        gradient is not finite with ``nonfinite="raise"``. Whatever is raised, nothing was written.

    References
    ----------
    Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1 (arXiv 1412.6980); AMSGrad: Reddi,
    Kale and Kumar 2018, "On the Convergence of Adam and Beyond" (arXiv 1904.09237). As `torch.optim.Adam`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> m, v = np.zeros(2, np.float32), np.zeros(2, np.float32)
    >>> mo.optim.adam_step(p, g, m, v, step=1, lr=0.1)
    >>> p.round(4)
    array([ 0.9, -1.9], dtype=float32)
    """
    states = [exp_avg, exp_avg_sq, max_exp_avg_sq]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        ("adam_step", (param, grad, states, master, rounding_seed), common, ([betas, eps], step, False, semantics)),
        nonfinite,
        dtype,
        threads,
    )


@step_function
def adamw_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: States,
    exp_avg_sq: States,
    max_exp_avg_sq: States | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
    semantics: Semantics = "torch",
    grad_scale: float = 1.0,
    clip_value: float | None = None,
    master: OptionalTensors = None,
    rounding_seed: int | None = None,
    nonfinite: StepNonfinite = "propagate",
    dtype: Bf16 = None,
    threads: int | None = None,
) -> None:
    """Step AdamW in place: Adam with decoupled weight decay, ``param * (1 - lr * weight_decay)`` first.

    ::

        m = m + (1 - betas[0]) (g - m);  v = betas[1] v + (1 - betas[1]) g**2
        param = param - lr / (1 - betas[0]**t) * m / (sqrt(v) / sqrt(1 - betas[1]**t) + eps)

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    exp_avg, exp_avg_sq, max_exp_avg_sq : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
        With `max_exp_avg_sq` it is AMSGrad.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    betas : pair of float
        How much of each mean stays, from 0 to below 1.
    eps : float
        Added to the root.
    weight_decay : float
        Decoupled: the parameter is multiplied by ``1 - lr * weight_decay`` first.
    semantics : {"torch", "keras", "optax"}
        Where eps stands and what AMSGrad keeps: torch ``sqrt(v) / sqrt(1 - betas[1]**t) + eps``, the largest v as it
        is; keras ``sqrt(v) + eps`` with the correction in the step size (so its eps is larger by its root); optax
        ``sqrt(v / (1 - betas[1]**t)) + eps``, the largest of the corrected v (the paper's formula).
    maximize, grad_scale, clip_value, master, rounding_seed, nonfinite, dtype, threads
        As for `adam_step`.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    References
    ----------
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2 (arXiv 1711.05101). As
    `torch.optim.AdamW`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> m, v = np.zeros(2, np.float32), np.zeros(2, np.float32)
    >>> mo.optim.adamw_step(p, g, m, v, step=1, lr=0.1)
    >>> p.round(4)
    array([ 0.899, -1.898], dtype=float32)
    """
    states = [exp_avg, exp_avg_sq, max_exp_avg_sq]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        ("adamw_step", (param, grad, states, master, rounding_seed), common, ([betas, eps], step, False, semantics)),
        nonfinite,
        dtype,
        threads,
    )


@step_function
def nadam_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: States,
    exp_avg_sq: States,
    *,
    step: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum_decay: float = 4e-3,
    mu_product: float = 1.0,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float = 1.0,
    clip_value: float | None = None,
    master: OptionalTensors = None,
    rounding_seed: int | None = None,
    nonfinite: StepNonfinite = "propagate",
    dtype: Bf16 = None,
    threads: int | None = None,
) -> float:
    """Step NAdam in place: Adam with Nesterov momentum.

    ::

        mu_t = betas[0] (1 - 0.5 * 0.96**(t momentum_decay))
        param = param - lr ((1 - mu_t) / (1 - prod mu_1..t) g + mu_t+1 / (1 - prod mu_1..t+1) m) / (sqrt(v_hat) + eps)

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    exp_avg, exp_avg_sq : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    betas : pair of float
        How much of each mean stays, from 0 to below 1.
    eps : float
        Added to the root.
    momentum_decay : float
        How fast the momentum grows.
    mu_product : float
        What the call for the step before returned; 1 at first.
    weight_decay : float
        L2: ``weight_decay * param`` is added to the gradient.
    maximize, grad_scale, clip_value, master, rounding_seed, nonfinite, dtype, threads
        As for `adam_step`.

    Returns
    -------
    float
        `mu_product` of the next step.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`; then nothing was written.

    References
    ----------
    Dozat 2016, "Incorporating Nesterov Momentum into Adam", algorithm 2. As `torch.optim.NAdam`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> m, v = np.zeros(2, np.float32), np.zeros(2, np.float32)
    >>> product = mo.optim.nadam_step(p, g, m, v, step=1, lr=0.1)
    >>> product = mo.optim.nadam_step(p, g, m, v, step=2, lr=0.1, mu_product=product)
    >>> p.round(4)
    array([ 0.816, -1.816], dtype=float32)
    """
    states = [exp_avg, exp_avg_sq]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    (product,) = run_step(
        (
            "nadam_step",
            (param, grad, states, master, rounding_seed),
            common,
            ([betas, eps, momentum_decay, mu_product], step, False, "torch"),
        ),
        nonfinite,
        dtype,
        threads,
    )
    return product


@step_function
def radam_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: States,
    exp_avg_sq: States,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
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
    """Step RAdam in place: Adam whose step is rectified while its variance is not known well.

    ::

        rho = rho_inf - 2 t betas[1]**t / (1 - betas[1]**t),  rho_inf = 2 / (1 - betas[1]) - 1
        param = param - lr m_hat r_t sqrt(1 - betas[1]**t) / (sqrt(v) + eps)   where rho > 5, else  - lr m_hat

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    exp_avg, exp_avg_sq : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    betas : pair of float
        How much of each mean stays, from 0 to below 1.
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
    Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", algorithm 2 (arXiv 1908.03265). As
    `torch.optim.RAdam`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> m, v = np.zeros(2, np.float32), np.zeros(2, np.float32)
    >>> mo.optim.radam_step(p, g, m, v, step=1, lr=0.1)
    >>> p.round(4)
    array([ 0.95, -1.95], dtype=float32)
    """
    states = [exp_avg, exp_avg_sq]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        ("radam_step", (param, grad, states, master, rounding_seed), common, ([betas, eps], step, False, "torch")),
        nonfinite,
        dtype,
        threads,
    )


@step_function
def adamax_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: States,
    exp_inf: States,
    *,
    step: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
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
    """Step Adamax in place: a mean of gradients over the largest of the recent ones.

    ::

        u = max(betas[1] u, abs(g) + eps);  param = param - lr / (1 - betas[0]**t) * m / u

    Parameters
    ----------
    param : ndarray or list of ndarray
        float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    exp_avg, exp_inf : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32; or `BlockState`. Written.
    step : int
        The number of this step: the first is 1.
    lr : float
        The learning rate.
    betas : pair of float
        How much of each mean stays, from 0 to below 1.
    eps : float
        Added to the size of a gradient.
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
    Kingma and Ba 2015, algorithm 2 (arXiv 1412.6980). As `torch.optim.Adamax`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -0.5], np.float32)
    >>> m, u = np.zeros(2, np.float32), np.zeros(2, np.float32)
    >>> mo.optim.adamax_step(p, g, m, u, step=1, lr=0.1)
    >>> p.round(4)
    array([ 0.9, -1.9], dtype=float32)
    """
    states = [exp_avg, exp_inf]
    common = (lr, grad_scale, clip_value, weight_decay, maximize)
    run_step(
        ("adamax_step", (param, grad, states, master, rounding_seed), common, ([betas, eps], step, False, "torch")),
        nonfinite,
        dtype,
        threads,
    )
