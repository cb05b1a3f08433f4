"""The files that a model's tensors stand in: the model's own, and those that its external data name.

A name out of a model is not to be trusted. It must lead to a regular file beneath the model's directory, without
`..`, symbolic links or a second hard link; and what lies behind it must be long enough.
"""

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from modelopt_rs._core import FormatError
from modelopt_rs._types import Array
from modelopt_rs.containers.reading import read_into
from modelopt_rs.containers.system import open_beneath
from modelopt_rs.errors import quote

__all__ = ["Extent", "ExternalFiles", "ModelFile", "Trust", "parse_entries"]

_KEYS: Final = ("location", "offset", "length", "checksum")
MAX_OPEN = 64  # descriptors of external files: some exporters give every tensor its own
_MAX_LOCATION = 4096
_LINK = (
    "is, or lies behind, a symbolic link; allow_symlinks_under=DIR accepts links to files beneath DIR "
    "(--allow-symlinks-under DIR)"
)
_PROBLEMS: Final = {
    errno.ELOOP: _LINK,
    errno.ENOTDIR: _LINK,  # of a directory that is a link; or of a file, which can't be one
    errno.ENXIO: "is not a regular file",
    errno.ENAMETOOLONG: "can't be a file name",
}


class File(Protocol):
    """What bytes can be read from."""

    path: Path

    def read_into(self, buffer: Array, offset: int) -> None:
        """Fill a C-contiguous array with the file's bytes from `offset` on."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a tensor stand."""

    file: File
    offset: int

    def fill(self, buffer: Array, at: int) -> None:
        """Fill a C-contiguous array with the tensor's bytes from `at` on."""
        self.file.read_into(buffer, self.offset + at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What external data may be besides a plain file with one name beneath the model's directory.

    Attributes
    ----------
    hard_links : bool
        It may have several names.
    symlinks_under : path, optional
        It may be a symbolic link to a file beneath this directory: the caches of model hubs are made of them.
    """

    hard_links: bool = False
    symlinks_under: str | os.PathLike[str] | None = None


class ModelFile:
    """The model's own file; `close` closes its descriptor."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    def read_into(self, buffer: Array, offset: int) -> None:
        """Fill a C-contiguous array with the file's bytes from `offset` on."""
        if self.fd < 0:
            raise ValueError(f"{self.path}: the file is closed")
        read_into(self.fd, buffer, offset, self.path)

    def close(self) -> None:
        """Close the file."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def parse_entries(entries: Iterable[tuple[str, str]], where: str) -> tuple[str, int, int | None]:
    """Return location, offset and length (None: not said) of a tensor's external data.

    Raises
    ------
    FormatError
        If a key is unknown or stands twice, the location is missing, or a number isn't one.
    """
    found: dict[str, str] = {}
    for key, value in entries:
        if key not in _KEYS:
            raise FormatError(f"{where}: unknown key {quote(key)} of external data")
        if key in found:
            raise FormatError(f"{where}: key {quote(key)} of external data stands twice")
        found[key] = value
    if "location" not in found:
        raise FormatError(f"{where}: external data without a location")
    length = _number(found, "length", where) if "length" in found else None
    return found["location"], _number(found, "offset", where) if "offset" in found else 0, length


def _number(found: dict[str, str], key: str, where: str) -> int:
    text = found[key]
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 1 << 63):
        raise FormatError(f"{where}: {key} {quote(text)} of external data must be a decimal number")
    return int(text)


def _parts(location: str, where: str) -> list[str]:
    """Return the names on the way to an external file."""
    problem = None
    parts = [part for part in location.split("/") if part != "."]
    if not location or not parts or "" in parts:
        problem = "must be the path of a file, relative to the model's directory"
    elif ".." in parts:
        problem = "must not leave the model's directory"
    elif "\0" in location:
        problem = "can't be a file name"
    elif len(location) > _MAX_LOCATION:
        problem = f"is longer than {_MAX_LOCATION:,} characters"
    if problem:
        raise FormatError(f"{where}: location {quote(location)} of external data {problem}")
    return parts


class ExternalFiles:
    """The external data files of one model; opened when they are needed, and the same files again later.

    Parameters
    ----------
    model : Path
        The model's path: the files are beneath its directory.
    trust : Trust
        What they may be.
    """

    def __init__(self, model: Path, trust: Trust) -> None:
        self._model = model
        self._trust = trust
        self._files: dict[str, _External] = {}
        self._open: OrderedDict[str, int] = OrderedDict()
        self._closed = False
        self._lock = threading.Lock()  # a descriptor must not be closed, and used again, while it is read

    def file(self, location: str, where: str) -> "_External":
        """Return an external file, which is checked.

        Raises
        ------
        FormatError
            If it isn't there, or isn't what it may be.
        """
        if location not in self._files:
            parts = _parts(location, where)
            fd = self._enter(location, self._checked_open(parts, where))
            self._files[location] = _External(self, location, parts, self._model.parent / location, os.fstat(fd))
        return self._files[location]

    @property
    def nbytes(self) -> int:
        """The size of all files that were checked; one that is spelled in two ways, or has two names, is one."""
        return sum({file.identity: file.size for file in self._files.values()}.values())

    def read_into(self, file: "_External", buffer: Array, offset: int) -> None:
        """Fill a C-contiguous array with bytes of a file that was checked before."""
        with self._lock:
            read_into(self._descriptor(file), buffer, offset, file.path)

    def _descriptor(self, file: "_External") -> int:
        if self._closed:
            raise ValueError(f"{self._model}: the file is closed")
        if file.location in self._open:
            self._open.move_to_end(file.location)
            return self._open[file.location]
        fd = self._enter(file.location, self._checked_open(file.parts, str(self._model)))
        if not file.is_same(os.fstat(fd)):
            raise FormatError(f"{file.path}: file was replaced while reading")
        return fd

    def _enter(self, location: str, fd: int) -> int:
        self._open[location] = fd
        if len(self._open) > MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def _checked_open(self, parts: list[str], where: str) -> int:
        shown = quote("/".join(parts))
        try:
            fd = self._walk(parts)
        except FileNotFoundError:
            raise FormatError(f"{where}: external data file {shown} is missing") from None
        except OSError as e:
            problem = _PROBLEMS.get(e.errno or 0)
            if problem is None:
                raise OSError(e.errno, e.strerror, str(self._model.parent.joinpath(*parts))) from e
            raise FormatError(f"{where}: external data file {shown} {problem}") from None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise FormatError(f"{where}: external data file {shown} is not a regular file")
            if info.st_nlink == 0:  # removed since it was opened
                raise FormatError(f"{where}: external data file {shown} is missing")
            if info.st_nlink != 1 and not self._trust.hard_links:
                advice = "a copy has one, and files.open(allow_hard_links=True) takes this"
                raise FormatError(f"{where}: external data file {shown} has {info.st_nlink} names; {advice}")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _walk(self, parts: list[str]) -> int:
        """Open a file beneath the model's directory, name by name, so that no link is followed."""
        path = self._model.parent.joinpath(*parts)
        if self._trust.symlinks_under is not None and path.resolve() != self._model.parent.resolve().joinpath(*parts):
            allowed, real = Path(self._trust.symlinks_under).resolve(), path.resolve()
            if not real.is_relative_to(allowed):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            return open_beneath(allowed, list(real.relative_to(allowed).parts))
        return open_beneath(self._model.parent, parts)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._closed = True
            while self._open:
                os.close(self._open.popitem()[1])


class _External:
    """One external file, as it was when it was checked."""

    def __init__(self, files: ExternalFiles, location: str, parts: list[str], path: Path, info: os.stat_result) -> None:
        self.location = location
        self.parts = parts
        self.path = path
        self.size = info.st_size
        self.identity = (info.st_dev, info.st_ino)
        self._files = files
        self._changed = info.st_mtime_ns

    def is_same(self, info: os.stat_result) -> bool:
        """Whether this is the file that was checked, unchanged."""
        return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns) == (*self.identity, self.size, self._changed)

    def read_into(self, buffer: Array, offset: int) -> None:
        """Fill a C-contiguous array with the file's bytes from `offset` on."""
        self._files.read_into(self, buffer, offset)
