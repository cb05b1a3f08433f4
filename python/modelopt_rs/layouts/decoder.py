"""`Decoder`: codes to the numbers that compressed-tensors makes of them.

It multiplies in the dtype of the scales, so a weight with scales of 16 bits is rounded to 16 bits, whatever dtype the
model has. A file means what its loader makes of it: what we read is rounded alike. (On other roads transformers makes
the scales float32 first. What we write for float32 models has scales with which both give the same numbers.)
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array, Parts, Spec
from modelopt_rs.dtypes import FLOATS, bf16_to_float32, numpy_dtype
from modelopt_rs.stream.buffer import Buffer

__all__ = ["Decoder"]

_HALVES: Final = ("F16", "BF16")


class Decoder:
    """Dequantizes tiles of one tensor.

    Parameters
    ----------
    spec : (format, axis, group size)
        As `_core.dequantize` takes it.
    precision : str
        The dtype of the scales, in which the loader multiplies.
    dtype : {"F32", "F64", "F16", "BF16"}
        Of what is made. Only wide dtypes can show what is rounded to 16 bits: a narrow one is rounded to once.
    threads : int or None

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.layouts.decoder import Decoder
    >>> parts = np.array([[127]], np.int8), np.array([[0.0101]], np.float32), None, None, None
    >>> for precision in ("F32", "BF16"):
    ...     out = np.empty((1, 1), np.float32)
    ...     Decoder(("int8", None, 1), precision, "F32", None)(parts, out)
    ...     print(out)
    [[1.2827]]
    [[1.28125]]
    """

    def __init__(self, spec: Spec, precision: str, dtype: str, threads: int | None) -> None:
        self._spec, self._dtype, self._threads = spec, dtype, threads
        self._precision = precision if precision in _HALVES and dtype not in _HALVES else dtype
        self._half: Array | None = None

    def buffers(self, columns: int) -> Sequence[Buffer]:
        """Return what decoding a tile of so many columns holds besides it."""
        if self._precision == self._dtype:
            return ()
        rounded = Buffer("u2", columns)
        return (rounded,) if self._dtype == "F32" else (rounded, Buffer("f4", 2 * columns))

    def __call__(self, parts: Parts, out: Array) -> None:
        """Write the numbers of `parts` into `out`."""
        if self._precision == self._dtype:
            _core.dequantize(parts, self._spec, out, FLOATS[self._dtype], self._threads)
            return
        half = self._rounded(parts, out)
        if self._precision == "F16":
            np.copyto(out, half)
        elif self._dtype == "F32":  # bfloat16 is the upper half, and no array is made on the way
            np.left_shift(half, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
        else:
            np.copyto(out, bf16_to_float32(half))

    def numbers(self, parts: Parts, out: Array) -> Array:
        """Return the numbers of `parts`, which are float16 where they are rounded to it; else they are in `out`."""
        if self._precision == "F16" and self._precision != self._dtype:
            return self._rounded(parts, out)
        self(parts, out)
        return out

    def _rounded(self, parts: Parts, out: Array) -> Array:
        if self._half is None or len(self._half) < len(out):  # where rows are cropped, later tiles may have more
            self._half = np.empty(out.shape, numpy_dtype(self._precision))
        half: Array = self._half[: len(out)]
        _core.dequantize(parts, self._spec, half, FLOATS[self._precision], self._threads)
        return half
