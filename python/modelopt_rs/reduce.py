"""Reductions of arrays: one pass, all threads, the same bits for any number of them.

NaN propagates. Sums run in float64 with the rounding errors carried along, so their error does not grow with
the length. Order statistics are exact and neither sort nor copy the array.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array, Axis, Bf16
from modelopt_rs.arguments import shown
from modelopt_rs.signatures import show_options

__all__ = [
    "absmax",
    "count_nonfinite",
    "count_nonzero",
    "histogram",
    "kth_magnitude",
    "mean",
    "minmax",
    "nanminmax",
    "norm",
    "quantile",
    "sum",
    "var",
]


def minmax(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """Return the smallest and the largest element in one pass.

    A NaN makes both NaN (as `numpy.min` and `numpy.max`).

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    (min, max) : scalars or ndarrays
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.minmax(np.array([3.0, -1.0, 2.0]))
    (np.float64(-1.0), np.float64(3.0))
    """
    return _core.minmax(x, axis, keepdims, "propagate", dtype, threads)


def nanminmax(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """Return the smallest and the largest element, NaN left out.

    NaN where nothing else is there (as `numpy.nanmin`, without its warning).

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    (min, max) : scalars or ndarrays
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.nanminmax(np.array([3.0, np.nan, 2.0]))
    (np.float64(2.0), np.float64(3.0))
    """
    return _core.minmax(x, axis, keepdims, "ignore", dtype, threads)


def absmax(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the largest magnitude: ``max |x|``.

    NaN if there is one.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    scalar or ndarray
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> float(mo.reduce.absmax(np.array([3.0, -4.0])))
    4.0
    """
    return _core.absmax(x, axis, keepdims, dtype, threads)


def sum(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the sum, as accurate as if computed in twice the precision of float64.

    ``sum x``; 0 of nothing.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    float64 or ndarray of float64
        Whatever the dtype of `x`: nothing of the sum is lost.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`.

    References
    ----------
    Ogita, Rump and Oishi 2005, "Accurate Sum and Dot Product", algorithm 4.1.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> float(mo.reduce.sum(np.array([1e100, 1.0, -1e100])))
    1.0
    """
    return _core.sum(x, axis, keepdims, dtype, threads)


def mean(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the mean: ``sum x / n``.

    The sum as by `sum`.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    float64 or ndarray of float64
        Whatever the dtype of `x`: nothing of the sum is lost.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> float(mo.reduce.mean(np.array([1.0, 2.0, 6.0])))
    3.0
    """
    return _core.mean(x, axis, keepdims, dtype, threads)


def var(
    x: Array,
    axis: Axis = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the variance: ``sum (x - mean)**2 / (n - ddof)``.

    Stable where the mean is large against the deviations; one pass over memory.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    ddof : float
        Delta degrees of freedom.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    float64 or ndarray of float64
        Whatever the dtype of `x`: nothing of the sum is lost.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty, or `ddof` is not less than its length.

    References
    ----------
    Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> float(mo.reduce.var(np.array([1.0, 2.0, 3.0, 4.0])))
    1.25
    """
    return _core.var(x, axis, keepdims, ddof, dtype, threads)


def norm(
    x: Array,
    axis: Axis = None,
    *,
    ord: float = 2,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return a vector norm: ``sum |x|``, ``sqrt(sum x**2)`` or ``max |x|``.

    Over all elements, or along `axis`; matrices are not special.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    ord : {1, 2, inf}
        Which norm.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    float64 or ndarray of float64
        Whatever the dtype of `x`: nothing of the sum is lost.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`, `ord` is none of these, or (inf) the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> float(mo.reduce.norm(np.array([3.0, -4.0])))
    5.0
    """
    return _core.norm(x, axis, keepdims, ord, dtype, threads)


def count_nonzero(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Count the elements that are not zero.

    NaN is not zero; -0.0 is.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    int64 or ndarray of int64

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> int(mo.reduce.count_nonzero(np.array([0.0, -0.0, 2.0])))
    1
    """
    return _core.count_nonzero(x, axis, keepdims, dtype, threads)


def count_nonfinite(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Count NaN and infinities.

    0 of nothing.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None, int or tuple of int
        What to reduce over; None: all axes.
    keepdims : bool
        Whether reduced axes stay, with length 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    int64 or ndarray of int64

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `axis` names no axis of `x`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> int(mo.reduce.count_nonfinite(np.array([0.0, np.inf, np.nan])))
    2
    """
    return _core.count_nonfinite(x, axis, keepdims, dtype, threads)


def histogram(
    x: Array,
    bins: int = 2048,
    range: tuple[float, float] | None = None,
    *,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count elements in bins of equal width, bin for bin as `numpy.histogram` of `x` in float64.

    The last bin is closed, the others are open at their upper edge.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written.
    bins : int
        How many, 1 to 2**26.
    range : (float, float), optional
        Lower and upper edge; what lies outside, and NaN, is not counted. None: the smallest and largest element.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    counts : ndarray of int64
    edges : ndarray of float64
        `bins` + 1 of them.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `bins` or `range` is out of bounds, or (without `range`) an element is not finite.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.histogram(np.array([0.0, 1.0, 1.5, 2.0]), bins=2)
    (array([1, 3]), array([0., 1., 2.]))
    """
    return _core.histogram(x, bins, range, dtype, threads)


def quantile(x: Array, q: ArrayLike, *, dtype: Bf16 = None, threads: int | None = None) -> Any:
    """Return exact quantiles over all elements: `numpy.quantile` (linear) of `x` in float64.

    By radix selection over the bits: a few passes that only read, no sort, no copy.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written.
    q : float or array of float
        From 0 to 1.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    float64 or ndarray of float64
        In the shape of `q`; NaN where `x` has one.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `x` is empty or a q is out of its range.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> float(mo.reduce.quantile(np.array([4.0, 1.0, 2.0, 3.0]), 0.5))
    2.5
    """
    try:
        wanted = np.asarray(q, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"quantile: q must be a number or an array of numbers, got {shown(q)}") from None
    return _core.quantile(x, wanted.ravel(), dtype, threads).reshape(wanted.shape)[()]


def kth_magnitude(x: Array, k: int, *, dtype: Bf16 = None, threads: int | None = None) -> Any:
    """Return the k-th smallest magnitude, from 0: ``np.partition(np.abs(x).ravel(), k)[k]``.

    By radix selection over the bits: two passes for float32 that only read, no sort, no copy. NaN comes last.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written.
    k : int
        From 0 to below the number of elements.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    scalar
        In the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `k` is out of its range.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> float(mo.reduce.kth_magnitude(np.array([-3.0, 1.0, 2.0]), 1))
    2.0
    """
    return _core.kth_magnitude(x, k, dtype, threads)


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
