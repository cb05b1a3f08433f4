"""How a weight is coded in uniform codes: bits, whether there are zero points, and what shares a scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelopt_rs._types import Format, Scheme
from modelopt_rs.quant.formats import BITS

__all__ = ["PackedSpec", "as_matrix", "packed_words"]


@dataclass(frozen=True, slots=True)
class PackedSpec:
    """How a weight is packed.

    Attributes
    ----------
    bits : int
        2, 4 or 8 bits of a code.
    symmetric : bool
        Whether there is no zero point.
    group_size : int or None
        How many consecutive elements of a row share a scale; None: the whole row.
    """

    bits: int
    symmetric: bool = True
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"PackedSpec: bits must be 2, 4 or 8, got {self.bits}")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"PackedSpec: group_size must be at least 1 or None, got {self.group_size}")

    @property
    def scheme(self) -> Scheme:
        """The scheme of the array functions."""
        return "symmetric" if self.symmetric else "asymmetric"

    @property
    def format(self) -> Format:
        """The format of the array functions: symmetric codes are stored without a sign."""
        return f"uint{self.bits}b{1 << self.bits - 1}" if self.symmetric else (self.bits, self.scheme)

    def groups(self, columns: int) -> int:
        """Return how many scales a row of `columns` elements has."""
        return -(-columns // self.group_size) if self.group_size else 1


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns that a weight is coded in: the first axis, and all others as one.

    Examples
    --------
    >>> from modelopt_rs.layouts.packed_spec import as_matrix
    >>> as_matrix((64, 3, 7, 7))
    (64, 147)
    """
    return shape[0], math.prod(shape[1:])


def packed_words(n: int, bits: int) -> int:
    """Return how many 32-bit words `n` codes of `bits` bits take."""
    return -(-n * bits // 32)
