"""A part of an open file as a file of Python's own."""

import io
import os
from pathlib import Path
from typing import Any

from modelopt_rs.containers.reading import call
from modelopt_rs.containers.system import read_at_place

__all__ = ["Window"]


class Window(io.RawIOBase):
    """The bytes of an open file from `begin` to `end`, read by `pread`; closing it leaves the file open."""

    def __init__(self, fd: int, begin: int, end: int, path: Path) -> None:
        super().__init__()
        self._fd, self._begin, self._end, self._path = fd, begin, end, path
        self._at = begin

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read anywhere: yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes, and return how many."""
        view = memoryview(buffer).cast("B")[: max(0, self._end - self._at)]
        n: int = call(self._path, read_at_place, self._fd, view, self._at) if view else 0
        self._at += n
        return n

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, counted from the window's begin, from here or from its end."""
        base = {os.SEEK_SET: self._begin, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        if base + offset < self._begin:
            raise ValueError("seek: offset must not lie before the file")
        self._at = base + offset
        return self._at - self._begin

    def tell(self) -> int:
        """Return the place, counted from the window's begin."""
        return self._at - self._begin

    @property
    def left(self) -> int:
        """How many bytes there are from here on."""
        return max(0, self._end - self._at)

    def buffered(self) -> "BufferedWindow":
        """Return it with a buffer, for many short reads."""
        return BufferedWindow(self)


class BufferedWindow(io.BufferedReader):
    """A window with a buffer; it never allocates more than the window has left."""

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        self._end = window.tell() + window.left

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes: at most those that are left."""
        left = max(0, self._end - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))
