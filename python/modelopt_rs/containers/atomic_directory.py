"""A directory that is written whole or not at all: beside its destination, then put there by one rename."""

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from modelopt_rs.containers.atomic import forget_temporary, new_temporary, remove_stale, resolve, sync_directory

__all__ = ["AtomicDirectory"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class AtomicDirectory:
    """A directory that is being written at `temporary`; nothing shows at `path` before `commit`.

    Parameters
    ----------
    path : str or os.PathLike
        The destination: a name that is free, or an empty directory.
    overwrite : bool
        Whether a directory that isn't empty may be replaced. It is removed after the new one is in its place.
    durable : bool
        Whether `commit` waits until the names are on the disk. The files in it are their writers' business.

    Raises
    ------
    FileExistsError
        If the destination is a directory with something in it, and `overwrite` is false.
    NotADirectoryError
        If the destination is a file.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False, durable: bool = True) -> None:
        self.path = resolve(path)
        self._overwrite = overwrite
        self._durable = durable
        self._lock = -1
        mode = self._check()
        remove_stale(self.path)
        self.temporary = new_temporary(self.path)
        try:
            try:
                self.temporary.mkdir()
            except OSError as e:
                raise OSError(e.errno, e.strerror, str(self.path)) from e
            self._lock = os.open(self.temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if mode is not None:
                self.temporary.chmod(mode)
        except BaseException:
            self.abort()
            raise

    def _check(self) -> int | None:
        """Return the mode of the directory to replace, None if there is none."""
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.path))
        if not self._overwrite and any(self.path.iterdir()):
            message = "the directory is not empty; pass overwrite=True (--overwrite) to replace it"
            raise FileExistsError(errno.EEXIST, message, str(self.path))
        return stat.S_IMODE(mode)

    def commit(self) -> None:
        """Put the directory in the place of `path` at once. On an error `path` is as it was."""
        try:
            if self._durable:
                for folder, _, _ in os.walk(self.temporary, topdown=False):
                    sync_directory(Path(folder))
            self._check()
            old = self._put_in_place()
        except BaseException:
            self.abort()
            raise
        if self._durable:
            sync_directory(self.path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        self._forget()

    def _put_in_place(self) -> Path | None:
        """Rename; return where the old directory is now, if there was one with something in it."""
        try:
            self.temporary.rename(self.path)  # replaces an empty directory, too
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not self._overwrite:
                raise OSError(e.errno, e.strerror, str(self.path)) from e
        else:
            return None
        if _exchange(self.temporary, self.path):
            return self.temporary
        # Two renames: between them `path` is absent, but what it held is whole under the other name.
        aside = new_temporary(self.path)
        self.path.rename(aside)
        try:
            self.temporary.rename(self.path)
        except BaseException:
            aside.rename(self.path)
            raise
        finally:
            forget_temporary(aside)
        return aside

    def abort(self) -> None:
        """Remove the temporary; `path` stays as it was. After `commit` this does nothing."""
        if self.temporary.name:
            shutil.rmtree(self.temporary, ignore_errors=True)
        self._forget()

    def _forget(self) -> None:
        forget_temporary(self.temporary)
        self.temporary = Path()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.abort()


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two directories at once; False where the system can't."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done = rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return bool(done == 0)
