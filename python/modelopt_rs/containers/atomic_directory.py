"""A directory that is written whole or not at all: beside its destination, then put there by one rename."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from modelopt_rs.containers.atomic import (
    forget_temporary,
    new_temporary,
    remove,
    remove_stale,
    resolve,
    sync_directory,
)
from modelopt_rs.containers.placing import exchange, in_place, rename_new
from modelopt_rs.containers.reading import call
from modelopt_rs.containers.system import exclusive, open_directory
from modelopt_rs.errors import InPlaceError

__all__ = ["AtomicDirectory"]


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

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False, durable: bool) -> None:
        self.path = resolve(path)
        self._overwrite = overwrite
        self._durable = durable
        self._lock = -1
        mode = self._check()
        self._is_new = mode is None
        remove_stale(self.path)
        self.temporary = new_temporary(self.path)
        try:
            call(self.path, os.mkdir, self.temporary)
            self._lock = call(self.path, open_directory, self.temporary)
            with suppress(OSError):
                exclusive(self._lock)
            if mode is not None:
                call(self.path, os.chmod, self.temporary, mode)
        except BaseException:
            self.abort()
            raise

    def _check(self) -> int | None:
        """Return the mode of the directory to replace, None if there is none."""
        try:
            mode = call(self.path, os.stat, self.path).st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.path))
        if not self._overwrite and any(self.path.iterdir()):
            raise self._exists()
        return stat.S_IMODE(mode)

    def _exists(self) -> FileExistsError:
        message = "the directory is not empty; pass overwrite=True (--overwrite) to replace it"
        return FileExistsError(errno.EEXIST, message, str(self.path))

    def shown(self, name: str | os.PathLike[str]) -> Path:
        """Return the place in the destination that a file of the temporary directory will have."""
        return self.path / name

    def commit(self) -> None:
        """Put the directory in the place of `path` at once.

        Raises
        ------
        FileExistsError
            If something has appeared at `path` meanwhile, and `overwrite` is false.
        InPlaceError
            If the directory took its place, but may not be durable, or what it replaced could not be removed.
        OSError
            Of any other `path` is as it was.
        """
        try:
            if self._durable:
                for folder, _, _ in os.walk(self.temporary, topdown=False):
                    with self._named():
                        sync_directory(Path(folder))
            self._check()
            old = self._put_in_place()
        except BaseException:
            self.abort()
            raise
        try:
            left = remove(old) if old is not None else None
            with in_place(self.path):
                if self._durable:
                    sync_directory(self.path.parent)
            if left is not None:
                message = f"is in place, but what it replaced could not be removed from {old}: {left.strerror}"
                raise InPlaceError(left.errno, message, str(self.path)) from left
        finally:
            self._forget()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let errors about the temporary name the destination."""
        try:
            yield
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self.path)) from e

    def _put_in_place(self) -> Path | None:
        """Rename; return where the old directory is now, if there was one with something in it."""
        if self._is_new and not self._overwrite:
            rename_new(self.temporary, self.path)
            return None
        try:
            call(self.path, os.rename, self.temporary, self.path)  # replaces an empty directory, too
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not self._overwrite:
                raise self._exists() from None
        else:
            return None
        if exchange(self.temporary, self.path):
            return self.temporary
        # Two renames: between them `path` is absent, but what it held is whole under the other name.
        aside = new_temporary(self.path)
        call(self.path, os.rename, self.path, aside)
        try:
            call(self.path, os.rename, self.temporary, self.path)
        except BaseException:
            aside.rename(self.path)
            raise
        finally:
            forget_temporary(aside)
        return aside

    def abort(self) -> None:
        """Remove the temporary; `path` stays as it was. After `commit` this does nothing."""
        if self.temporary.name:
            remove(self.temporary)
        self._forget()

    def _forget(self) -> None:
        forget_temporary(self.temporary)
        self.temporary = Path()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            with suppress(OSError):  # nothing was written through it
                os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.abort()
