"""Packing of 4-, 2- and 1-bit codes into bytes."""

import numpy as np

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.arguments import check_flag
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import renamed

__all__ = ["pack", "unpack"]


def pack(codes: Array, bits: int, *, out: Array | None = None, threads: int | None = None) -> Array:
    """Pack codes, one a byte, along the last axis.

    Element 0 goes to the low bits; each row begins on a byte; padding bits are zero; negative codes become two's
    complement (the INT4 and INT2 layout of ONNX). 1 bit is `numpy.packbits` with ``bitorder="little"``.

    Parameters
    ----------
    codes : ndarray of int8 or uint8
        int8: from ``-2**(bits-1)`` to ``2**(bits-1) - 1``; uint8: from 0 to ``2**bits - 1``. Not written.
    bits : {8, 4, 2, 1}
        Bits of a code.
    out : ndarray of uint8, optional
        C-contiguous, ``codes.shape[:-1] + (ceil(codes.shape[-1] * bits / 8),)``: written and returned.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `codes` has another dtype.
    ValueError
        If a code does not fit `bits`, or `out` does not fit.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.quant.pack(np.array([1, 2, 3], dtype=np.uint8), 4)
    array([33,  3], dtype=uint8)
    """
    if out is None:
        codes = as_array(codes, "pack: codes")
        # An impossible `bits` is for the core to refuse: it gets an `out` of no size.
        last = codes.shape[-1] if codes.ndim else 1
        fits = isinstance(bits, int) and bits in (8, 4, 2, 1)
        out = np.empty((*codes.shape[:-1], -(-last * bits // 8)) if fits else (0,), np.uint8)
    _core.pack(codes, bits, out, threads)
    return out


@renamed(n="length")
def unpack(
    packed: Array, bits: int, length: int, *, signed: bool = False, out: Array | None = None, threads: int | None = None
) -> Array:
    """Unpack codes, one a byte: undoes `pack`.

    Parameters
    ----------
    packed : ndarray of uint8
        ``ceil(length * bits / 8)`` bytes in the last axis, padding bits zero. Not written.
    bits : {8, 4, 2, 1}
        Bits of a code.
    length : int
        Codes in a row.
    signed : bool
        Whether codes are two's complement; the result is then int8.
    out : ndarray of uint8 (int8 where signed), optional
        C-contiguous, ``packed.shape[:-1] + (length,)``: written and returned.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `packed` has another dtype.
    ValueError
        If the last axis has another length, or padding bits are set.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.quant.unpack(np.array([33, 3], dtype=np.uint8), 4, 3)
    array([1, 2, 3], dtype=uint8)
    """
    check_flag("unpack", "signed", signed)
    if out is None:
        packed = as_array(packed, "unpack: packed")
        # A wrong `length` or `bits` is for the core to refuse, before anything of that size is allocated.
        known = isinstance(length, int) and isinstance(bits, int) and bits in (8, 4, 2, 1)
        fits = known and packed.ndim and packed.shape[-1] == -(-length * bits // 8)
        out = np.empty((*packed.shape[:-1], length) if fits else (0,), np.int8 if signed else np.uint8)
    elif isinstance(out, np.ndarray) and out.dtype != (np.int8 if signed else np.uint8):
        raise TypeError(f"unpack: out must have dtype {'int8' if signed else 'uint8'}, got {out.dtype}")
    _core.unpack(packed, bits, length, out, threads)
    return out
