"""Quantization of arrays: `quantize` and `fake_quantize`, in every format."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, GroupSize, Nonfinite, Rounding, ScaleDtype, Scheme, Search, Spec
from modelopt_rs.arrays import as_array
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.quant.formats import entry_of, resolve
from modelopt_rs.quant.given_scales import Given, check_rounding
from modelopt_rs.quant.search import Parameters

__all__ = ["allocate", "check_out", "fake_quantize", "quantize"]


def quantize(
    x: Array,
    *,
    bits: int = 8,
    scheme: Scheme = "symmetric",
    format: str | None = None,
    axis: int | None = None,
    group_size: GroupSize = None,
    search: Search = None,
    weights: Array | None = None,
    norm: float | None = None,
    scale: Array | float | None = None,
    zero_point: Array | int | None = None,
    signed: bool | None = None,
    rounding: Rounding = "even",
    scale_dtype: ScaleDtype = None,
    nonfinite: Nonfinite = "raise",
    out: QuantizedArray | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> QuantizedArray:
    """Quantize an array to 8, 4 or 2 bits: evenly, by a scheme, or in a named format.

    With `format`: ``x ≈ number(code) * scale``, see `modelopt_rs.quant.formats`. Else
    ``code = clamp(round((x - offset) / scale) + zero_point)``, rounding half to even, clamped before the cast.

    - "symmetric": ``scale = absmax / (2**(bits-1) - 1)``, codes in ``±(2**(bits-1) - 1)``.
    - "asymmetric": the range is widened to include 0; ``scale = (max - min) / (2**bits - 1)``,
      ``zero_point = round(-min / scale)``, codes from 0 to ``2**bits - 1`` (ONNX, torch).
    - "minmax": the same codes over exactly ``[min, max]``, ``offset = min``: the textbook formula, made safe (an
      int8 cast of codes up to 255 would wrap).

    The range and the scale are computed in float64, the codes in the dtype of the scale. An all-zero (for minmax:
    constant) part has scale 1. A scale is never below the smallest normal number.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    bits : {8, 4, 2}
        Bits of a code; 4 and 2 are packed.
    scheme : {"symmetric", "asymmetric", "minmax"}
        As above.
    format : str, optional
        A name that `modelopt_rs.quant.formats` lists, in the place of `bits` and `scheme`: "nf4", "fp4", "mxfp4",
        "mxfp8", "nvfp4", "fp8_e4m3", "fp8_e5m2", or of uniform codes, as "int4_asymmetric".
    axis : int, optional
        The axis that keeps a scale for each of its indices (as in ONNX and torch).
    group_size : int, optional
        A scale for each `group_size` consecutive elements of the last axis; a short last group is a group. Formats have
        their own: "nf4" and "fp4" 64, or a power of two from 32 to 4096; "mxfp4" and "mxfp8" 32; "nvfp4" 16. A pair
        (with "fp8_e4m3" and "fp8_e5m2"): tiles of so many rows and columns, smaller at the edges.
    search : {"mse"}, optional
        Find the scale (and zero point or offset) of each part with the least squared error: the best of a grid, then
        by least squares with its codes made anew, as they are stored. Symmetric scales may then be negative, and the
        lowest code, ``-2**(bits-1)``, is used. Of "minmax" the least squares are those of scale and offset together.
        Never worse than the plain formula. Not for named formats but those of uniform codes.
    weights : ndarray of float32, optional
        With `search`: how much the squared error of each element of the last axis counts; not negative.
    norm : float, optional
        With `search`: the sum of the absolute errors to this power is made small, not that of their squares; from 0.5
        to 4. Below 2 outliers count less (HQQ: 0.7), above 2 more (compressed-tensors: 2.4). By iteratively reweighted
        least squares: each round no worse, but not always the best there is.
    scale : ndarray or float, optional
        Scales to be used, of the shape and dtype that `QuantizedArray.scale` has; not 0. What lies beyond the codes
        becomes the lowest, ``-2**(bits-1)`` or 0, or the highest.
    zero_point : ndarray of uint8 or int, optional
        With `scale`, for scheme "asymmetric".
    signed : bool, optional
        With `scale`: whether codes go from ``-2**(bits-1)`` or from 0 on; None: as the scheme has it. Signed codes with
        zero points (of int8) and unsigned ones without (they are 0 then) have the scheme "asymmetric".
    rounding : {"even", "away"}
        With `scale`: what becomes of halves, see `modelopt_rs.quant.quantize_linear`.
    scale_dtype : {"float32", "float16", "bfloat16"}, optional
        What scales are rounded to before codes are made, for where they are stored so; the array of scales keeps its
        dtype. For float16 below 8 bits to 7 significant bits, so that code times scale is exact in float16.
        Subnormal numbers of float16 are used, larger scales become its largest (below 8 bits 4,096).
    nonfinite : {"raise", "saturate"}
        What to do with NaN and infinities: refuse them, or map NaN to the code of zero and infinities to the limits,
        with ranges over the finite numbers.
    out : QuantizedArray, optional
        Rewritten and returned; made by a call with the same shape, dtype and options. Costs one more read of `x`
        where `nonfinite` is "raise", because nothing may be written before all is checked.
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
        If `x` is no array of floats.
    ValueError
        If an option is out of its range, `x` is not finite, or `out` does not fit.

    References
    ----------
    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", equation 1 (arXiv 1712.05877). The search: ggml's Q4_0 has scales of either sign, its `make_qx_quants` a
    grid with least squares; Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for
    rapid-deployment", on clipping (arXiv 1810.05723).

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> x = np.array([[-1.0, 0.5, 0.25, 1.0]], dtype=np.float32)
    >>> mo.quantize(x).codes
    array([[-127,   64,   32,  127]], dtype=int8)
    >>> q = mo.quantize(x, bits=4, group_size=2)
    >>> q.codes.shape, q.scale.shape
    ((1, 2), (1, 2))
    >>> float(np.abs(np.asarray(q) - x).max()) <= float(q.scale.max()) / 2
    True
    >>> x = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
    >>> def loss(**options):
    ...     return float(np.square(x - mo.fake_quantize(x, bits=4, group_size=32, **options)).mean())
    >>> loss(search="mse") < 0.75 * loss()
    True
    >>> mo.quantize(np.array([0.5, 1.0, 9.0], np.float32), scale=0.0625).codes
    array([  8,  16, 127], dtype=int8)
    >>> mo.quantize(x, format="nf4")
    QuantizedArray(shape=(64, 256), format='nf4', group_size=64)
    """
    # What small calls pass is asked for first: a check that finds nothing costs them a tenth of their time.
    if type(x) is not np.ndarray:
        x = as_array(x, "quantize: x")
    coding, group_size = resolve("quantize", format, bits, scheme, group_size)
    if signed is not None or not (isinstance(rounding, str) and rounding == "even"):
        check_rounding("quantize", signed, rounding)
        given = Given("quantize", scale, zero_point, signed, rounding, (search, weights, scale_dtype, norm))
        return given.quantize(x, (coding, axis, group_size), nonfinite, out, dtype, threads)
    spec = (coding, axis, group_size)
    parameters = None
    if any(each is not None for each in (search, scale, scale_dtype, weights, norm, zero_point)):
        parameters = Parameters("quantize", search, weights, scale, zero_point, scale_dtype, norm)
    if out is None:
        out = allocate("quantize", x, spec)
        if parameters is not None:
            found = parameters.of(x, spec, out.scale.shape, dtype, threads)
            _core.quantize_given(x, out.codes, found, spec, nonfinite, dtype, threads)
            out.scale = found[0]
            setattr(out, _beside(out), found[1])
            return out
    else:
        check_out("quantize", out, spec)
        if parameters is not None:
            found = parameters.of(x, spec, _shapes(x.shape, spec)[1], dtype, threads)
            _write_given(out, found, (x, spec, nonfinite, dtype, threads))
            return out
        if isinstance(nonfinite, str) and nonfinite == "raise":
            nonfinite = "raise-first"  # type: ignore[assignment]  # the core's own name
    parts = (out.codes, out.scale, out.zero_point, out.offset, out.global_scale)
    _core.quantize(x, parts, spec, nonfinite, None, dtype, threads)
    return out


@lru_cache(maxsize=256)  # half the time of a small call
def _shapes(shape: tuple[int, ...], spec: Spec, function: str = "quantize") -> tuple[tuple[int, ...], tuple[int, ...]]:
    return _core.quantized_shapes(shape, spec, function)


def allocate(function: str, x: Array, spec: Spec) -> QuantizedArray:
    """Return a quantized array for `x`, of any contents."""
    shape = x.shape
    try:
        codes_shape, parts_shape = _shapes(shape, spec, function)
    except TypeError:  # unhashable: whatever is wrong with it, the core says so
        codes_shape, parts_shape = _core.quantized_shapes(shape, spec, function)
    coding, axis, group_size = spec
    entry = entry_of(coding)
    codes = np.empty(codes_shape, entry.parts["codes"])
    if entry.scheme is None:
        scale = np.empty(parts_shape, entry.parts["scale"])
        global_scale = np.empty((), np.float32) if "global_scale" in entry.parts else None
        named = (entry.name, global_scale)
        return QuantizedArray(codes, scale, None, None, entry.bits, None, shape, axis, group_size, *named)
    wide = np.float64 if x.dtype.char == "d" else np.float32
    zero_point = np.empty(parts_shape, np.uint8) if entry.scheme == "asymmetric" else None
    offset = np.empty(parts_shape, wide) if entry.scheme == "minmax" else None
    scale = np.empty(parts_shape, wide)
    return QuantizedArray(codes, scale, zero_point, offset, entry.bits, entry.scheme, shape, axis, group_size)


def _beside(out: QuantizedArray) -> str:
    """Return the name of what stands beside scales that were found."""
    return "offset" if out.scheme == "minmax" else "zero_point"


def _write_given(out: QuantizedArray, found: tuple[Array, Array | None], call: tuple[Any, ...]) -> None:
    """Write codes and parameters to arrays that were there before."""
    for name, new in (("scale", found[0]), (_beside(out), found[1])):
        part = getattr(out, name)
        if new is not None and (part.shape, part.dtype, part.flags.writeable) != (new.shape, new.dtype, True):
            wanted = f"be writeable, with shape {new.shape} and dtype {new.dtype}"
            raise ValueError(f"quantize: out.{name} must {wanted}, got {part.shape} and {part.dtype}")
    x, *rest = call
    _core.quantize_given(x, out.codes, found, *rest)
    np.copyto(out.scale, found[0])
    beside = getattr(out, _beside(out))
    if beside is not None and found[1] is not None:
        np.copyto(beside, found[1])


def check_out(function: str, out: QuantizedArray, spec: Spec) -> None:
    """Refuse what was made with other options."""
    if not isinstance(out, QuantizedArray):
        raise TypeError(f"{function}: out must be a QuantizedArray, got {type(out).__name__}")
    if (out.format or (out.bits, out.scheme), out.axis, out.group_size) == spec:
        return

    named = isinstance(spec[0], str)

    def told(coding: Any, *cut: object) -> str:
        names = ("format",) if named else ("bits", "scheme")
        given = (coding,) if named else coding
        return ", ".join(f"{k}={v!r}" for k, v in zip((*names, "axis", "group_size"), (*given, *cut), strict=True))

    have = (out.format if named else (out.bits, out.scheme), out.axis, out.group_size)
    raise ValueError(f"{function}: out must have {told(*spec)}, got {told(*have)}")


def fake_quantize(
    x: Array,
    *,
    bits: int = 8,
    scheme: Scheme = "symmetric",
    format: str | None = None,
    axis: int | None = None,
    group_size: GroupSize = None,
    search: Search = None,
    weights: Array | None = None,
    norm: float | None = None,
    scale: Array | float | None = None,
    zero_point: Array | int | None = None,
    signed: bool | None = None,
    rounding: Rounding = "even",
    scale_dtype: ScaleDtype = None,
    nonfinite: Nonfinite = "raise",
    out: Array | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Quantize and dequantize at once: `x` as it would come back, in its own dtype.

    The same bits as ``quantize(x, ...).dequantize(x.dtype)``, without the codes. See `quantize` for the parameters.

    Parameters
    ----------
    x, bits, scheme, format, axis, group_size, search, weights, norm, scale, zero_point, signed, rounding, scale_dtype
        As for `quantize`.
    nonfinite, dtype, threads
        As for `quantize`.
    out : ndarray, optional
        Of x's shape and dtype: written and returned. C-contiguous and apart from `x`; or `x` itself: in place, by way
        of a copy.

    Raises
    ------
    TypeError, ValueError
        As for `quantize`.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.fake_quantize(np.array([0.0, 0.3, 1.0], dtype=np.float32), bits=2)
    array([0., 0., 1.], dtype=float32)
    """
    if out is not None and out is x:
        return _in_place({**locals(), "out": None})
    given: Literal["raise", "saturate", "raise-first"] = nonfinite
    if type(x) is not np.ndarray:
        x = as_array(x, "fake_quantize: x")
    if signed is not None or not (isinstance(rounding, str) and rounding == "even"):
        check_rounding("fake_quantize", signed, rounding)
        coding, group_size = resolve("fake_quantize", format, bits, scheme, group_size)
        how = Given("fake_quantize", scale, zero_point, signed, rounding, (search, weights, scale_dtype, norm))
        made = how.quantize(x, (coding, axis, group_size), nonfinite, None, dtype, threads)
        return made.dequantize("bf16" if dtype == "bf16" else x.dtype, out, threads=threads)
    if out is None:
        out = np.empty(x.shape, x.dtype)
    elif isinstance(nonfinite, str) and nonfinite == "raise":
        given = "raise-first"
    coding, group_size = resolve("fake_quantize", format, bits, scheme, group_size)
    if any(each is not None for each in (search, scale, scale_dtype, weights, norm, zero_point)):
        spec = (coding, axis, group_size)
        parameters = Parameters("fake_quantize", search, weights, scale, zero_point, scale_dtype, norm)
        shape = _core.quantized_shapes(x.shape, spec, "fake_quantize")[1]
        found = parameters.of(x, spec, shape, dtype, threads)
        _core.fake_quantize_given(x, out, found, spec, nonfinite, dtype, threads)
        return out
    _core.fake_quantize(x, out, (coding, axis, group_size), given, dtype, threads)
    return out


def _in_place(arguments: dict[str, Any]) -> Array:
    """Quantize and reconstruct an array that is its own `out`: groups are read while others are written."""
    x = arguments["x"]
    if isinstance(x, np.ndarray) and not x.flags.writeable:
        raise ValueError("fake_quantize: out must be writable, got a read-only array")
    x[...] = fake_quantize(**arguments)
    return x  # type: ignore[no-any-return]
