"""How the weights of one tensor are spread, before and after: what a picture of it is drawn from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Distribution"]


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """The weights of one tensor, counted in bins of equal width.

    Attributes
    ----------
    name : str
        Of the tensor.
    edges : ndarray of float64
        The edges of the bins, one more than there are bins; the few weights that lie far outside are in none.
    before, after : ndarray of int64
        How many weights of the old and of the new model are in each.
    levels : ndarray of float64
        The numbers that the weights of one middling group have in the new model, in order: where its codes stand.
    """

    name: str
    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    levels: NDArray[np.float64]
