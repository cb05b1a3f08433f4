"""The one place that writes files: whole or not at all.

A file is written to a temporary in its destination's directory and shows at its path at once, in `commit`.
The temporary has no name where the file system allows that (`O_TMPFILE`), so that even SIGKILL leaves nothing
behind; else it is called `.<name>.modelopt-<pid>-<n>.tmp`, and the next writer of the same path removes it if
its process is gone. With `durable` the order is: write, fsync(file), rename, fsync(directory), so that after
a power loss the path holds the old file or the new one, whole.
"""

import errno
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.containers.container import check_place
from modelopt_rs.containers.placing import exists, in_place, rename_new
from modelopt_rs.containers.reading import call
from modelopt_rs.containers.system import (
    READ,
    WRITE_NEW,
    exclusive,
    forget_cached,
    free_bytes,
    give_name,
    is_alive,
    keep_owner_and_mode,
    open_directory,
    open_unnamed,
    rename_over,
    renames_open_files,
    write_at_place,
)
from modelopt_rs.errors import binary_size

__all__ = [
    "AtomicFile",
    "check_free",
    "forget_temporary",
    "is_temporary",
    "new_temporary",
    "remove",
    "remove_stale",
    "resolve",
    "stat_regular",
    "sync_directory",
    "take_after",
    "write_all",
    "write_whole",
]

_MAX_PREFIX = 200  # bytes of the destination's name in a temporary's, which may have 255 in all
_counter = itertools.count()
_live: set[str] = set()  # temporaries of this process, which another of its threads must not take for stale


class AtomicFile:
    """A file that is being written; nothing shows at `path` before `commit`.

    A symbolic link is followed: what it points to is replaced, the link stays. A new file gets mode
    0666 & ~umask, a replaced one keeps its mode, and its owner where the process may set that.

    Parameters
    ----------
    path : str or os.PathLike
        The destination.
    nbytes : int
        How many bytes will be written: checked against the free space before anything else.
    durable : bool
        Whether `commit` waits until the file is on the disk.
    overwrite : bool
        Whether what is at `path` may be replaced: when it is opened, and at `commit`.
    shown : Path, optional
        What errors name, where the file is a part of a temporary directory: its place in the destination.

    Raises
    ------
    FileExistsError
        If there is something at `path`, and `overwrite` is false.
    OSError
        With `errno` and `filename`: ENOSPC if `nbytes` do not fit, and whatever the file system says.
    ValueError
        If `path` is there and is neither a regular file nor a directory (that is `IsADirectoryError`).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        nbytes: int = 0,
        durable: bool = True,
        overwrite: bool = True,
        shown: Path | None = None,
    ) -> None:
        check_place(path, overwrite)
        self.path = resolve(path)
        self.shown = shown or self.path
        self._is_part = shown is not None
        self._durable, self._overwrite = durable, overwrite
        self._temporary: Path | None = None
        self.fd = -1
        replaced = stat_regular(self.path)
        remove_stale(self.path)
        check_free(self.path, nbytes, shown)
        try:
            self._open()
            if replaced is not None:
                take_after(self.fd, replaced, self.shown)
        except BaseException:
            self.abort()
            raise

    def _open(self) -> None:
        unnamed = open_unnamed(self.path.parent)
        if unnamed is None:
            self._temporary = new_temporary(self.path)
            unnamed = self._call(os.open, self._temporary, WRITE_NEW, 0o666)
        self.fd = unnamed
        # A lock tells a live temporary from a stale one also where process ids mean nothing (containers).
        with suppress(OSError):
            exclusive(self.fd)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return call(self.shown, function, *args)

    @property
    def readable(self) -> Path:
        """A path at which this and other processes can read what is written, before `commit`."""
        return self._temporary or Path(f"/proc/{os.getpid()}/fd/{self.fd}")  # unnamed only where there is /proc

    def write_at(self, data: bytes | NDArray[Any], offset: int) -> None:
        """Write all of `data` (bytes, or a C-contiguous array) at `offset`."""
        write_all(self.shown, self.fd, data, offset)

    def sync(self) -> None:
        """Bring what is written to the disk (if durable), so that reading it back reads the disk."""
        if self._durable:
            self._call(os.fsync, self.fd)
            forget_cached(self.fd)

    def commit(self) -> None:
        """Put the file in the place of `path` at once.

        Raises
        ------
        FileExistsError
            If something has appeared at `path` meanwhile, and `overwrite` is false.
        InPlaceError
            If the file took its place, but may not be durable.
        OSError
            Of any other `path` is as it was.
        """
        try:
            if self._durable:
                self._call(os.fsync, self.fd)
            if not renames_open_files():
                self._close()
            self._rename()
        except BaseException:
            self.abort()
            raise
        if self._is_part:  # what it is a part of is neither in place yet nor synced
            self._close()
            return
        with in_place(self.shown):
            try:
                self._close()
            finally:
                if self._durable:
                    sync_directory(self.path.parent)

    def _rename(self) -> None:
        if self._temporary is None:
            try:
                self._call(self._link, self.path)
            except FileExistsError:
                if not self._overwrite:
                    raise exists(self.shown) from None
                # linkat never replaces: take a name, and let rename do that.
                self._temporary = new_temporary(self.path)
                self._call(self._link, self._temporary)
            else:
                return
        if self._overwrite:
            self._call(rename_over, self._temporary, self.path)
        else:
            rename_new(self._temporary, self.path)
        _live.discard(self._temporary.name)
        self._temporary = None

    def _link(self, name: Path) -> None:
        give_name(self.fd, name)

    def abort(self) -> None:
        """Remove the temporary; `path` stays as it was. After `commit` this does nothing."""
        if self._temporary is not None:
            remove(self._temporary)
            _live.discard(self._temporary.name)
            self._temporary = None
        with suppress(OSError):  # what was written is given up
            self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._call(os.close, fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.abort()


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, all of it or not at all; what is at `path` is replaced."""
    with AtomicFile(path, nbytes=len(data)) as file:
        file.write_at(data, 0)
        file.commit()


