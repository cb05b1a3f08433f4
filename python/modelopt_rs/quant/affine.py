"""Codes with given scales, one an item, as ONNX's operators have them: `quantize_linear` and its inverse."""

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, Nonfinite, Rounding
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import renamed
from modelopt_rs.quant.codes import Code, code_of, code_of_array, float_dtype

__all__ = ["dequantize_linear", "quantize_linear", "requantize_linear"]

_INT8: Final = code_of("quantize_linear", np.int8)
# In tuples that are made once: a union is made anew at each call, and a small call takes 1.5 us in all.
_OF_NUMPY: Final = (np.ndarray, np.generic)
_NUMBERS: Final = (float, int, *_OF_NUMPY)


@renamed(block_size="group_size")
def quantize_linear(
    x: Array,
    scale: Array | float,
    zero_point: Array | int | None = None,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    dtype: DTypeLike | None = None,
    rounding: Rounding = "even",
    nonfinite: Nonfinite = "saturate",
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Quantize with a scale that is known, as a model was calibrated with it: ONNX's QuantizeLinear.

    ``code = saturate(round(x / scale) + zero_point)``, one code an item; of the float dtypes ``cast(x / scale)``, half
    to even, beyond the largest number that. The quotient is one division in float32 (float64 for float64, but not for
    codes that are floats). onnxruntime computes so too, also of float16.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    scale : ndarray of floats, or float
        Finite and not 0, rounded to the dtype that is computed in. One number; with `axis` also one for each index of
        it, shape ``(x.shape[axis],)``; with `group_size` one for each block, in the shape of `x` but
        ``ceil(x.shape[axis] / group_size)`` at the axis.
    zero_point : ndarray of integers, or int, optional
        The code of 0, in the shape of `scale` or one number. None: 0, as for all codes that are floats.
    axis : int, optional
        Along which scales differ. (ONNX's own default is 1.)
    group_size : int, optional
        Consecutive elements along `axis` that share a scale; the last block may be shorter.
    dtype : dtype or str, optional
        int8, uint8, int16, uint16, of `ml_dtypes` int4, uint4, int2, uint2, float8_e4m3fn, float8_e5m2,
        float8_e4m3fnuz, float8_e5m2fnuz and float4_e2m1fn. By name, as "int4", without `ml_dtypes`: the same codes one
        a byte in int8 or, of what is unsigned and of the bits of floats, uint8. None: that of `out`, of a zero
        point with a dtype of NumPy's, else int8. (`pack` packs codes of 4 and 2 bits.)
    rounding : {"even", "away"}
        What becomes of halves: to even, as in ONNX and in TensorFlow Lite's optimized kernels of 8 bits, which an
        interpreter runs unless told otherwise; or away from zero, as in its specification and reference kernels.
    nonfinite : {"saturate", "raise"}
        NaN becomes the zero point (NaN, of floats that have one) and infinities the limits; or refuse both, which costs
        one more read of `x`.
    out : ndarray, optional
        C-contiguous, of x's shape, apart from `x`: written and returned.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    ndarray
        Codes in the shape of `x`.

    Raises
    ------
    TypeError
        If `x` is no array of floats, or a dtype is none of these.
    ValueError
        If scales don't fit the shape, are 0 or not finite, a zero point is no code, or `out` does not fit.

    References
    ----------
    ONNX, QuantizeLinear, operator set 25. TensorFlow Lite 8-bit quantization specification; its reference kernel
    ``AffineQuantize`` rounds half away from zero.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> x = np.array([[0.0, 0.25, -0.75], [2.0, 300.0, np.nan]], np.float32)
    >>> mo.quant.quantize_linear(x, 0.5, 3)
    array([[  3,   3,   1],
           [  7, 127,   3]], dtype=int8)
    >>> mo.quant.quantize_linear(x, 0.5, 3, rounding="away")
    array([[  3,   4,   1],
           [  7, 127,   3]], dtype=int8)
    >>> mo.quant.quantize_linear(x, np.array([0.5, 2.0], np.float32), axis=0, dtype=np.uint8)
    array([[  0,   0,   0],
           [  1, 150,   0]], dtype=uint8)
    """
    code = _target("quantize_linear", dtype, out, zero_point)
    if type(x) is not np.ndarray:
        x = as_array(x, "quantize_linear: x")
    if out is None:
        out = np.empty(x.shape, code.array)
    if type(scale) is not float:
        scale = _scales("quantize_linear", "scale", scale)
    if zero_point is not None:
        zero_point = _integers("quantize_linear", "zero_point", zero_point)
    _core.quantize_linear(x, out, (scale, zero_point), (code.name, axis, group_size), (rounding, nonfinite), threads)
    return out


@renamed(block_size="group_size")
def dequantize_linear(
    q: Array,
    scale: Array | float,
    zero_point: Array | int | None = None,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    q_dtype: str | None = None,
    dtype: DTypeLike | Literal["bf16"] = np.float32,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Return the numbers of codes: ONNX's DequantizeLinear.

    ``x = (q - zero_point) * scale`` in float32 (in float64 where that is asked for), then rounded once to `dtype`.

    Parameters
    ----------
    q : ndarray
        Codes as `quantize_linear` makes them, or int32. Not written.
    scale, zero_point, axis, group_size
        As for `quantize_linear`; a scale may be any number.
    q_dtype : str, optional
        What the codes of a uint8 array are, where they are the bits of floats: "float8_e4m3fn" and so on.
    dtype : dtype
        float32, float64, float16, bfloat16 (`ml_dtypes`), or "bf16" for bfloat16 bits as uint16. Not used with `out`,
        but for "bf16".
    out : ndarray, optional
        C-contiguous, of q's shape, apart from `q`: written and returned.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError, ValueError
        As for `quantize_linear`.

    References
    ----------
    ONNX, DequantizeLinear, operator set 25.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.quant.dequantize_linear(np.array([3, 127], np.int8), 0.5, 3)
    array([ 0., 62.], dtype=float32)
    """
    bits: Bf16 = "bf16" if isinstance(dtype, str) and dtype == "bf16" else None
    if type(q) is not np.ndarray:
        q = as_array(q, "dequantize_linear: q")
    if out is None:
        out = np.empty(q.shape, float_dtype("dequantize_linear", dtype))
    params = (_scales("dequantize_linear", "scale", scale), _integers("dequantize_linear", "zero_point", zero_point))
    _core.dequantize_linear(q, out, params, (_source("dequantize_linear", q, q_dtype), axis, group_size), bits, threads)
    return out


@renamed(block_size="group_size")
def requantize_linear(
    q: Array,
    scale: Array | float,
    zero_point: Array | int | None,
    to_scale: Array | float,
    to_zero_point: Array | int | None = None,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    q_dtype: str | None = None,
    dtype: DTypeLike | None = None,
    rounding: Rounding = "even",
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Turn codes into codes with another scale, zero point or dtype, as sums of products into int8.

    The bits of ``quantize_linear(dequantize_linear(q, scale, zero_point), to_scale, to_zero_point)`` in one pass,
    without the floats between.

    Parameters
    ----------
    q : ndarray
        Codes as `quantize_linear` makes them, or int32. Not written.
    scale, zero_point
        Of `q`, as for `dequantize_linear`.
    to_scale, to_zero_point
        Of the result, as for `quantize_linear`.
    axis, group_size
        For those that are more than one number.
    q_dtype : str, optional
        As for `dequantize_linear`.
    dtype, rounding, out, threads
        As for `quantize_linear`.

    Raises
    ------
    TypeError, ValueError
        As for `quantize_linear`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> sums = np.array([-40000, 0, 1234], np.int32)
    >>> mo.quant.requantize_linear(sums, 0.001, None, 0.25, 10)
    array([-128,   10,   15], dtype=int8)
    """
    code = _target("requantize_linear", dtype, out, to_zero_point)
    q = as_array(q, "requantize_linear: q")
    if out is None:
        out = np.empty(q.shape, code.array)
    from_ = (_scales("requantize_linear", "scale", scale), _integers("requantize_linear", "zero_point", zero_point))
    to = (
        _scales("requantize_linear", "to_scale", to_scale),
        _integers("requantize_linear", "to_zero_point", to_zero_point),
    )
    _core.requantize_linear(
        (q, out),
        from_,
        to,
        (_source("requantize_linear", q, q_dtype), axis, group_size),
        (code.name, rounding),
        threads,
    )
    return out


def _target(function: str, dtype: DTypeLike | None, out: Array | None, zero_point: Any) -> Code:
    """Return what is written: what is named, the dtype of `out`, that of zero points with a dtype of NumPy's, int8."""
    if dtype is not None:
        return code_of(function, dtype)
    if out is not None:
        given = (out if isinstance(out, np.ndarray) else as_array(out, f"{function}: out")).dtype
        return _INT8 if given is _INT8.array else code_of(function, given, "the dtype of out")
    if isinstance(zero_point, _OF_NUMPY) and zero_point.dtype.itemsize < 4:
        return code_of(function, zero_point.dtype)
    return _INT8


def _source(function: str, q: Array, q_dtype: str | None) -> str:
    if q_dtype is not None:
        return code_of(function, q_dtype, "q_dtype").name
    return code_of_array(q)


def _integers(function: str, name: str, given: Any) -> Any:
    """Return zero points as the core takes them: an int, or an array of int64."""
    if given is None or type(given) is int:
        return given
    if isinstance(given, np.integer) and given.dtype.char not in "LQ":
        return int(given)
    if isinstance(given, np.generic):
        given = np.asarray(given)
    if not isinstance(given, np.ndarray):
        return given  # an integer of another kind, or what the core refuses
    if given.dtype.kind not in "iu" and not given.dtype.name.startswith(("float8", "float4", "int", "uint")):
        raise TypeError(f"{function}: {name} must be an int or an array of integers, got {given.dtype}")
    if given.dtype.char in "LQ":
        given = np.minimum(given, given.dtype.type(np.iinfo(np.int64).max))  # no code, whatever the codes are
    return given.astype(np.int64)


def _scales(function: str, name: str, given: Any) -> Any:
    """Return scales as the core takes them: a number, or an array."""
    if given is True or given is False:
        raise TypeError(f"{function}: {name} must be a number, got {given}")
    if isinstance(given, _NUMBERS) or not hasattr(given, "__dlpack__"):
        return given
    return as_array(given, f"{function}: {name}")
