"""Repair after cropping without training: what the next layer loses is made up for by what it still reads."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelopt_rs import _core
from modelopt_rs._types import Array
from modelopt_rs.arguments import check_number, shown
from modelopt_rs.errors import said_as
from modelopt_rs.prune.coupling import check_ascending

__all__ = ["InputStats", "compensate_bias", "least_squares"]

_MOST = 1 << 24  # their products would take 2 PiB
_ROWS = 4096
"""Rows that are widened to float64 at a time."""


class InputStats:
    """Sums over the inputs of a layer: their number, mean and products, in float64 and in memory that doesn't grow.

    Parameters
    ----------
    features : int, optional
        Inputs of the layer, before cropping; None: those of the first update.

    Attributes
    ----------
    count : int
        Rows seen.
    mean : ndarray of float64
        ``sum x / count``, (features,).
    products : ndarray of float64
        ``sum x xᵀ``, (features, features); empty before `features` are known.

    Raises
    ------
    ValueError
        If `features` is below 1.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> stats = mo.prune.InputStats(2)
    >>> stats.update(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    >>> stats.count, stats.mean, stats.products
    (2, array([2., 3.]), array([[10., 14.],
           [14., 20.]]))
    """

    def __init__(self, features: int | None = None) -> None:
        self.count, self._open = 0, features is None
        self._begin(0 if features is None else self._checked(features))

    def _begin(self, features: int) -> None:
        self._sum = np.zeros(features)
        self.products: NDArray[np.float64] = np.zeros((features, features))

    @staticmethod
    def _checked(features: int) -> int:
        if isinstance(features, bool) or not isinstance(features, (int, np.integer)):
            raise TypeError(f"InputStats: features must be an integer, got {shown(features)}")
        if features < 1:
            raise ValueError(f"InputStats: features must be at least 1, got {features}")
        if features > _MOST:
            raise ValueError(f"InputStats: features must be at most {_MOST:,}, got {features}")
        return int(features)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of the inputs; zeros before the first."""
        return self._sum / max(1, self.count)

    def update(self, x: Array) -> None:
        """Add inputs.

        Parameters
        ----------
        x : ndarray of float32, float64, float16 or bfloat16
            (..., features). Not written.

        Raises
        ------
        TypeError
            If `x` is no array of floats.
        ValueError
            If `x` has another number of features, or is not finite; nothing was added then.
        """
        _expect_floats("InputStats", "x", x)
        if self._open and 0 in (x.ndim, *x.shape[-1:]):
            raise ValueError(f"InputStats: x must have shape (..., features), at least one, got {x.shape}")
        features = self._checked(x.shape[-1]) if self._open else len(self._sum)
        if x.shape[-1:] != (features,):
            raise ValueError(f"InputStats: x must have shape (..., {features}), got {x.shape}")
        with said_as({"count_nonfinite": "InputStats"}):
            bad = int(_core.count_nonfinite(x, None, False, None, None))
        if bad:
            raise ValueError(f"InputStats: x must be finite, got {bad} numbers that are not; nothing was added")
        if self._open:
            self._begin(features)
            self._open = False
        rows = x.reshape(-1, features)
        for begin in range(0, len(rows), _ROWS):
            wide = rows[begin : begin + _ROWS].astype(np.float64)
            self._sum += wide.sum(axis=0)
            self.products += wide.T @ wide
        self.count += len(rows)

    def merge(self, other: "InputStats") -> None:
        """Take in what another has seen.

        Raises
        ------
        TypeError
            If `other` is no InputStats.
        ValueError
            If `other` has another number of features; nothing was taken in then.
        """
        if not isinstance(other, InputStats):
            raise TypeError(f"InputStats: other must be InputStats, got {type(other).__name__}")
        if other._open:
            return
        if self._open:
            self._begin(len(other._sum))
            self._open = False
        if len(other._sum) != len(self._sum):
            raise ValueError(f"InputStats: other must have {len(self._sum)} features, got {len(other._sum)}")
        self._sum += other._sum
        self.products += other.products
        self.count += other.count


def least_squares(
    weight: Array, kept: Array, stats: InputStats, *, bias: Array | None = None, ridge: float = 1e-6
) -> tuple[Array, Array | None]:
    """Return the weight on the kept inputs that comes closest to the layer's old outputs.

    ``W' = W_kept + W_removed G[removed, kept] (G[kept, kept] + λ I)⁻¹`` with ``G = sum x xᵀ``: the minimum of
    ``sum ||W x - W' x_kept||² + λ ||W' - W_kept||²``. With a bias, `G` is taken about the mean, and
    ``b' = b + W mean - W' mean_kept`` keeps the mean output.

    Parameters
    ----------
    weight : ndarray of float32, float64, float16 or bfloat16
        (out, in), as it was before cropping. Not written.
    kept : ndarray of integers
        The inputs that stay, ascending.
    stats : InputStats
        Of the inputs before cropping.
    bias : ndarray, optional
        (out,). Not written.
    ridge : float
        λ in units of the mean of the diagonal of ``G[kept, kept]``. Large values give plain cropping.

    Returns
    -------
    weight : ndarray
        (out, len(kept)), in the dtype of `weight`.
    bias : ndarray or None
        In the dtype of `bias`.

    Raises
    ------
    TypeError
        If `weight` or `bias` is no array of floats.
    ValueError
        If shapes don't fit, `kept` is no ascending choice of inputs, `ridge` is not above 0, or `stats` saw nothing.

    References
    ----------
    He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168, section 3.1.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> stats = mo.prune.InputStats(3)
    >>> x = np.random.default_rng(0).standard_normal((100, 2))
    >>> stats.update(np.stack([x[:, 0], x[:, 1], x[:, 0] + x[:, 1]], axis=1))  # the third can be made from the others
    >>> mo.prune.least_squares(np.array([[1.0, 2.0, 3.0]]), np.array([0, 1]), stats)[0].round(3)
    array([[4., 5.]])
    """
    stays, goes = _split("least_squares", weight, kept)
    _expect_stats("least_squares", weight, stats)
    _expect_bias("least_squares", weight, bias)
    check_number("least_squares", "ridge", ridge)
    if not 0 < ridge < np.inf:
        raise ValueError(f"least_squares: ridge must be above 0 and finite, got {ridge}")
    gram = stats.products
    if bias is not None:
        gram = gram - stats.count * np.outer(stats.mean, stats.mean)
    square = gram[np.ix_(stays, stays)]
    scale = float(np.trace(square)) / len(stays)
    square[np.diag_indices(len(stays))] += ridge * scale if scale > 0 else 1.0
    wide = weight.astype(np.float64)
    # In C order at the end: writers of files have taken other orders for it.
    made_up = np.linalg.solve(square, gram[np.ix_(stays, goes)] @ wide[:, goes].T).T
    small = wide[:, stays] + made_up
    if bias is None:
        return small.astype(weight.dtype, order="C"), None
    moved = bias.astype(np.float64) + wide @ stats.mean - small @ stats.mean[stays]
    return small.astype(weight.dtype, order="C"), moved.astype(bias.dtype)


def compensate_bias(bias: Array, weight: Array, kept: Array, mean: Array) -> Array:
    """Return the bias that keeps the mean output when inputs are removed.

    ``b' = b + W_removed mean_removed``.

    Parameters
    ----------
    bias : ndarray of float32, float64, float16 or bfloat16
        (out,). Not written.
    weight : ndarray of floats
        (out, in), as it was before cropping. Not written.
    kept : ndarray of integers
        The inputs that stay, ascending.
    mean : ndarray of floats
        (in,): the mean of each input, from data or from a batch norm (its shift, behind no other activation).

    Returns
    -------
    ndarray
        In the dtype of `bias`.

    Raises
    ------
    TypeError
        If an array is none of floats.
    ValueError
        If shapes don't fit, or `kept` is no ascending choice of inputs.

    Examples
    --------
    >>> import numpy as np, modelopt_rs as mo
    >>> mo.prune.compensate_bias(np.array([1.0]), np.array([[1.0, 2.0]]), np.array([0]), np.array([5.0, 3.0]))
    array([7.])
    """
    _, goes = _split("compensate_bias", weight, kept)
    _expect_floats("compensate_bias", "bias", bias)
    _expect_bias("compensate_bias", weight, bias)
    _expect_floats("compensate_bias", "mean", mean)
    if mean.shape != weight.shape[1:]:
        raise ValueError(f"compensate_bias: mean must have shape {weight.shape[1:]}, got {mean.shape}")
    lost = weight[:, goes].astype(np.float64) @ mean[goes].astype(np.float64)
    return (bias.astype(np.float64) + lost).astype(bias.dtype)


def _split(function: str, weight: Array, kept: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the inputs that stay and those that go."""
    _expect_floats(function, "weight", weight)
    if weight.ndim != 2:
        raise ValueError(f"{function}: weight must have shape (out, in), got {weight.shape}")
    n = weight.shape[1]
    stays = check_ascending(function, "kept", kept, "inputs", n)
    return stays, np.setdiff1d(np.arange(n), stays)


def _expect_floats(function: str, name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray) or type(array).__name__ == "MaskedArray":
        raise TypeError(f"{function}: {name} must be a NumPy array, got {type(array).__name__}")
    if not (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
        raise TypeError(f"{function}: {name} must have a float dtype, got {array.dtype}")


def _expect_bias(function: str, weight: Array, bias: Any) -> None:
    if bias is None:
        return
    _expect_floats(function, "bias", bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"{function}: bias must have shape {weight.shape[:1]}, got {bias.shape}")


def _expect_stats(function: str, weight: Array, stats: Any) -> None:
    if not isinstance(stats, InputStats):
        raise TypeError(f"{function}: stats must be InputStats, got {type(stats).__name__}")
    n = weight.shape[1]
    if stats.count == 0 or len(stats.mean) != n:
        got = f"{stats.count} rows of {len(stats.mean)}"
        raise ValueError(f"{function}: stats must be of one or more rows of the {n} inputs, got {got}")
