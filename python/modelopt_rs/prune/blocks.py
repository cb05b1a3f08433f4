"""Pruning of whole blocks."""

import numpy as np

from modelopt_rs import reduce
from modelopt_rs._types import Array, Bf16, MaskKind, Nan
from modelopt_rs.arguments import check_choice, listed, shown
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import renamed
from modelopt_rs.errors import said_as
from modelopt_rs.prune.unstructured import apply_mask, magnitude

__all__ = ["blocks"]


@renamed({"mask": {True: "bool", False: None}}, nan="nonfinite")
def blocks(
    w: Array,
    block: tuple[int, ...],
    sparsity: float = 0.5,
    *,
    norm: float = 1,
    axis: int | tuple[int, ...] | None = None,
    mask: MaskKind = None,
    nonfinite: Nan = "raise",
    out: Array | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Set whole blocks of weights to zero: exactly ``round(sparsity * blocks)`` of them, those of the smallest norm.

    Among equal norms the block of the lowest index goes first.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides. Not written, unless it is `out` as well.
    block : tuple of int
        The shape of a block, a number for each axis, each a divisor of its length.
    sparsity : float
        The share of blocks that goes, from 0 to 1.
    norm : 1, 2 or inf
        The norm that blocks are ranked by.
    axis : None, int or tuple of int
        None: one ranking of all blocks. Else the same share of blocks along `axis`, as in `magnitude`.
    mask : None, "bool" or "bits"
        Return which blocks stay instead, one for each block; see `threshold`.
    nonfinite : "raise" or "largest"
        What the norm of a block with NaN is: an error, or larger than all others.
    out : ndarray, optional
        Written and returned: the shape and dtype of `w`. `w` itself: in place.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `w` is no array of floats.
    ValueError
        If `block` does not divide the shape, `sparsity` is outside 0 to 1, or `w` holds NaN; nothing is written.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.prune.blocks(np.array([[1.0, 2.0, 9.0, 0.0], [3.0, 0.0, 0.0, 0.0]]), (2, 2))
    array([[0., 0., 9., 0.],
           [0., 0., 0., 0.]])
    """
    w = as_array(w, "blocks: w")
    sizes = tuple(listed("blocks", "block", block, "integers"))
    check_choice("blocks", "mask", mask, (None, "bool", "bits"))
    if len(sizes) != w.ndim or any(not isinstance(b, int | np.integer) or b < 1 for b in sizes):
        raise ValueError(
            f"blocks: block must have a positive integer for each of the {w.ndim} axes, got {shown(block)}"
        )
    if any(n % b for n, b in zip(w.shape, sizes, strict=True)):
        raise ValueError(f"blocks: block must divide the shape {w.shape} of w, got {block}")
    if mask is not None and out is not None:
        raise ValueError(f"blocks: out must be None with mask={mask!r}, got an array")
    counts = [n // b for n, b in zip(w.shape, sizes, strict=True)]
    split = w.reshape([n for pair in zip(counts, sizes, strict=True) for n in pair])
    within = tuple(range(1, 2 * w.ndim, 2))
    said = {"norm: x": "blocks: w", "norm: ord": "blocks: norm", "magnitude: w": "blocks: the norm of blocks"}
    with said_as({**said, "norm": "blocks", "magnitude": "blocks"}):
        scores = np.asarray(reduce.norm(split, axis=within or None, ord=norm, dtype=dtype, threads=threads))
        with said_as({"magnitude: sparsity": "blocks: sparsity", "magnitude: axis": "blocks: axis"}):
            scores = scores.reshape(counts)
            kind = mask or "bool"
            stays = magnitude(scores, sparsity, axis=axis, mask=kind, nonfinite=nonfinite, threads=threads)
    if mask is not None:
        return stays
    for i, size in enumerate(sizes):
        stays = np.repeat(stays, size, axis=i)
    with said_as({"apply_mask": "blocks"}):
        return apply_mask(w, stays, out=out, dtype=dtype, threads=threads)
