"""A source that is one open file."""

from typing import Any

from modelopt_rs.containers.reading import Identity, identity, open_again
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
    """

    _fd: int
    _nbytes: int
    _options: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self._nbytes

    @property
    def identity(self) -> Identity:
        """What tells the file from others, and from itself when it has changed."""
        return identity(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it again where it is unpickled; ValueError if it is another file then."""
        return open_again, (type(self), self.path, self._options, self.identity)
