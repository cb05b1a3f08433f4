"""Bytes of files: opened without surprises, read by `pread`, and how large what describes them may be."""

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from modelopt_rs._core import FormatError, LimitError
from modelopt_rs._types import Array
from modelopt_rs.containers.system import READ, read_at_place, read_place

__all__ = [
    "MAX_HEADER",
    "MAX_TENSORS",
    "beginning",
    "call",
    "identity",
    "open_again",
    "open_regular",
    "read_at",
    "read_file",
    "read_into",
]

MAX_HEADER = 64 << 20
MAX_TENSORS = 1_000_000
_CHUNK = 1 << 20


def call(path: str | os.PathLike[str], function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of `os`; its error names `path`, not a temporary or nothing."""
    try:
        return function(*args)
    except OSError as e:
        raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a file for reading and return its descriptor; ValueError unless it is a regular file.

    Never blocks, as opening a FIFO otherwise would. Symbolic links are followed: the caches of model hubs
    are made of them.
    """
    fd: int = call(path, os.open, path, READ)
    try:
        if not stat.S_ISREG(call(path, os.fstat, fd).st_mode):
            raise ValueError(f"{os.fspath(path)}: not a regular file")
    except BaseException:
        call(path, os.close, fd)
        raise
    return fd


def read_into(fd: int, buffer: Array, offset: int, path: Path) -> None:
    """Fill a C-contiguous array with the file's bytes from `offset` on."""
    view = buffer.reshape(-1).view(np.uint8).data
    while len(view):
        n = call(path, read_at_place, fd, view, offset)
        if n == 0:
            raise FormatError(f"{path}: file shrank while reading")
        view = view[n:]
        offset += n


def read_at(fd: int, nbytes: int, offset: int, path: Path) -> bytes:
    """Return the file's bytes from `offset` on: `nbytes` of them, less only where the file ends.

    What is held grows with what is read, not with what is asked for. A short read (a signal, a network file
    system) is none of the end.
    """
    parts: list[bytes] = []
    while nbytes:
        part = call(path, read_place, fd, min(nbytes, _CHUNK), offset)
        if not part:
            break
        parts.append(part)
        nbytes, offset = nbytes - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def beginning(path: Path, nbytes: int) -> bytes:
    """Return the first bytes of a file, by which it is told what it is."""
    fd = open_regular(path)
    try:
        return read_at(fd, nbytes, 0, path)
    finally:
        call(path, os.close, fd)


def read_file(path: Path, limit: int) -> bytes:
    """Return a whole file; LimitError if it is longer than `limit` bytes."""
    fd = open_regular(path)
    try:
        size = call(path, os.fstat, fd).st_size
        text = read_at(fd, limit + 1, 0, path) if size <= limit else b""
    finally:
        call(path, os.close, fd)
    if max(size, len(text)) > limit:
        raise LimitError(f"{path}: is larger than max_header={limit:,} bytes")
    return text


Identity: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size and time of the last change of a file."""


def identity(fd: int) -> Identity:
    """Return what tells an open file from others, and from itself when it has changed."""
    info = os.fstat(fd)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def open_again(kind: Callable[..., Any], path: Path, options: Mapping[str, Any], before: Any) -> Any:
    """Open a source that was pickled.

    Raises
    ------
    ValueError
        If it is not what it was.
    """
    source = kind(path, **options)
    if source.identity != before:
        source.close()
        raise ValueError(f"{path}: has changed since it was opened")
    return source
