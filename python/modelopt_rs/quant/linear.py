"""Products with quantized weights: `linear`."""

from typing import Literal, TypeAlias

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.arguments import shown
from modelopt_rs.arrays import as_array
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.quant.packed_weight import PackedWeight

__all__ = ["Compute", "linear"]

Compute: TypeAlias = Literal["int8", "int24", "float32"]
"""How sums of products are made."""


def linear(
    x: Array,
    w: QuantizedArray | PackedWeight,
    bias: Array | None = None,
    *,
    compute: Compute = "int8",
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Multiply rows by quantized weights: ``x @ w.T + bias``, without floats of the whole of `w`.

    ``y[m, n] = sum over k of x[m, k] w[n, k] + bias[n]`` in one of three ways:

    - ``"int8"``: each block of a row of `x` becomes whole numbers from -127 to 127, in units of its largest magnitude
      by 127 (halves to even), as in onnxruntime's MatMulNBits of accuracy level 4. A block is a group of `w`; of groups
      of more than 256 elements, and of rows, it is 128 elements.
    - ``"int24"``: the same with units of the largest magnitude by 4,194,303: as good as float32 for most uses, and
      faster than that.
    - ``"float32"``: `x` as it is, and the numbers of `w` as `dequantize` makes them; for `w` of any format.

    With codes c, zero points z, scales s and offsets o of a block of `w`, and whole numbers a in units u of `x`,
    ``y = sum over blocks of ((sum of c a - z sum of a) s + (sum of a) o) u``. Both inner sums are exact, all else is
    float32 in the order of the blocks. In "float32" products are summed in 64 lanes, element k in lane ``k % 64``,
    joined in halves. So neither the instruction set, nor the number of threads, nor how many rows there are changes a
    bit, and packed weights give the bits of those that are not.

    The error is at most, for each block, ``sum of |w|`` times half a unit (0.7 of one in "int24"), and the rounding of
    a float32 sum of as many terms as there are blocks (elements by 64 in "float32").

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        ``(..., in)``, computed with as float32; not written. In "int8" and "int24" a row with NaN or infinities has
        results of NaN alone; in "float32" they do what they do in sums of products.
    w : QuantizedArray or PackedWeight
        ``(out, in)``. Of what isn't packed a few rows at a time are brought into the packed form on the way, which
        costs as much as a product with a few rows of `x`. (Not for one row of `x` and codes of 8 bits with a scale for
        each row or for the whole, on CPUs with AVX-512 VNNI.) Scales are rounded to float32.
    bias : ndarray of float32, optional
        ``(out,)``, added last.
    compute : {"int8", "int24", "float32"}
        See above. Packed weights have no "float32".
    out : ndarray of float32, optional
        C-contiguous, ``(..., out)``, apart from all else: written and returned.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    ndarray of float32
        ``(..., out)``.

    Raises
    ------
    TypeError
        If `x` or `bias` is no array of these dtypes, or `w` neither of both.
    ValueError
        If shapes don't fit, or `w` has a format, or scales for its columns or for tiles, that only "float32" takes.

    References
    ----------
    onnxruntime, operator com.microsoft.MatMulNBits, attribute ``accuracy_level``.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = mo.quantize(np.array([[1, -2, 0.5], [0, 3, 3]], np.float32), axis=0)
    >>> x = np.array([[1, 1, 2], [0, 1, -1]], np.float32)
    >>> mo.quant.linear(x, w).round(2)
    array([[ 0.01,  9.02],
           [-2.5 ,  0.  ]], dtype=float32)
    >>> packed = w.prepack()
    >>> bool((mo.quant.linear(x, packed) == mo.quant.linear(x, w)).all())
    True
    """
    if not isinstance(w, QuantizedArray | PackedWeight):
        raise TypeError(f"linear: w must be a QuantizedArray or a PackedWeight, got {shown(w)}")
    if type(x) is not np.ndarray:
        x = as_array(x, "linear: x")
    if out is None:
        if x.ndim == 0:
            raise ValueError("linear: x must have axes, got shape ()")
        out = np.empty(x.shape[:-1] + w.shape[:1], np.float32)
    if isinstance(w, PackedWeight):
        spec = ((w.bits, w.scheme), 0 if w.group_size is None else None, w.group_size)
        _core.linear_packed(x, (w.panels, spec, w.shape), bias, out, compute, threads)
    else:
        _core.linear_rows(x, w._given, bias, out, compute, threads)
    return out
