"""A model and the file of its data, put in place together: a model never shows without the data that it names.

Both are written in a temporary directory beside the destination. `commit` renames the data first, under a name that
only this content has, and the model last: before that rename the old model stands there with its own data.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelopt_rs.containers.atomic import (
    call,
    check_free,
    forget_temporary,
    new_temporary,
    remove_stale,
    resolve,
    stat_regular,
    sync_directory,
    take_after,
)

__all__ = ["AtomicPair", "locked"]

_TILE = 4 << 20
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class AtomicPair:
    """Two files that are being written; nothing shows before `commit`.

    Parameters
    ----------
    path : str or os.PathLike
        Where the model goes. Its data go beside it.
    nbytes : int
        How many bytes will be written: checked against the free space before anything else.
    durable : bool
        Whether `commit` waits until both are on the disk.

    Attributes
    ----------
    model_fd, data_fd : int
        The files. They have the mode of the model that is replaced.

    Raises
    ------
    ValueError
        If `path` is a symbolic link: readers would look for the data beside the link.
    OSError
        As `AtomicFile`.
    """

    def __init__(self, path: str | os.PathLike[str], *, nbytes: int = 0, durable: bool = True) -> None:
        if Path(path).is_symlink():
            raise ValueError(f"{os.fspath(path)}: a model with external data can't be written to a symbolic link")
        self.path = resolve(path)
        self.model_fd = self.data_fd = self._lock = -1
        self._durable = durable
        self._data = ""
        replaced = stat_regular(self.path)
        remove_stale(self.path)
        check_free(self.path, nbytes)
        self._temporary = new_temporary(self.path)
        try:
            call(self.path, self._temporary.mkdir)
            self._lock = os.open(self._temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.model_fd = call(self.path, os.open, self.readable, _NEW, 0o666)
            self.data_fd = call(self.path, os.open, self._temporary / self._data_name(), _NEW, 0o666)
            if replaced is not None:
                for fd in (self.model_fd, self.data_fd):
                    take_after(fd, replaced, self.path)
        except BaseException:
            self.abort()
            raise

    @property
    def readable(self) -> Path:
        """A path at which the model can be read before `commit`, with its data once they have their name."""
        return self._temporary / self.path.name

    def _data_name(self) -> str:
        return self._data or (".data" if self.path.name != ".data" else ".values")

    def name_data(self, name: str) -> None:
        """Give the data their name: one that nothing else but the same bytes has."""
        if name != self._data:
            call(self.path, os.rename, self._temporary / self._data_name(), self._temporary / name)
            self._data = name

    def sync(self) -> None:
        """Bring what is written to the disk (if durable), so that reading it back reads the disk."""
        for fd in (self.data_fd, self.model_fd) if self._durable else ():
            call(self.path, os.fsync, fd)
            with suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Put the data in place, then the model. On an error `path` is as it was. Needs `locked`.

        Raises
        ------
        FileExistsError
            If another file has the name of the data.
        """
        try:
            for fd in (self.data_fd, self.model_fd) if self._durable else ():
                call(self.path, os.fsync, fd)
            self._rename()
        except BaseException:
            self.abort()
            raise
        self.abort()  # what is left: the empty directory
        if self._durable:
            sync_directory(self.path.parent)

    def _rename(self) -> None:
        data = self.path.with_name(self._data)
        is_new = not os.path.lexists(data)
        if not is_new and not _is_same(self.data_fd, data):
            raise FileExistsError(errno.EEXIST, "another file has the name of the external data", str(data))
        call(self.path, os.rename, self._temporary / self._data, data)
        try:
            if self._durable:
                sync_directory(self.path.parent)
            call(self.path, os.rename, self.readable, self.path)
        except BaseException:
            if is_new:
                with suppress(OSError):
                    data.unlink()
            raise

    def abort(self) -> None:
        """Remove the temporaries; `path` stays as it was. After `commit` this does nothing."""
        if self._temporary.name:
            shutil.rmtree(self._temporary, ignore_errors=True)
            forget_temporary(self._temporary)
            self._temporary = Path()
        for name in ("model_fd", "data_fd", "_lock"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                call(self.path, os.close, fd)


def _is_same(fd: int, path: Path) -> bool:
    """Whether a file has the bytes of an open one."""
    try:
        other = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        size = os.fstat(fd).st_size
        if os.fstat(other).st_size != size:
            return False
        return all(os.pread(fd, _TILE, at) == os.pread(other, _TILE, at) for at in range(0, size, _TILE))
    finally:
        os.close(other)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other writers of the package from putting models with data into a directory, or from removing data."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network file systems can't
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
