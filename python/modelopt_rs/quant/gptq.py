"""Quantization with correction: what rounding loses is made up for by the weights that are not rounded yet (GPTQ)."""

from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, ScaleDtype, Scheme, Search, Spec
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import renamed
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.quant.coding import allocate, check_out
from modelopt_rs.quant.search import sought

__all__ = ["ActOrder", "HasMatrix", "gptq"]

ActOrder: TypeAlias = Literal[False, True, "groups"]
"""In which order columns are rounded."""


@runtime_checkable
class HasMatrix(Protocol):
    """What gathers the second moments of inputs: `modelopt_rs.prune.Hessian`."""

    @property
    def second_derivative(self) -> NDArray[np.float64]:
        """Return them."""


@renamed(damp="damping")
def gptq(
    w: Array,
    hessian: HasMatrix | NDArray[np.float64],
    *,
    bits: int = 4,
    scheme: Scheme = "symmetric",
    axis: int | None = None,
    group_size: int | None = None,
    act_order: ActOrder = False,
    static_groups: bool = False,
    damping: float = 0.01,
    block_size: int = 128,
    search: Search = None,
    scale_dtype: ScaleDtype = None,
    out: QuantizedArray | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> QuantizedArray:
    """Quantize a layer so that its outputs change least, by correcting the weights that are not yet rounded.

    With ``(H + λ I)⁻¹ = Uᵀ U``, `U` upper triangular and `λ` `damping` times the mean of the diagonal of `H`, columns
    are rounded from the first to the last: ``w[i, j]`` becomes the nearest number ``q`` that has a code, and
    ``w[i, k] -= (w[i, j] - q) / U[j, j] * U[j, k]`` for all ``k > j``. What is minimized so, greedily, is
    ``tr((W - Q) (H + λ I) (W - Q)ᵀ)``, the squared error of the outputs over the inputs that `H` has seen.

    Scales are those of `quantize`, of a group when it is reached: of its weights as they are corrected by then. What
    corrections move out of the range takes the lowest or the highest code; of symmetric codes the lowest is
    ``-2**(bits-1)``. With independent inputs nothing is corrected, and the result is that of `quantize`, bit for bit.
    Inputs that never were other than 0 (``H[j, j] == 0``) have their diagonal set to 1: they are rounded, and correct
    nothing. (The authors' program sets their weights to 0.)

    Computed in float32, for float64 weights in float64; the factor always in float64: that of `H`, as nothing needs to
    be inverted where corrections are counted from the weights as they were [2]_. It costs ``columns**3 / 6`` products,
    what follows ``rows * columns**2 / 2``, and memory for two more of `hessian`. Rows don't know of each other: those
    of ``gptq(w)`` are those of ``gptq(w[rows])``, but where one scale is for all.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        (out, in), any strides. Not written.
    hessian : modelopt_rs.prune.Hessian or ndarray of float64
        Of the inputs; an array is (in, in) and symmetric (what is above its diagonal is not read). Not written.
    bits : {8, 4, 2}
        Bits of a code; 4 and 2 are packed.
    scheme : {"symmetric", "asymmetric", "minmax"}
        As for `quantize`.
    axis : {None, 0}
        0: a scale for each row. None, without `group_size`: one for all.
    group_size : int, optional
        A scale for each `group_size` consecutive elements of a row.
    act_order : {False, True, "groups"}
        Round the columns with the largest diagonal of `H` first. With groups whose scales are found when they are
        reached, "groups" keeps the columns of a group together: the group that has the largest first, and in each the
        largest first. The codes come back in the order of `w`.
    static_groups : bool
        Find the scales of all groups before anything is corrected: what ``act_order=True`` needs, which reaches
        the columns of a group one here, one there.
    damping : float
        At least 0; more corrects less, and makes up for few rows of calibration data.
    block_size : int
        Columns that are rounded before those behind them follow. It changes the time, and no bit.
    search : {"mse"}, optional
        Scales of least squared error, see `quantize`, where the errors of columns count as the loss counts them, by
        ``1 / U[j, j]**2``.
    scale_dtype : {"float32", "float16", "bfloat16"}, optional
        What scales are rounded to before codes are made.
    out : QuantizedArray, optional
        Rewritten and returned; made by a call with the same shape, dtype and options.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    QuantizedArray

    Raises
    ------
    TypeError
        If `w` is no array of floats, or `hessian` is no Hessian and no array of float64.
    ValueError
        If an option is out of its range, shapes do not fit, `w` or `hessian` is not finite or `hessian`, with
        `damping`, not positive definite; nothing is written.

    References
    ----------
    .. [1] Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: accurate post-training quantization for generative
       pre-trained transformers", arXiv 2210.17323, algorithm 1.
    .. [2] Chen et al. 2025, "The geometry of LLM quantization: GPTQ as Babai's nearest plane algorithm",
       arXiv 2507.18553.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((1000, 64)) @ rng.standard_normal((64, 64))
    >>> hessian = mo.prune.Hessian()
    >>> hessian.update(x)
    >>> w = rng.standard_normal((32, 64))
    >>> def loss(q):
    ...     return float(np.square(x @ (w - q.dequantize(w.dtype)).T).mean())
    >>> q = mo.quant.gptq(w, hessian, group_size=32)
    >>> loss(q) < 0.5 * loss(mo.quantize(w, bits=4, group_size=32))
    True
    """
    w = as_array(w, "gptq: w")
    matrix: Any = hessian.second_derivative if isinstance(hessian, HasMatrix) else hessian
    if not isinstance(matrix, np.ndarray):
        raise TypeError(f"gptq: hessian must be a Hessian or an array of float64, got {type(hessian).__name__}")
    spec: Spec = ((bits, scheme), axis, group_size)
    if out is None:
        out = allocate("gptq", w, spec)
    else:
        check_out("gptq", out, spec)
    parts = (out.codes, out.scale, out.zero_point, out.offset, out.global_scale)
    pass_ = (act_order, static_groups, damping, block_size)
    _core.gptq(w, matrix, parts, spec, (sought("gptq", search, None), scale_dtype), pass_, (dtype, threads))
    return out
