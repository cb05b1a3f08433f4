"""One run of an operation: its limits, how far it has come, and what an error about a tile says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from modelopt_rs.errors import OptionError, ScaleRangeError, quote
from modelopt_rs.stream.model import Source, Tile
from modelopt_rs.threads import MAX_THREADS

__all__ = ["Execution", "Progress", "located"]

Progress: TypeAlias = Callable[[int, int, str], None]
"""Bytes done, bytes in all, the tensor at hand."""


@dataclass(slots=True)
class Execution:
    """What every step of one run shares.

    Attributes
    ----------
    max_memory : int
        The most bytes that tiles and their results may take at a time.
    threads : int or None
        Threads to compute with.
    progress : callable or None
        Told of every tile.
    total, done : int
        Bytes of input, in all and so far.
    source, output : str
        The paths as they were given.
    dry_run : bool
        Whether nothing is written.
    overwrite : bool
        Whether what is at the destination may be replaced.
    """

    max_memory: int
    threads: int | None
    progress: Progress | None
    total: int
    done: int = 0
    source: str = ""
    output: str = ""
    dry_run: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse now what the first tile would refuse, in the middle of the work."""
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise OptionError(f"threads must be from 1 to {MAX_THREADS:,}, got {self.threads}")

    def said(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {"source": self.source, "output": self.output, "dry_run": self.dry_run}

    def advance(self, nbytes: int, name: str) -> None:
        """Tell the caller that `nbytes` more of the input are done."""
        self.done += nbytes
        if self.progress is not None:
            self.progress(self.done, self.total, name)


@contextmanager
def located(source: Source, name: str, tile: Tile) -> Iterator[None]:
    """Raise errors about a tile with the tensor and the row that it begins at."""
    try:
        yield
    except ValueError as error:
        where = f"{source.path}: tensor {quote(name)}, rows from {tile.first_row:,}"
        kind = ScaleRangeError if isinstance(error, ScaleRangeError) else ValueError
        raise kind(f"{where}: {error}") from error
