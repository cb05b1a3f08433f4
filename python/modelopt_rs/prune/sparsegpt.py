"""Pruning with correction: the weights that stay make up for those that go (SparseGPT)."""

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array, Bf16, Nan
from modelopt_rs.arrays import as_array
from modelopt_rs.deprecated import former, renamed, warn_former
from modelopt_rs.errors import said_as
from modelopt_rs.prune.repair import InputStats
from modelopt_rs.prune.unstructured import prune_into, share_of

__all__ = ["Hessian", "sparsegpt"]


class Hessian:
    """The second derivative of a layer's squared error, from inputs that come in batches.

    ``H = 2 / rows * sum x xᵀ`` over all rows so far, summed in float64 (by `InputStats`); nothing else is kept.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> hessian = mo.prune.Hessian()
    >>> hessian.update(np.array([[3.0, 1.0], [4.0, 0.0]], dtype=np.float32))
    >>> hessian.second_derivative
    array([[25.,  3.],
           [ 3.,  1.]])
    """

    def __init__(self) -> None:
        self._stats: InputStats | None = None

    @classmethod
    def of(cls, stats: InputStats) -> "Hessian":
        """Return one of sums that are there; they are not copied.

        Examples
        --------
        >>> import numpy as np, modelopt_rs as mo
        >>> stats = mo.prune.InputStats(2)
        >>> stats.update(np.array([[3.0, 1.0], [4.0, 0.0]], dtype=np.float32))
        >>> mo.prune.Hessian.of(stats).count
        2
        """
        if not isinstance(stats, InputStats):
            raise TypeError(f"Hessian: stats must be InputStats, got {type(stats).__name__}")
        found = cls()
        found._stats = stats
        return found

    @property
    def count(self) -> int:
        """How many rows were seen."""
        return 0 if self._stats is None else self._stats.count

    @property
    def stats(self) -> InputStats | None:
        """The sums that it is made of, as `least_squares` takes them; None before the first update."""
        return self._stats

    def update(self, x: Array) -> None:
        """Take inputs in, of shape (..., columns); nothing is kept of them.

        Raises
        ------
        TypeError
            If `x` is no array of floats.
        ValueError
            If it has another number of columns than before, or a value that is not finite: nothing is taken in then.
        """
        x = as_array(x, "Hessian: x")
        if 0 in (x.ndim, *x.shape[-1:]):
            raise ValueError(f"Hessian: x must have shape (..., columns), at least one, got {x.shape}")
        stats = InputStats(x.shape[-1]) if self._stats is None else self._stats
        with said_as({"InputStats": "Hessian"}):
            stats.update(x)
        self._stats = stats

    def merge(self, other: "Hessian") -> None:
        """Take in what another has seen.

        Raises
        ------
        TypeError
            If `other` is no Hessian.
        ValueError
            If it has another number of columns; nothing is taken in then.
        """
        if not isinstance(other, Hessian):
            raise TypeError(f"Hessian: other must be a Hessian, got {type(other).__name__}")
        if other._stats is None:
            return
        stats = InputStats(len(other._stats.products)) if self._stats is None else self._stats
        with said_as({"InputStats": "Hessian"}):
            stats.merge(other._stats)
        self._stats = stats

    @property
    def second_derivative(self) -> NDArray[np.float64]:
        """H."""
        if self._stats is None or self._stats.count == 0:
            raise ValueError("Hessian: second_derivative must come after an update, got none")
        return self._stats.products * (2 / self._stats.count)

    def matrix(self) -> NDArray[np.float64]:
        """Return `second_derivative`: the former form."""
        warn_former("Hessian.matrix()", "Hessian.second_derivative")
        return self.second_derivative

    rows = former("count")


