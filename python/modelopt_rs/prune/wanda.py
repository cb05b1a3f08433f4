"""Pruning by weight and activation (Wanda)."""

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core, reduce
from modelopt_rs._types import Array, Bf16, MaskKind, Nan
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import former, renamed, warn_former
from modelopt_rs.errors import said_as
from modelopt_rs.prune.repair import InputStats
from modelopt_rs.prune.unstructured import prune_into, share_of

__all__ = ["ColumnNorms", "wanda"]


class ColumnNorms:
    """Norms of the columns of activations that come in batches.

    ``norm[j] = sqrt(sum of x[..., j]**2)`` over all rows so far, summed in float64; one float64 for each column is all
    that is kept.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> stats = mo.prune.ColumnNorms()
    >>> stats.update(np.array([[3.0, 1.0], [4.0, 0.0]], dtype=np.float32))
    >>> stats.norms
    array([5., 1.], dtype=float32)
    """

    def __init__(self) -> None:
        self.square_sum: NDArray[np.float64] | None = None
        self.count = 0

    def update(self, x: Array, *, dtype: Bf16 = None, threads: int | None = None) -> None:
        """Take activations in, of shape (..., columns); nothing is kept of them.

        Raises
        ------
        TypeError
            If `x` is no array of floats.
        ValueError
            If it has another number of columns than before, or a value that is not finite: nothing is taken in then.
        """
        x = as_array(x, "ColumnNorms: x")
        if x.ndim == 0:
            raise ValueError("ColumnNorms: x must have shape (..., columns), got shape ()")
        if self.square_sum is not None and x.shape[-1] != len(self.square_sum):
            raise ValueError(f"ColumnNorms: x must have {len(self.square_sum)} columns as before, got {x.shape[-1]}")
        with said_as({"norm: x": "ColumnNorms: x", "norm: threads": "ColumnNorms: threads"}):
            norm = reduce.norm(x.reshape(-1, x.shape[-1]), axis=0, dtype=dtype, threads=threads)
        bad = np.flatnonzero(~np.isfinite(norm))
        if len(bad):
            raise ValueError(f"ColumnNorms: x must be finite, is not in column {bad[0]}")
        squares = np.square(norm)
        self.square_sum = squares if self.square_sum is None else self.square_sum + squares
        self.count += x.size // max(x.shape[-1], 1)

    def merge(self, other: "ColumnNorms") -> None:
        """Take in what another has seen."""
        if not isinstance(other, ColumnNorms):
            raise TypeError(f"ColumnNorms: other must be ColumnNorms, got {type(other).__name__}")
        if other.square_sum is None:
            return
        if self.square_sum is not None and len(self.square_sum) != len(other.square_sum):
            want, got = len(self.square_sum), len(other.square_sum)
            raise ValueError(f"ColumnNorms: other must have {want} columns, got {got}")
        self.square_sum = other.square_sum.copy() if self.square_sum is None else self.square_sum + other.square_sum
        self.count += other.count

    @property
    def norms(self) -> NDArray[np.float32]:
        """The norm of each column."""
        if self.square_sum is None:
            raise ValueError("ColumnNorms: norms must come after an update, got none")
        return np.sqrt(self.square_sum).astype(np.float32)

    def norm(self) -> NDArray[np.float32]:
        """Return `norms`: the former form."""
        warn_former("ColumnNorms.norm()", "ColumnNorms.norms")
        return self.norms

    rows = former("count")


@renamed(nan="nonfinite", x_norm="x_stats", keep="n", group="m")
def wanda(
    w: Array,
    x_stats: ColumnNorms | InputStats | Array,
    sparsity: float | None = None,
    *,
    n: int | None = None,
    m: int | None = None,
    mask: MaskKind = None,
    nonfinite: Nan = "raise",
    out: Array | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Prune each row by weight times activation.

    ``score[i, j] = |w[i, j]| * norm[j]``; of each row the lowest ``round(sparsity * columns)`` go, or all but the
    `n` highest of each `m`. Among equal scores the lowest index goes first. No weight is changed but to zero.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        (out, in), any strides. Not written, unless it is `out` as well.
    x_stats : ColumnNorms, InputStats or ndarray
        Of the inputs. An array is (in,), in float32 (float64 for float64 weights): the norm of each input over the
        calibration data. Not written.
    sparsity : float
        The share of each row that goes, from 0 to 1.
    n, m : int
        Instead of `sparsity`: N:M, see `n_of_m`.
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
        If `w` is no array of floats, or `x_stats` or `out` have another dtype.
    ValueError
        If shapes do not fit, neither or both of `sparsity` and `m` are given, `x_stats` is negative or not finite,
        or `w` holds NaN; nothing is written.

    References
    ----------
    Sun, Liu, Bair, Kolter 2023, "A simple and effective pruning approach for large language models", arXiv 2306.11695,
    equation 1.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> w = np.array([[1.0, -2.0, 3.0, 4.0]], dtype=np.float32)
    >>> mo.prune.wanda(w, np.array([9.0, 1.0, 1.0, 1.0], dtype=np.float32), 0.5)
    array([[1., 0., 0., 4.]], dtype=float32)
    """
    share = share_of("wanda", sparsity, n, m)
    norms: Array = x_stats  # type: ignore[assignment]
    if isinstance(x_stats, ColumnNorms | InputStats):
        if x_stats.count == 0:
            raise ValueError("wanda: x_stats must come after an update, got none")
        if isinstance(x_stats, ColumnNorms):
            norms = x_stats.norms
        else:
            norms = np.sqrt(np.diag(x_stats.products)).astype(np.float32)
        w = as_array(w, "wanda: w")
        norms = norms.astype(np.float64) if w.dtype == np.float64 else norms
    return prune_into(
        "wanda",
        w,
        lambda to, how: _core.wanda(w, norms, share, to, how),
        mask,
        out,
        (nonfinite, dtype, threads),
    )
