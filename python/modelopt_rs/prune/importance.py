"""How much each slice of a weight matters: one number for each index along an axis."""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16
from modelopt_rs.arguments import check_number, shown
from modelopt_rs.arrays import as_array

__all__ = ["BlockNorms", "Criterion", "Join", "Scores", "importance", "unit_norms"]

Criterion: TypeAlias = Literal["norm", "variance", "geometric_median", "taylor", "taylor_gate", "scale", "activation"]
Scores: TypeAlias = NDArray[np.float64]
_NEEDS = {"taylor": "grad", "taylor_gate": "grad", "scale": "scale", "activation": "activations"}
_CRITERIA = ("norm", "variance", "geometric_median", "taylor", "taylor_gate", "scale", "activation")
# Numbers in a block of rows of which columns are summed: with fewer, calls cost more than sums.
BLOCK = 2**21


def importance(
    w: Array,
    axis: int,
    *,
    criterion: Criterion = "norm",
    norm: float = 2,
    size: int = 1,
    grad: Array | None = None,
    scale: Array | None = None,
    activations: Array | None = None,
    activation_axis: int = -1,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Scores:
    """Return how much each slice along an axis matters: the least important are the first to go.

    With ``w[u]`` all numbers of slice `u`:

    - "norm": ``(sum |w[u]|**norm)**(1/norm)``, the largest magnitude for ``norm=inf``.
    - "variance": ``mean (w[u] - mean w[u])**2``: what the slice adds beyond a constant.
    - "geometric_median": ``sum_v ||w[u] - w[v]||_2``: small where other slices can stand in for this one (FPGM).
    - "taylor": ``sum (grad[u] * w[u])**2``, the paper's sum over single weights.
    - "taylor_gate": ``(sum grad[u] * w[u])**2``, the paper's gate in front of the slice: the squared change of the
      loss, to first order, if the slice became zero.
    - "scale": ``|scale[u]|``, of a batch norm behind the slice (network slimming).
    - "activation": of the outputs of the slice, ``mean |a|`` (``norm=1``), ``mean a**2`` (``norm=2``) or ``max |a|``.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        Any shape and strides; not written. What is not C-contiguous is copied first.
    axis : int
        Whose indices get a number each.
    criterion : str
        As above.
    norm : {1, 2, inf}
        For "norm" and "activation".
    size : int
        Consecutive indices that make one slice together: the width of an attention head.
    grad : ndarray, optional
        For "taylor" and "taylor_gate": the gradient of the loss, in the shape of `w`. Sum or average the scores over
        batches.
    scale : ndarray, optional
        For "scale": one number for each index along `axis`; of several (`size`) the 2-norm counts.
    activations : ndarray, optional
        For "activation": any shape with as many indices along `activation_axis` as `w` along `axis`.
    activation_axis : int
        The channels of `activations`: -1 for linear layers, 1 for images in NCHW.
    dtype : "bf16", optional
        Read uint16 arrays as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Returns
    -------
    ndarray of float64
        ``w.shape[axis] / size`` numbers. NaN where a slice has one.

    Raises
    ------
    TypeError
        If an array is none of floats.
    ValueError
        If `axis` or an option is out of its range, or an array does not fit `w`.

    References
    ----------
    Li et al. 2017, arXiv 1608.08710 (norm); He et al. 2019, arXiv 1811.00250, equation 5 (geometric median);
    Molchanov et al. 2019, arXiv 1906.10771, section 3 (Taylor); Liu et al. 2017, arXiv 1708.06519 (scale).

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    >>> mo.prune.importance(w, 0)
    array([5., 1., 1.])
    >>> mo.prune.importance(w, 1, norm=1)
    array([3., 6.])
    >>> mo.prune.importance(w, 0, criterion="geometric_median").round(2)
    array([8.49, 4.24, 4.24])
    """
    w = as_array(w, "importance: w")
    grad, scale, activations = (
        None if array is None else as_array(array, f"importance: {name}")
        for name, array in (("grad", grad), ("scale", scale), ("activations", activations))
    )
    axis = _core.importance_axis("w", w, axis, size, dtype, threads)
    if not isinstance(criterion, str) or criterion not in _CRITERIA:
        wrong = ValueError if isinstance(criterion, str) else TypeError
        raise wrong(f"importance: criterion must be one of {', '.join(_CRITERIA)}, got {shown(criterion)}")
    check_number("importance", "norm", norm)
    if norm not in (1, 2, math.inf):
        raise ValueError(f"importance: norm must be 1, 2 or inf, got {norm!r}")
    for name, array in {"grad": grad, "scale": scale, "activations": activations}.items():
        if (array is not None) != (_NEEDS.get(criterion) == name):
            what = "be given" if array is None else "be None"
            raise ValueError(f"importance: {name} must {what} for criterion {criterion!r}")
    if criterion == "scale":
        return _scale(w, axis, scale, size, dtype, threads)
    if criterion == "activation":
        return _activation(w.shape[axis], axis, activations, activation_axis, (size, norm), dtype, threads)
    if grad is not None:
        _core.importance_axis("grad", grad, axis, 1, dtype, threads)
        if grad.shape != w.shape:
            raise ValueError(f"importance: grad must have shape {w.shape} like w, got {grad.shape}")
        plain, squares = _core.taylor_sums(_units(w, axis, size), _units(grad, axis, size), axis, dtype, threads)
        return squares if criterion == "taylor" else plain**2
    if w.size == 0:
        return np.zeros(w.shape[axis] // size)
    if criterion == "norm":
        return _slices(w, axis, norm, size, dtype, threads)
    w = _units(w, axis, size)
    if criterion == "variance":
        others = tuple(i for i in range(w.ndim) if i != axis)
        return np.asarray(_core.var(w, others, False, 0, dtype, threads), np.float64)
    return _core.slice_distances(np.moveaxis(w, axis, 0), dtype, threads)


def _units(w: Array, axis: int, size: int) -> Array:
    """Split an axis: `size` consecutive indices become an axis of their own."""
    if size == 1:
        return w
    return w.reshape(*w.shape[:axis], w.shape[axis] // size, size, *w.shape[axis + 1 :])


class Join:
    """The norms of slices that come in parts, joined in the order in which they come.

    Examples
    --------
    >>> import numpy as np
    >>> from modelopt_rs.prune.importance import Join
    >>> join = Join(2)
    >>> join.add(np.array([3.0, 0.0]))
    >>> join.add(np.array([4.0, 1.0]))
    >>> join.norms()
    array([5., 1.])
    """

    def __init__(self, norm: float) -> None:
        self._norm, self._parts = norm, 0

    def add(self, part: Scores) -> None:
        """Take in what one part of each slice is long."""
        with np.errstate(over="ignore"):  # to infinity: large
            if self._parts == 0:
                self._sum = part
            elif self._norm == math.inf:
                self._sum = np.maximum(self._sum, part)
            else:
                self._sum = (self._sum if self._parts > 1 else self._sum**self._norm) + part**self._norm
        self._parts += 1

    def norms(self) -> Scores:
        """Return the norm of each slice over all parts so far, at least one."""
        alone = self._parts == 1 or self._norm == math.inf
        return self._sum if alone else np.asarray(self._sum ** (1 / self._norm))


class BlockNorms:
    """The norms of the columns of a matrix that comes in tiles of rows.

    Rows are taken in blocks whose height the width alone decides, and joined in their order: whatever the tiles, the
    bits are the same.

    Attributes
    ----------
    rows : int
        How many rows make a block: a power of two.
    """

    def __init__(self, columns: int, norm: float, dtype: Bf16 = None, threads: int | None = None) -> None:
        self.rows: int = 1 << (max(1, BLOCK // columns).bit_length() - 1)
        self._norm, self._dtype, self._threads = norm, dtype, threads
        self._join = Join(norm)

    def add(self, tile: Array) -> None:
        """Take in the next rows: a multiple of `rows`, but the last time."""
        for first in range(0, len(tile), self.rows):
            block = tile[first : first + self.rows]
            self._join.add(_core.norm(block, (0,), False, self._norm, self._dtype, self._threads))

    def norms(self) -> Scores:
        """Return the norm of each column."""
        return self._join.norms()


def unit_norms(norms: Scores, size: int, norm: float, threads: int | None) -> Scores:
    """Return the norms of units, `size` consecutive slices each, of the norms of the slices."""
    if size == 1:
        return norms
    return np.asarray(_core.norm(norms.reshape(-1, size), (1,), False, norm, None, threads))


def _slices(w: Any, axis: int, norm: float, size: int, dtype: Bf16, threads: int | None) -> Scores:
    """Return the norm over all axes but one, the last ones first: so nothing is transposed."""
    behind = tuple(range(axis + 1, w.ndim))
    if behind or axis == 0:
        w, dtype = _core.norm(w, behind, False, norm, dtype, threads), None
    if axis:
        blocks = BlockNorms(w.shape[axis], norm, dtype, threads)
        blocks.add(w.reshape(-1, w.shape[axis]))
        w = blocks.norms()
    return unit_norms(np.asarray(w, np.float64), size, norm, threads)


def _scale(w: Array, axis: int, scale: Any, size: int, dtype: Bf16, threads: int | None) -> Scores:
    _core.importance_axis("scale", scale, 0, size, dtype, threads)
    n = w.shape[axis]
    if scale.shape != (n,):
        raise ValueError(f"importance: scale must have shape ({n},), got {scale.shape}")
    return _slices(scale, 0, 2, size, dtype, threads)


def _activation(
    n: int, axis: int, a: Any, channels: int, unit: tuple[int, float], dtype: Bf16, threads: int | None
) -> Scores:
    size, norm = unit
    channels = _core.importance_axis("activations", a, channels, 1, dtype, threads)
    if a.shape[channels] != n:
        where = f"length {n} along activation_axis {channels} like axis {axis} of w"
        raise ValueError(f"importance: activations must have {where}, got shape {a.shape}")
    if a.size == 0:
        raise ValueError(f"importance: activations must not be empty, got shape {a.shape}")
    scores = _slices(a, channels, norm, size, dtype, threads)
    return scores if norm == math.inf else scores**norm / (a.size // n * size)
