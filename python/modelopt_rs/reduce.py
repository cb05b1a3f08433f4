"""Reductions of arrays: one pass, all threads, the same bits for any number of them.

NaN propagates. Sums of floats run in float64 with the rounding errors carried along, so their error does not grow with
the length. Order statistics are exact and neither sort nor copy the array.

Integers and bools are reduced as NumPy reduces them: the smallest and largest in their own dtype, sums in int64 or
uint64, all else in float64 (`var`, `norm`, `histogram` and `quantile` of 64-bit integers take the nearest float64 of
each).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array, Axis, Bf16
from modelopt_rs.arguments import shown
from modelopt_rs.arrays import as_array
from modelopt_rs.signatures import show_options

__all__ = [
    "absmax",
    "all",
    "allclose",
    "any",
    "argmax",
    "argmin",
    "count_nonfinite",
    "count_nonzero",
    "histogram",
    "kth_magnitude",
    "max",
    "mean",
    "min",
    "minmax",
    "nanminmax",
    "norm",
    "quantile",
    "sum",
    "topk",
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
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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


def min(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the smallest element, as `numpy.min`.

    NaN if there is one. -0.0 is below 0.0.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.min(np.array([[3, -1], [2, 5]], np.int8), axis=0)
    array([ 2, -1], dtype=int8)
    """
    return _core.min(x, axis, keepdims, dtype, threads)