def write_all(path: Path, fd: int, data: bytes | NDArray[Any], offset: int) -> None:
    """Write all of `data` at `offset` of an open file; `path` is the destination that errors name."""
    view = memoryview(data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data)
    while len(view):
        n = call(path, write_at_place, fd, view, offset)
        if n == 0:
            raise OSError(errno.EIO, "the file system wrote nothing", str(path))
        view = view[n:]
        offset += n


def take_after(fd: int, replaced: os.stat_result, path: Path) -> None:
    """Give a new file the owner and the mode of the one that it will replace."""
    call(path, keep_owner_and_mode, fd, replaced)


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return what `path` stands for, without symbolic links; it need not be there."""
    real = Path(os.path.realpath(path))
    if real.is_symlink():  # a loop, which realpath leaves as it is
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return real


def stat_regular(path: Path) -> os.stat_result | None:
    """Return the status of a regular file, None if there is nothing."""
    try:
        info: os.stat_result = call(path, os.stat, path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"{path}: not a regular file")
    return info


def check_free(path: Path, nbytes: int, shown: Path | None = None) -> None:
    """Raise OSError(ENOSPC) if `nbytes` do not fit into the file system of `path`'s directory."""
    free = call(shown or path, free_bytes, path.parent)
    if nbytes > free:
        raise OSError(errno.ENOSPC, f"needs {binary_size(nbytes)}, {binary_size(free)} free", str(shown or path))


def sync_directory(path: Path) -> None:
    """Bring a directory's names to the disk."""
    fd = call(path, open_directory, path)
    if fd < 0:
        return
    try:
        os.fsync(fd)
    except OSError as e:
        # Some network and FUSE file systems can't, and then need not.
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        call(path, os.close, fd)


def _prefix(path: Path) -> str:
    return "." + os.fsdecode(os.fsencode(path.name)[:_MAX_PREFIX]) + ".modelopt-"


def new_temporary(path: Path) -> Path:
    """Return a name next to `path` that no other thread or process takes, and that `remove_stale` knows."""
    name = f"{_prefix(path)}{os.getpid()}-{next(_counter)}.tmp"
    _live.add(name)
    return path.with_name(name)


def forget_temporary(path: Path) -> None:
    """Say that the temporary is gone."""
    _live.discard(path.name)


def remove(path: Path) -> OSError | None:
    """Remove a temporary, a directory with all that is in it; return why it is still there, if it is.

    A second attempt gives the owner's rights back to folders that lack them.
    """
    error = None
    for attempt in range(2):
        try:
            if path.is_dir() and not path.is_symlink():
                for folder, _, _ in os.walk(path) if attempt else ():
                    os.chmod(folder, 0o700)  # noqa: PTH101
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return None
        except OSError as e:
            error = e
        else:
            return None
    return error


def is_temporary(name: str) -> bool:
    """Whether this is the name of a temporary."""
    return re.fullmatch(r"\..*\.modelopt-\d+-\d+\.tmp", name, re.DOTALL) is not None


def remove_stale(path: Path) -> None:
    """Remove temporaries of `path` that processes left which are gone."""
    prefix = _prefix(path)
    with suppress(OSError):
        for name in [file.name for file in path.parent.iterdir()]:
            if name.startswith(prefix) and is_temporary(name) and name not in _live:
                pid = int(name[len(prefix) :].split("-")[0])
                with suppress(OSError):
                    _remove_if_dead(path.with_name(name), pid)


def _remove_if_dead(path: Path, pid: int) -> None:
    if pid != os.getpid() and is_alive(pid):
        return
    fd = os.open(path, READ | getattr(os, "O_NOFOLLOW", 0))
    try:
        exclusive(fd)  # BlockingIOError: somebody writes it after all
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(fd)
