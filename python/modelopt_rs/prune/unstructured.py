"""Pruning of single weights by magnitude: a threshold, a share, N of M."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Axis, Bf16, MaskKind, Nan, PruneCall
from modelopt_rs.arguments import check_choice, listed, shown
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import renamed

__all__ = ["apply_mask", "global_magnitude", "magnitude", "n_of_m", "prune_into", "share_of", "threshold"]


def prune_into(
    function: str,
    w: Array,
    core: Callable[[Array, PruneCall], None],
    mask: MaskKind,
    out: Array | None,
    options: tuple[Nan, Bf16, int | None],
) -> Array:
    """Call `core` with the array that it writes: weights, or a mask as bytes; the result as it was asked for."""
    nan, dtype, threads = options
    first = _before_out(nan, out)
    _check_kind(function, mask)
    w = as_array(w, f"{function}: w")
    if mask is None:
        _check_no_mask(function, "out", out, w)
        result = np.empty(w.shape, w.dtype) if out is None else out
        core(result, (first, dtype, threads))
        return result
    if out is not None:
        shape = w.shape if mask == "bool" else packed_shape(w.shape)
        _check_mask(function, "out", out, mask)
        if out.shape != shape:
            raise ValueError(f"{function}: out must have shape {shape} for mask={mask!r}, got {out.shape}")
    if mask == "bool" and out is not None:
        core(out.view(np.uint8), (first, dtype, threads))
        return out
    flags = np.empty(w.shape, np.uint8)
    core(flags, (nan, dtype, threads))
    if mask == "bool":
        return flags.view(np.bool_)
    packed = np.empty(packed_shape(w.shape), np.uint8) if out is None else out
    _core.pack(flags, 1, packed, threads)
    return packed


def share_of(
    function: str, sparsity: float | None, n: int | None, m: int | None
) -> tuple[float | None, tuple[int, int] | None]:
    """Give the one of sparsity and (n, m) that was given."""
    if (sparsity is None) == (m is None):
        got = "neither" if sparsity is None else "both"
        raise ValueError(f"{function}: sparsity or n and m must be given, got {got}")
    if (n is None) != (m is None):
        raise ValueError(f"{function}: n and m must come together, got n={shown(n)}, m={shown(m)}")
    return sparsity, None if n is None or m is None else (n, m)


def _check_kind(function: str, mask: MaskKind) -> None:
    check_choice(function, "mask", mask, (None, "bool", "bits"))


def _check_mask(function: str, name: str, out: Array, mask: MaskKind) -> None:
    want = np.dtype(np.bool_ if mask == "bool" else np.uint8)
    if not isinstance(out, np.ndarray) or out.dtype != want:
        got = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"{function}: {name} must have dtype {want} for mask={mask!r}, got {got}")


def _check_no_mask(function: str, name: str, out: Array | None, w: Array) -> None:
    """Refuse bytes where weights are asked for: the core would take them for a mask."""
    if isinstance(out, np.ndarray) and out.dtype.itemsize == 1:
        raise TypeError(f"{function}: {name} must have dtype {w.dtype}, got {out.dtype}")


def _before_out(nan: Nan, out: object) -> str:
    """Say when NaN is refused: before the caller's own memory is written."""
    return "raise-first" if out is not None and isinstance(nan, str) and nan == "raise" else nan


def packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape of a mask in bits: each row of the last axis begins on a byte."""
    return (*shape[:-1], -(-shape[-1] // 8)) if shape else (1,)


@renamed(nan="nonfinite")
def threshold(
    w: Array,
    eps: float,
    *,
    mask: MaskKind = None,
    nonfinite: Nan = "raise",
    out: Array | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Set to zero what is no larger than `eps`.

    ``out = w where |w| > eps, else 0``

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides. Not written, unless it is `out` as well.
    eps : float
        At least 0; in the units of `w`.
    mask : None, "bool" or "bits"
        Return which weights stay instead: bool of the shape of `w`, or uint8 with a bit for each, lowest bit first,
        rows of the last axis beginning on a byte (as `numpy.packbits` with ``axis=-1, bitorder="little"``).
    nonfinite : "raise" or "largest"
        What NaN is: an error, or larger than all numbers, so that it stays.
    out : ndarray, optional
        Written and returned: the shape and dtype of `w` (or of the mask). `w` itself: in place.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `w` is no array of floats, or `out` has another dtype.
    ValueError
        If `eps` is negative or NaN, `w` holds NaN, or `out` has another shape or overlaps `w`; nothing is written.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.prune.threshold(np.array([0.5, -0.1, 0.2, -3.0]), 0.2)
    array([ 0.5,  0. ,  0. , -3. ])
    """
    return prune_into(
        "threshold", w, lambda to, how: _core.threshold(w, eps, to, how), mask, out, (nonfinite, dtype, threads)
    )