def max(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the largest element, as `numpy.max`.

    NaN if there is one. -0.0 is below 0.0.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.max(np.array([[3, -1], [2, 5]], np.int8), axis=0)
    array([3, 5], dtype=int8)
    """
    return _core.max(x, axis, keepdims, dtype, threads)


def argmin(
    x: Array,
    axis: int | None = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the index of the smallest element, as `numpy.argmin`.

    Of equal ones the first; the first NaN if there is one. -0.0 and 0.0 are equal.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None or int
        What to look along; None: all elements, in C order.
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
        If `x` is no array of numbers, or `axis` a tuple.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> int(mo.reduce.argmin(np.array([3.0, 7.0, 1.0, 7.0, 1.0])))
    2
    """
    return _core.argmin(x, axis, keepdims, dtype, threads)


def argmax(
    x: Array,
    axis: int | None = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the index of the largest element, as `numpy.argmax`.

    Of equal ones the first; the first NaN if there is one. -0.0 and 0.0 are equal.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : None or int
        What to look along; None: all elements, in C order.
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
        If `x` is no array of numbers, or `axis` a tuple.
    ValueError
        If `axis` names no axis of `x`, or the reduced axis is empty.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> int(mo.reduce.argmax(np.array([3.0, 7.0, 1.0, 7.0, 1.0])))
    1
    """
    return _core.argmax(x, axis, keepdims, dtype, threads)


def any(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return whether any element is not zero, as `numpy.any`.

    NaN is not zero; -0.0 is. False of nothing. Over all elements it stops at the first.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
    bool or ndarray of bool

    Raises
    ------
    TypeError
        If `x` is no array of numbers.
    ValueError
        If `axis` names no axis of `x`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.any(np.array([[0, 2], [0, 0]]), axis=1)
    array([ True, False])
    """
    return _core.any(x, axis, keepdims, dtype, threads)


def all(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return whether all elements are not zero, as `numpy.all`.

    NaN is not zero; -0.0 is. True of nothing. Over all elements it stops at the first that is zero.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
    bool or ndarray of bool

    Raises
    ------
    TypeError
        If `x` is no array of numbers.
    ValueError
        If `axis` names no axis of `x`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.all(np.array([[1, 2], [0, 3]]), axis=1)
    array([ True, False])
    """
    return _core.all(x, axis, keepdims, dtype, threads)


def topk(
    x: Array,
    k: int,
    axis: int | None = -1,
    *,
    largest: bool = True,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """Return the `k` largest elements along an axis, largest first, and their indices.

    Of equal ones the first: those of a stable sort. NaN counts as the largest number, as in `numpy.sort` and
    `torch.topk`; -0.0 and 0.0 are equal.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
        Any shape and strides; not written. What is not C-contiguous with the axis last is copied first.
    k : int
        How many, from 0 to the length of the axis.
    axis : int or None
        None: all elements, in C order.
    largest : bool
        False: the smallest, smallest first, NaN last.
    keepdims : bool
        With axis None: whether the other axes stay, with length 1, and the last holds the `k`. The axis itself always
        stays.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    values : ndarray
        In the dtype of `x`, `k` long along the axis.
    indices : ndarray of int64
        Along the axis.

    Raises
    ------
    TypeError
        If `x` is no array of numbers.
    ValueError
        If `axis` names no axis of `x`, or `k` is out of its range.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.topk(np.array([3.0, 7.0, 1.0, 7.0]), 2)
    (array([7., 7.]), array([1, 3]))
    """
    array = as_array(x, "topk: x")
    if axis is None:
        shape = (1,) * (array.ndim - 1)
        flat = array.reshape(-1)
        places = _core.top_places(flat, k, largest, dtype, threads)
        values = flat[places]
        return (values.reshape(*shape, -1), places.reshape(*shape, -1)) if keepdims else (values, places)
    try:
        moved = np.moveaxis(array, axis, -1)
    except (OverflowError, TypeError, ValueError):
        raise _no_axis("topk", axis, array.ndim) from None
    places = _core.top_places(moved, k, largest, dtype, threads)
    values = np.take_along_axis(moved, places, -1)
    return np.moveaxis(values, -1, axis), np.moveaxis(places, -1, axis)


def _no_axis(function: str, axis: Any, ndim: int) -> Exception:
    if isinstance(axis, int) and not isinstance(axis, bool):
        return ValueError(f"{function}: axis must be within the {ndim} axes of x, got {shown(axis)}")
    return TypeError(f"{function}: axis must be None or an integer, got {shown(axis)}")


def allclose(
    a: Array,
    b: Array,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> bool:
    """Return whether two arrays agree within tolerances: ``|a - b| <= atol + rtol * |b|`` everywhere.

    As `numpy.allclose`, but computed in float64 whatever the dtypes: no difference is rounded to float32 first.
    Infinities agree where they are equal. It stops at the first pair that does not agree, and makes no array.

    Parameters
    ----------
    a, b : ndarray of float32, float64, float16, bfloat16, integers or bool
        Of any dtypes, and shapes that broadcast (one number is not repeated in memory, other shapes are); not written.
    rtol, atol : float
        Relative and absolute tolerance.
    equal_nan : bool
        Whether two NaN agree.
    dtype : "bf16", optional
        Read uint16 arrays as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `a` or `b` is no array of numbers.
    ValueError
        If their shapes don't broadcast.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.reduce.allclose(np.array([1.0, 2.0]), np.array([1.0, 2.00001]))
    True
    """
    x, y = as_array(a, "allclose: a"), as_array(b, "allclose: b")
    if x.shape != y.shape and x.size != 1 and y.size != 1:
        try:
            x, y = np.broadcast_arrays(x, y)
        except ValueError:
            raise ValueError(f"allclose: b must broadcast with shape {x.shape}, got shape {y.shape}") from None
    return _core.allclose(x, y, (rtol, atol, equal_nan), dtype, threads)


def sum(
    x: Array,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Any:
    """Return the sum, as accurate as if computed in twice the precision of float64.

    ``sum x``; 0 of nothing. Integers are summed exactly.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        Whatever the float dtype of `x`: nothing of the sum is lost. Of integers and bools int64, of unsigned ones
        uint64, as `numpy.sum`: modulo 2**64.

    Raises
    ------
    TypeError
        If `x` is no array of numbers.
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
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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

    0 of nothing, and of integers.

    Parameters
    ----------
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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
    x : ndarray of float32, float64, float16, bfloat16, integers or bool
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
        If `x` is no array of numbers.
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
    except OverflowError:  # an int
        raise ValueError(f"quantile: q must be from 0 to 1, got {shown(q)}") from None
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
