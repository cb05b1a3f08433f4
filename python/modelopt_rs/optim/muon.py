"""Muon. See `modelopt_rs.optim.adam` for what all steps have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, OptimCall, OptionalTensors, StepCommon, StepNonfinite, Tensors
from modelopt_rs.arguments import check_choice, shown
from modelopt_rs.optim.step import step_function
from modelopt_rs.reduce import norm

__all__ = ["MuonCall", "muon_step", "run_muon"]


class MuonCall(NamedTuple):
    """A call of `muon_step`: its arrays, what all steps have in common, and its own options."""

    arrays: tuple[Tensors, Tensors, Tensors, OptionalTensors]
    """param, grad, momentum_buffer, master."""
    common: StepCommon
    momentum: float
    nesterov: bool
    ns_coefficients: tuple[float, float, float]
    eps: float
    ns_steps: int
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None


@step_function
def muon_step(
    param: Tensors,
    grad: Tensors,
    momentum_buffer: Tensors,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
    maximize: bool = False,
    grad_scale: float = 1.0,
    clip_value: float | None = None,
    master: OptionalTensors = None,
    nonfinite: StepNonfinite = "propagate",
    dtype: Bf16 = None,
    threads: int | None = None,
) -> None:
    """Step Muon in place: the momentum of a matrix, made about orthogonal.

    ::

        buffer = momentum buffer + (1 - momentum) g;  x = momentum buffer + (1 - momentum) g  (nesterov; else buffer)
        x = x / max(norm(x), eps);  ns_steps times: x = a x + (b x x' + c x x' x x') x
        param = (1 - lr * weight_decay) param - lr * adjustment * x

    The products of matrices are NumPy's, in the dtype of the state (torch: bfloat16): their last bits depend on the
    BLAS that NumPy was built with and on its threads. A few arrays of the size of `param` are made on the way.

    Parameters
    ----------
    param : ndarray or list of ndarray
        Matrices: float32, float64, float16 or bfloat16. Written (if not C-contiguous, by way of a copy).
    grad : ndarray or list of ndarray
        In the shape of `param`, any strides; float64 for float64, else float32, float16 or bfloat16. Not written.
    momentum_buffer : ndarray or list of ndarray
        The state, at first zeros: float64 for a float64 `param`, else float32, C-contiguous. Written.
    lr : float
        The learning rate.
    weight_decay : float
        Decoupled: the parameter is multiplied by ``1 - lr * weight_decay`` first.
    momentum : float
        How much of the buffer stays.
    nesterov : bool
        Nesterov's momentum.
    ns_coefficients : three floats
        a, b and c of the Newton-Schulz iteration.
    eps : float
        The smallest norm that is divided by.
    ns_steps : int
        Iterations, from 0 to 99.
    adjust_lr_fn : {"original", "match_rms_adamw"}, optional
        The adjustment for n rows and m columns: original (also None) ``sqrt(max(1, n / m))``, match_rms_adamw
        ``0.2 sqrt(max(n, m))``.
    maximize, grad_scale, clip_value, master, nonfinite, dtype
        As for `adam_step`. A NaN in a gradient makes the whole matrix NaN.
    threads : int, optional
        Threads of the elementwise part. Those of the products are the BLAS's own.

    Raises
    ------
    TypeError, ValueError
        As for `adam_step`, and if an array is no matrix; then nothing was written.

    References
    ----------
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; match_rms_adamw: Liu et al. 2025,
    "Muon is Scalable for LLM Training" (arXiv 2502.16982). As `torch.optim.Muon`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> p, g = np.zeros((2, 2), np.float32), np.float32([[3, 0], [0, 1]])
    >>> buffer = np.zeros((2, 2), np.float32)
    >>> mo.optim.muon_step(p, g, buffer, lr=0.1)
    >>> p.round(2)
    array([[-0.08,  0.  ],
           [ 0.  , -0.11]], dtype=float32)
    """
    arrays, common = (param, grad, momentum_buffer, master), (lr, grad_scale, clip_value, weight_decay, maximize)
    call = MuonCall(arrays, common, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)
    run_muon([call], nonfinite, dtype, threads)


def run_muon(calls: Sequence[MuonCall], nonfinite: StepNonfinite, dtype: Bf16, threads: int | None) -> None:
    """Check all calls, then step them."""
    coefficients = [_checked(call) for call in calls]
    # The first half checks everything and fills these; the matrices change in the second half, all at once.
    directions, following = (
        [[np.empty_like(x, order="C", subok=False) for _, x in _listed("momentum_buffer", c.arrays[2])] for c in calls]
        for _ in range(2)
    )

    def half(number: int, nonfinite: StepNonfinite) -> None:
        made: list[OptimCall] = []
        for call, *states in zip(calls, directions, following, strict=True):
            (param, grad, buffer, master), step = call.arrays, ([call.momentum, call.eps], number, call.nesterov)
            made.append(("muon_step", (param, grad, [buffer, *states], master, None), call.common, (*step, "torch")))
        _core.optim_step(made, nonfinite, dtype, threads)

    half(1, nonfinite)
    for call, abc, each in zip(calls, coefficients, directions, strict=True):
        for x in each:
            if x.size > 0:
                x[...] = _orthogonal(x, abc, call.ns_steps, call.eps)
                x *= _adjustment(call.adjust_lr_fn, *x.shape)
    half(2, "propagate")


def _checked(call: MuonCall) -> tuple[float, float, float]:
    """The coefficients, after what the kernel does not check."""
    steps, coefficients = call.ns_steps, call.ns_coefficients
    for name, x in _listed("param", call.arrays[0]):
        if isinstance(x, np.ndarray) and x.ndim != 2:
            raise ValueError(f"muon_step: {name} must be a matrix, got shape {x.shape}")
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"muon_step: ns_steps must be an integer, got {shown(steps)}")
    if not 0 <= steps < 100:
        raise ValueError(f"muon_step: ns_steps must be from 0 to 99, got {steps}")
    check_choice("muon_step", "adjust_lr_fn", call.adjust_lr_fn, (None, "original", "match_rms_adamw"))
    try:
        a, b, c = map(float, coefficients)
    except (TypeError, ValueError):
        raise TypeError(f"muon_step: ns_coefficients must be three numbers, got {shown(coefficients)}") from None
    if not all(map(math.isfinite, (a, b, c))):
        raise ValueError(f"muon_step: ns_coefficients must be finite, got {coefficients!r}")
    return a, b, c


def _listed(name: str, arrays: Tensors) -> list[tuple[str, Array]]:
    """Each array with its name. What is neither an array nor a list of them is left to the kernel to refuse."""
    if isinstance(arrays, np.ndarray):
        return [(name, arrays)]
    return [(f"{name}s[{i}]", x) for i, x in enumerate(arrays)] if isinstance(arrays, list | tuple) else []


def _orthogonal(x: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    """About the nearest matrix with orthonormal rows (columns, where there are more rows), by Newton and Schulz."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    size = float(norm(x))
    with np.errstate(all="ignore"):
        # A NaN stays.
        x = (x.T if tall else x) / max(size, eps)
        for _ in range(steps):
            gram = x @ x.T
            polynomial = gram @ gram
            polynomial *= c
            gram *= b
            polynomial += gram
            following = polynomial @ x
            x *= a
            x += following
    return x.T if tall else x


def _adjustment(adjust: str | None, rows: int, cols: int) -> float:
    return 0.2 * math.sqrt(max(rows, cols)) if adjust == "match_rms_adamw" else math.sqrt(max(1.0, rows / cols))