@renamed(nan="nonfinite")
def magnitude(
    w: Array,
    sparsity: float = 0.5,
    *,
    axis: Axis = None,
    mask: MaskKind = None,
    nonfinite: Nan = "raise",
    out: Array | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Set the smallest magnitudes to zero: exactly ``round(sparsity * n)`` of them.

    Among equal magnitudes the lowest index goes first, so the result is the same on every machine. (A threshold that is
    taken from a sorted copy, as the scripts of papers do, prunes all ties.) ``round`` is Python's, half to even.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides. Not written, unless it is `out` as well.
    sparsity : float
        The share that goes, from 0 to 1.
    axis : None, int or tuple of int
        None: one ranking of all weights. Else each slice along `axis` loses the same share: ``axis=1`` of a matrix
        (out, in) prunes each row by itself, ``axis=(1, 2, 3)`` each filter of a convolution.
    mask : None, "bool" or "bits"
        Return which weights stay instead; see `threshold`.
    nonfinite : "raise" or "largest"
        What NaN is: an error, or larger than all numbers, so that it stays.
    out : ndarray, optional
        Written and returned: the shape and dtype of `w` (or of the mask). `w` itself: in place.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `w` is no array of floats, or `out` has another dtype.
    ValueError
        If `sparsity` is outside 0 to 1, `w` holds NaN, `axis` names no axis, or `out` does not fit; nothing is written.

    References
    ----------
    Han, Pool, Tran, Dally 2015, "Learning both weights and connections for efficient neural networks", arXiv
    1506.02626.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = np.array([[1.0, -2.0, 3.0, -4.0], [5.0, 6.0, 7.0, 8.0]])
    >>> mo.prune.magnitude(w, 0.5)
    array([[0., 0., 0., 0.],
           [5., 6., 7., 8.]])
    >>> mo.prune.magnitude(w, 0.5, axis=1)
    array([[ 0.,  0.,  3., -4.],
           [ 0.,  0.,  7.,  8.]])
    """
    return prune_into(
        "magnitude",
        w,
        lambda to, how: _core.magnitude(w, sparsity, axis, to, how),
        mask,
        out,
        (nonfinite, dtype, threads),
    )


@overload
def global_magnitude(
    arrays: Sequence[Array],
    sparsity: float = 0.5,
    *,
    mask: MaskKind = None,
    nonfinite: Nan = "raise",
    out: Sequence[Array] | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> list[Array]: ...
@overload
def global_magnitude(
    arrays: Mapping[str, Array],
    sparsity: float = 0.5,
    *,
    mask: MaskKind = None,
    nonfinite: Nan = "raise",
    out: Mapping[str, Array] | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> dict[str, Array]: ...
@renamed(nan="nonfinite")
def global_magnitude(
    arrays: Sequence[Array] | Mapping[str, Array],
    sparsity: float = 0.5,
    *,
    mask: MaskKind = None,
    nonfinite: Nan = "raise",
    out: Sequence[Array] | Mapping[str, Array] | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> list[Array] | dict[str, Array]:
    """Set the smallest magnitudes of all arrays together to zero: exactly ``round(sparsity * n)`` of all `n` weights.

    Nothing is concatenated. Among equal magnitudes the first array and in it the lowest index goes first.

    Parameters
    ----------
    arrays : list or dict of ndarray
        float32, float64, float16 or bfloat16, all of one dtype; any shapes and strides. Not written, unless they are
        `out`.
    sparsity : float
        The share that goes, from 0 to 1.
    mask : None, "bool" or "bits"
        Return which weights stay instead; see `threshold`.
    nonfinite : "raise" or "largest"
        What NaN is: an error, or larger than all numbers, so that it stays.
    out : list or dict of ndarray, optional
        As `arrays`. Written and returned; not with ``mask="bits"``.
    dtype : "bf16", optional
        Read uint16 arrays as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    list or dict of ndarray
        As `arrays`.

    Raises
    ------
    TypeError
        If an array is no array of floats, or has another dtype than the first.
    ValueError
        If `sparsity` is outside 0 to 1, an array holds NaN, or `out` does not fit; nothing is written.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.prune.global_magnitude([np.array([1.0, 2.0]), np.array([0.5, -3.0])], 0.5)
    [array([0., 2.]), array([ 0., -3.])]
    """
    function = "global_magnitude"
    _check_kind(function, mask)
    if mask == "bits" and out is not None:
        raise ValueError(f'{function}: out must be None with mask="bits", got a list; pack bool masks by mo.quant.pack')
    if isinstance(arrays, Mapping):
        given = None if out is None else _in_order(function, list(arrays), out)
        values: list[Array] = list(arrays.values())
        found = global_magnitude(
            values, sparsity, mask=mask, nonfinite=nonfinite, out=given, dtype=dtype, threads=threads
        )
        return dict(zip(arrays, found, strict=True))
    arrays = listed(function, "arrays", arrays, "NumPy arrays")
    arrays = [as_array(w, f"{function}: arrays[{i}]") for i, w in enumerate(arrays)]
    options: PruneCall = (_before_out(nonfinite, out), dtype, threads)
    if out is not None:
        result = listed(function, "out", out, "NumPy arrays")
        for i, array in enumerate(result):
            if mask is not None:
                _check_mask(function, f"out[{i}]", array, mask)
            elif i < len(arrays) and isinstance(arrays[i], np.ndarray):
                _check_no_mask(function, f"out[{i}]", array, arrays[i])
        written = [array.view(np.uint8) for array in result] if mask is not None else result
        _core.global_magnitude(arrays, sparsity, written, options)
        return result
    kind = np.uint8 if mask is not None else None
    written = [np.empty(w.shape, kind or w.dtype) if isinstance(w, np.ndarray) else w for w in arrays]
    _core.global_magnitude(arrays, sparsity, written, options)
    if mask == "bool":
        return [flags.view(np.bool_) for flags in written]
    if mask == "bits":
        packed = [np.empty(packed_shape(flags.shape), np.uint8) for flags in written]
        for flags, bits in zip(written, packed, strict=True):
            _core.pack(flags, 1, bits, threads)
        return packed
    return written


def _in_order(function: str, names: list[str], out: Any) -> list[Array]:
    """Return the arrays of `out` in the order of the names."""
    if not isinstance(out, Mapping):
        raise TypeError(f"{function}: out must be a dict like arrays, got {shown(out)}")
    if sorted(out) != sorted(names):
        raise ValueError(f"{function}: out must have the keys of arrays, got others")
    return [out[name] for name in names]


@renamed(nan="nonfinite", keep="n", group="m")
def n_of_m(
    w: Array,
    n: int = 2,
    m: int = 4,
    axis: int = -1,
    *,
    mask: MaskKind = None,
    nonfinite: Nan = "raise",
    out: Array | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Keep the `n` largest of each `m` consecutive weights along `axis`; the others become zero.

    2 of 4 is the sparsity that hardware multiplies twice as fast. `n` counts what stays (some tools count the
    zeros). Among equal magnitudes the lowest index goes first.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides. Not written, unless it is `out` as well.
    n : int
        From 1 to below `m`.
    m : int
        From 2 to 32; divides the length of `axis`.
    axis : int
        Which axis the groups lie along: that of the inputs, the last of a matrix (out, in).
    mask : None, "bool" or "bits"
        Return which weights stay instead; see `threshold`.
    nonfinite : "raise" or "largest"
        What NaN is: an error, or larger than all numbers, so that it stays.
    out : ndarray, optional
        Written and returned: the shape and dtype of `w` (or of the mask). `w` itself: in place.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `w` is no array of floats, or `out` has another dtype.
    ValueError
        If `n` or `m` are out of range, `m` does not divide the axis, `w` holds NaN, or `out` does not fit;
        nothing is written.

    References
    ----------
    Mishra et al. 2021, "Accelerating sparse deep neural networks", arXiv 2104.08378.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.prune.n_of_m(np.array([1.0, -2.0, 3.0, -4.0, 5.0, 5.0, 5.0, 5.0]))
    array([ 0.,  0.,  3., -4.,  0.,  0.,  5.,  5.])
    """
    return prune_into(
        "n_of_m",
        w,
        lambda to, how: _core.n_of_m(w, n, m, axis, to, how),
        mask,
        out,
        (nonfinite, dtype, threads),
    )


def apply_mask(
    w: Array, mask: Array, *, out: Array | None = None, dtype: Bf16 = None, threads: int | None = None
) -> Array:
    """Set the weights to zero that a mask leaves out.

    ``out = w where mask, else 0`` (so NaN and infinity go as well, unlike in a product).

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides. Not written, unless it is `out` as well.
    mask : ndarray of bool or uint8
        bool of the shape of `w`, or bits as ``mask="bits"`` gives them.
    out : ndarray, optional
        Written and returned: the shape and dtype of `w`. `w` itself: in place.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `w` is no array of floats or `mask` no mask.
    ValueError
        If `mask` or `out` have another shape.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.prune.apply_mask(np.array([1.0, 2.0, np.nan]), np.array([True, False, False]))
    array([1., 0., 0.])
    """
    if not isinstance(mask, np.ndarray) or mask.dtype not in (np.bool_, np.uint8):
        got = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"apply_mask: mask must have dtype bool, or uint8 for bits, got {got}")
    w = as_array(w, "apply_mask: w")
    if mask.dtype == np.bool_:
        flags = mask.view(np.uint8)
    else:
        if mask.shape != packed_shape(w.shape):
            want = packed_shape(w.shape)
            raise ValueError(f"apply_mask: mask must have shape {want}, a bit for each weight, got {mask.shape}")
        flags = np.empty(w.shape, np.uint8)
        _core.unpack(mask, 1, w.shape[-1] if w.ndim else 1, flags.reshape(w.shape or (1,)), threads)
    result = np.empty(w.shape, w.dtype) if out is None else out
    _core.apply_mask(w, flags, result, ("largest", dtype, threads))
    return result
