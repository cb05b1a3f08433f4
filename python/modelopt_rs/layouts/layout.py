"""What a layout is: a weight as named tensors of a file, and back.

A layout stands in one module and in a line of the registry. It says how it is found in a file, how its tiles are
decoded and, if it can be written, which tensors it makes, how tiles are encoded, and what `config.json` says of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import Source, TensorInfo, Tile

__all__ = ["Layout", "StoredWeight"]


class StoredWeight(Protocol):
    """One weight that a source has in some layout."""

    @property
    def parts(self) -> Sequence[str]:
        """The source's tensors that stand for it; it shows in the place of the first."""

    @property
    def words(self) -> str:
        """How it is stored, for people."""

    @property
    def spec(self) -> Any:
        """How it is coded, in the terms of its layout; None where it is not."""

    def info(self, dtype: str) -> TensorInfo:
        """Return the weight as it shows: in this dtype, or in one that its layout keeps."""

    def buffers(self, dtype: str) -> Sequence[Buffer]:
        """Return what reading holds besides a tile."""

    def tiles(self, dtype: str, max_bytes: int, threads: int | None) -> Iterator[Tile]:
        """Yield the weight's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""


class Layout(Protocol):
    """One way of storing weights."""

    @property
    def name(self) -> str:
        """As its owners name it."""

    def find(self, source: Source) -> Iterator[StoredWeight]:
        """Yield the weights of a source that are stored so.

        Raises
        ------
        FormatError
            If their tensors don't fit each other. `UnsupportedError`: this form of the layout is not read.
        """
