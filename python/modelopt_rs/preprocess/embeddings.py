"""Embeddings as bytes and bits: the codes of the libraries that make, store and search them."""

from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core, reduce
from modelopt_rs._types import Array
from modelopt_rs.arguments import shown
from modelopt_rs.arrays import as_array
from modelopt_rs.errors import said_as

__all__ = ["EmbeddingKind", "quantize_embeddings"]

EmbeddingKind: TypeAlias = Literal["int8", "uint8", "binary", "ubinary", "faiss_sq8", "usearch_i8", "usearch_b1"]
# What has ranges: the highest quotient, and what is flipped in a byte.
_RANGED: Final = {"int8": (255, 0x80), "uint8": (255, 0), "faiss_sq8": (1, 0)}
_SIGNED: Final = ("int8", "binary", "usearch_i8")


def quantize_embeddings(
    x: Array,
    kind: EmbeddingKind = "int8",
    ranges: Any = None,
    *,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Make bytes or bits of embeddings, as sentence-transformers, faiss and usearch make them, in one pass.

    - "uint8", "int8": ``floor((x - start) / step)`` within 0 and 255, where ``step = (end - start) / 255`` in float32,
    or 1
      where that is 0; "int8" less 128. The bits of sentence-transformers' `quantize_embeddings`.
    - "ubinary", "binary": a bit for each element, 1 over 0, the first in the highest bit, each vector from a byte on;
      "binary" less 128 as int8. The bits of sentence-transformers and of ``numpy.packbits(x > 0, axis=-1)``.
    - "faiss_sq8": ``floor(255 * (x - start) / (end - start))``, the quotient within 0 and 1: faiss' `QT_8bit`.
    - "usearch_i8": ``trunc(127 * x / norm(x))`` in float64, of each vector: usearch's `i8`. It has no ranges.
    - "usearch_b1": usearch's `b1`, which is "ubinary".

    NaN gets the lowest code (0 of "usearch_i8"), infinities the ends.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Vectors along the last axis; not written.
    kind : str
        As above.
    ranges : array of shape (2, dim), optional
        The lowest and the highest number of each element, as `modelopt_rs.quant.Calibrator` finds them with
        ``axis=-1``: ``ranges=calibrator.range()``. Kept, they make codes independent of the batch. None: those of `x`,
        which must then have more than one vector. Only for kinds that have ranges.
    out : ndarray, optional
        C-contiguous uint8 or int8 of the result's shape: written and returned.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    ndarray of int8 or uint8
        In the shape of `x`; of bits with ``ceil(dim / 8)`` bytes in the last axis.

    Raises
    ------
    TypeError
        If `x` is no array of floats.
    ValueError
        If `kind` is none of these, or ranges are missing, not finite, minima above maxima, of another shape or not of
        this kind.

    References
    ----------
    sentence-transformers, ``sentence_transformers.util.quantize_embeddings``; faiss, ``ScalarQuantizer``; usearch,
    ``cast_to_i8_gt``.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> x = np.array([[-1.0, 0.5, 2.0], [1.0, 0.25, -2.0]], np.float32)
    >>> ranges = np.array([[-1, -1, -1], [1, 1, 1]], np.float32)
    >>> mo.preprocess.quantize_embeddings(x, "int8", ranges)
    array([[-128,   63,  127],
           [ 126,   31, -128]], dtype=int8)
    >>> mo.preprocess.quantize_embeddings(x, "ubinary")
    array([[ 96],
           [192]], dtype=uint8)
    """
    if not isinstance(kind, str) or kind not in get_args(EmbeddingKind):
        kinds = ", ".join(get_args(EmbeddingKind))
        raise ValueError(f"quantize_embeddings: kind must be one of {kinds}, got {shown(kind)}")
    x = as_array(x, "quantize_embeddings: x")
    if ranges is not None and kind not in _RANGED:
        got = shown(ranges)
        raise ValueError(f"quantize_embeddings: ranges must be None for {kind!r}, which has none, got {got}")
    is_bits = kind not in _RANGED and kind != "usearch_i8"
    if out is None:
        shape = (*x.shape[:-1], -(-x.shape[-1] // 8)) if is_bits and x.ndim else x.shape
        out = np.empty(shape, np.int8 if kind in _SIGNED else np.uint8)
    if is_bits:
        _core.sign_bits(x, 0x80 if kind == "binary" else 0, out, threads)
    elif kind == "usearch_i8":
        _core.quantize_units(x, out, threads)
    else:
        _core.quantize_columns(x, _columns(x, kind, ranges, threads), *_RANGED[kind], out, threads)
    return out


def _columns(x: Array, kind: str, ranges: Any, threads: int | None) -> tuple[Array, Array]:
    """Return the lowest number of each element, and what is divided by."""
    dim = x.shape[-1] if x.ndim else 0
    if ranges is None:
        if x.size <= dim:
            text = f"for fewer than two vectors, got x of shape {x.shape}"
            raise ValueError(f"quantize_embeddings: ranges must be given {text}")
        with said_as({"minmax:": "quantize_embeddings:"}):
            ranges = reduce.minmax(x, axis=tuple(range(x.ndim - 1)), threads=threads)
    try:
        ends: NDArray[np.float32] = np.asarray(ranges).astype(np.float32, copy=False)
    except OverflowError:  # an int
        raise ValueError("quantize_embeddings: ranges must be finite in float32, got an int that is not") from None
    except (TypeError, ValueError):
        got = type(ranges).__name__
        raise TypeError(f"quantize_embeddings: ranges must be an array of numbers, got {got}") from None
    if ends.shape != (2, dim):
        raise ValueError(f"quantize_embeddings: ranges must have shape (2, {dim}), got {ends.shape}")
    if not np.isfinite(ends).all():
        got = ends[~np.isfinite(ends)][0]
        raise ValueError(f"quantize_embeddings: ranges must be finite in float32, got {got}")
    if (ends[0] > ends[1]).any():
        raise ValueError("quantize_embeddings: ranges must be minima, then maxima, got a minimum above its maximum")
    start = ends[0]
    width = ends[1] - start if kind == "faiss_sq8" else (ends[1] - start) / np.float32(255)
    # faiss: a range of nothing has the code 0.
    step = np.where(width == 0, np.float32(np.inf if kind == "faiss_sq8" else 1), width)
    wide = np.float64 if x.dtype.char == "d" else np.float32
    return start.astype(wide, order="C"), step.astype(wide)
