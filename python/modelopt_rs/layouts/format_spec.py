"""How a weight is coded in a named format: which, and what shares a scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelopt_rs.errors import OptionError

__all__ = ["FormatSpec", "check_group_size"]


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """A named format of `modelopt_rs.quantize`, and what shares a scale of a matrix [out, in].

    Attributes
    ----------
    format : str
        The name.
    axis : int or None
        0: a scale for each row.
    group_size : int, tuple of int, or None
        Elements of a row, or rows and columns, that share a scale; both None: all share one.
    """

    format: str
    axis: int | None = None
    group_size: int | tuple[int, int] | None = None

    @property
    def words(self) -> str:
        """It in words."""
        if isinstance(self.group_size, tuple):
            return f"{self.format}, blocks of {self.group_size[0]} x {self.group_size[1]}"
        if self.group_size is not None:
            return f"{self.format}, blocks of {self.group_size}"
        return f"{self.format}, one scale {'for all' if self.axis is None else 'a row'}"

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return the shape of the scales that the array functions make for so many rows."""
        if isinstance(self.group_size, tuple):
            return -(-rows // self.group_size[0]), -(-columns // self.group_size[1])
        if self.group_size is not None:
            return rows, -(-columns // self.group_size)
        return () if self.axis is None else (rows,)


def check_group_size(options: Any, known: Sequence[int]) -> None:
    """Refuse a group size that a layout of a named format does not have."""
    size = options.group_size
    if size is not None and size not in known:
        shown = " or ".join(map(str, known))
        raise OptionError(f"group_size must be {shown} (or left out) for format {options.format!r}, got {size}")