@renamed(nan="nonfinite", keep="n", group="m", block="block_size")
def sparsegpt(
    w: Array,
    hessian: Hessian | NDArray[np.float64],
    sparsity: float | None = None,
    *,
    n: int | None = None,
    m: int | None = None,
    damping: float = 0.01,
    block_size: int = 128,
    nonfinite: Nan = "raise",
    out: Array | None = None,
    dtype: Bf16 = None,
    threads: int | None = None,
) -> Array:
    """Prune a layer so that its outputs change least, by correcting the weights that stay.

    With ``(H + λ I)⁻¹ = Uᵀ U``, `U` upper triangular and `λ` `damping` times the mean of the diagonal of `H`, columns
    are taken from the first to the last. Where ``w[i, j]`` goes, ``w[i, k] -= w[i, j] / U[j, j] * U[j, k]`` for all
    ``k >= j``, which makes it 0. What goes is what has the lowest ``|w[i, j]| / U[j, j]`` at the time of the choice: of
    each block of `block_size` columns, over all rows, when it is reached; or of each `m` of a row, when these are.
    Exactly ``round(sparsity * n)`` of all n weights go: of the blocks up to each the share of them, rounded. Among
    equal ones the lowest index goes first. (The authors' program prunes all up to a threshold of each block.) Inputs
    that never were other than 0 (``H[j, j] == 0``) have their diagonal set to 1, and all of their weights become 0.

    Computed in float32, for float64 weights in float64, and rounded once; the factor always in float64. It costs
    ``columns**3 / 3`` products, what follows ``rows * columns**2 / 2`` times the share that goes, and memory for `w` in
    float32 and for a second `hessian`.

    Parameters
    ----------
    w : ndarray of float32, float64, float16 or bfloat16
        (out, in), any strides. Not written, unless it is `out` as well.
    hessian : Hessian or ndarray of float64
        Of the inputs; an array is (in, in) and symmetric (what is above its diagonal is not read). Not written.
    sparsity : float
        The share that goes, from 0 to 1.
    n, m : int
        Instead of `sparsity`: N:M, see `n_of_m`.
    damping : float
        At least 0; more corrects less, and makes up for few rows of calibration data.
    block_size : int
        Columns whose weights are chosen together. With `m` it is rounded up to whole groups and chooses nothing.
    nonfinite : "raise" or "largest"
        What NaN is: an error, or larger than all numbers, so that it stays. What is not finite is not made up for.
    out : ndarray, optional
        Written and returned: the shape and dtype of `w`. `w` itself: in place.
    dtype : "bf16", optional
        Read a uint16 array as bfloat16 bits.
    threads : int, optional
        Threads of this call; never changes the result.

    Raises
    ------
    TypeError
        If `w` is no array of floats, or `hessian` or `out` have another dtype.
    ValueError
        If shapes do not fit, neither or both of `sparsity` and `m` are given, `hessian` is not finite or, with
        `damping`, not positive definite, or `w` holds NaN; nothing is written.

    References
    ----------
    Frantar, Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one-shot", arXiv 2301.00774,
    algorithm 1.

    Examples
    --------
    The first two inputs are nearly the same, so the weight that stays takes over what the other did:

    >>> import numpy as np, modelopt_rs as mo
    >>> x = np.random.default_rng(0).standard_normal((1000, 3))
    >>> x[:, 1] = x[:, 0] + 0.01 * x[:, 1]
    >>> hessian = mo.prune.Hessian()
    >>> hessian.update(x)
    >>> mo.prune.sparsegpt(np.array([[1.0, 2.0, 3.0]]), hessian, 1 / 3, damping=1e-6).round(2)
    array([[0., 3., 3.]])
    """
    share = share_of("sparsegpt", sparsity, n, m)
    matrix = hessian.second_derivative if isinstance(hessian, Hessian) else hessian
    return prune_into(
        "sparsegpt",
        w,
        lambda to, how: _core.sparsegpt(w, matrix, share, (damping, block_size), to, how),
        None,
        out,
        (nonfinite, dtype, threads),
    )
