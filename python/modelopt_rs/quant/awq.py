"""Factors of a layer's inputs, by which weights of large inputs are rounded more finely (AWQ)."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, ScaleDtype, Scheme, Search
from modelopt_rs.arrays import as_array
from modelopt_rs.quant.gptq import HasMatrix
from modelopt_rs.quant.search import sought

__all__ = ["HasSquares", "awq_scales"]


@runtime_checkable
class HasSquares(Protocol):
    """What sums the squares of inputs: `modelopt_rs.prune.ColumnNorms`."""

    square_sum: NDArray[np.float64] | None
    count: int


@runtime_checkable
class HasProducts(Protocol):
    """What sums the products of inputs: `modelopt_rs.prune.InputStats`."""

    products: NDArray[np.float64]
    count: int


def awq_scales(
    w: Array,
    x_stats: HasSquares | HasProducts | HasMatrix | NDArray[np.float64],
    *,
    bits: int = 4,
    scheme: Scheme = "symmetric",
    axis: int | None = None,
    group_size: int | None = None,
    grid: int = 20,
    search: Search = None,
    scale_dtype: ScaleDtype = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Return factors of a layer's inputs such that weights times them lose least when they are quantized.

    ``s = m**a / sqrt(max(m**a) * min(m**a))`` with `m` the magnitudes of the inputs: of all ``a = i / grid`` below 1
    the one with the least ``sum_j m[j]**2 * sum_i (w[i, j] - q[i, j] / s[j])**2``, where ``q`` is ``w * s``,
    quantized and made numbers again: the squared error of the outputs, if inputs were independent. ``a = 0`` (no
    factors) is among them, so that it is never more than without.

    The layer computes ``(x / s) @ (w * s).T``: ``w * s`` is what is quantized, and what makes `x` (a norm, another
    layer) is divided by `s`. Layers with the same inputs share factors: give their weights as one array of all rows.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        (out, in). Not written.
    x_stats : modelopt_rs.prune.ColumnNorms, InputStats or Hessian, or ndarray of float64
        Of the inputs: their root mean squares are the magnitudes. An array: (in,), the magnitudes themselves, as the
        means of ``|x|`` that the paper takes.
    bits, scheme, group_size, search, scale_dtype
        How ``w * s`` will be quantized, see `quantize`; `search` with the errors of columns as they count here.
    axis : {None, 0}
        0: a scale for each row. It or `group_size` must be given.
    grid : int
        How many exponents are tried, from 1 to 10,000.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    ndarray of float32 (float64 for float64 weights)
        (in,).

    Raises
    ------
    TypeError
        If `w` is no array of floats, or `x_stats` is none of these.
    ValueError
        If an option is out of its range, shapes do not fit, or `w` or `x_stats` is not finite.

    References
    ----------
    Lin et al. 2023, "AWQ: activation-aware weight quantization for LLM compression and acceleration", arXiv 2306.00978,
    equations 4 and 5. (The paper measures the error of outputs over the inputs themselves.)

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((1000, 64)) * np.where(np.arange(64) % 16 == 0, 30, 1)
    >>> norms = mo.prune.ColumnNorms()
    >>> norms.update(x)
    >>> w = rng.standard_normal((32, 64))
    >>> s = mo.quant.awq_scales(w, norms, group_size=32)
    >>> def loss(s):
    ...     return float(np.square(x @ (w - mo.fake_quantize(w * s, bits=4, group_size=32) / s).T).mean())
    >>> loss(s) < 0.5 * loss(np.ones(64))
    True
    """
    magnitudes = _magnitudes(x_stats)
    w = as_array(w, "awq_scales: w")
    out = np.empty(w.shape[-1:] or (1,), np.float64 if w.dtype.char == "d" else np.float32)
    inputs = (magnitudes, np.square(magnitudes))
    spec = ((bits, scheme), axis, group_size)
    _core.awq_scales(w, inputs, out, spec, (sought("awq_scales", search, None), scale_dtype), grid, (dtype, threads))
    return out


def _magnitudes(x_stats: Any) -> NDArray[np.float64]:
    """Return one number for each input."""
    what = "ColumnNorms, InputStats, a Hessian or an array of float64"
    if hasattr(x_stats, "__dlpack__"):
        given: NDArray[Any] = as_array(x_stats, "awq_scales: x_stats")
        if given.dtype.kind not in "biuf":  # what is no float64 of these the core refuses
            raise TypeError(f"awq_scales: x_stats must be {what}, got {given.dtype}")
        return given
    if isinstance(x_stats, HasMatrix):
        squares = x_stats.second_derivative.diagonal() / 2  # of which a Hessian has twice the mean
    elif isinstance(x_stats, HasProducts):
        squares = x_stats.products.diagonal() / max(x_stats.count, 1)
    elif isinstance(x_stats, HasSquares):
        if x_stats.square_sum is None:
            raise ValueError("awq_scales: x_stats must have seen inputs, got none")
        squares = x_stats.square_sum / max(x_stats.count, 1)
    else:
        raise TypeError(f"awq_scales: x_stats must be {what}, got {type(x_stats).__name__}")
    return np.sqrt(squares)
