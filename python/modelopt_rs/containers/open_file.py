"""A source that is one open file."""

import warnings
from collections.abc import Mapping
from typing import Any

from modelopt_rs.containers.reading import Identity, identity, open_again
from modelopt_rs.errors import SourceWarning, listing, quote
from modelopt_rs.stream.model import Source

__all__ = ["OpenFile"]


class OpenFile(Source):
    """What every source that reads one file by its descriptor has; a subclass sets the attributes when it opens.

    Attributes
    ----------
    _fd : int
        The descriptor.
    _nbytes : int
        The size of the file.
    _options : dict
        The keyword arguments to open it with again.
    _notes : tuple of str
        What is left out.
    """

    _fd: int
    _nbytes: int
    _options: dict[str, Any]
    _notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self._nbytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out; it is a Python warning as well."""
        return self._notes

    def _leave_out(self, tensors: Mapping[str, int], more: str = "") -> None:
        """Note that tensors beside the model are left out: how many under which name, and what more is to say."""
        parts = listing([f"{n:,} under {quote(name)}" for name, n in tensors.items() if n])
        self._notes = (f"tensors beside the model are left out: {parts}{more}",)
        warnings.warn(f"{self.path}: {self._notes[0]}", SourceWarning, stacklevel=3)

    @property
    def identity(self) -> Identity:
        """What tells the file from others, and from itself when it has changed."""
        return identity(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it again where it is unpickled; ValueError if it is another file then."""
        return open_again, (type(self), self.path, self._options, self.identity)
