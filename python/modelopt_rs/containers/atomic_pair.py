"""A model and the file of its data, put in place together: a model never shows without the data that it names.

Both are written in a temporary directory beside the destination. `commit` renames the data first, under a name that
only this content has, and the model last: before that rename the old model stands there with its own data.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelopt_rs.containers.atomic import (
    check_free,
    forget_temporary,
    new_temporary,
    remove,
    remove_stale,
    resolve,
    stat_regular,
    sync_directory,
    take_after,
)
from modelopt_rs.containers.container import check_place
from modelopt_rs.containers.placing import in_place, rename_new
from modelopt_rs.containers.reading import call, read_at
from modelopt_rs.containers.system import (
    READ,
    WRITE_NEW,
    exclusive,
    forget_cached,
    open_directory,
    rename_over,
)

__all__ = ["AtomicPair", "locked"]

_TILE = 4 << 20


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
    overwrite : bool
        Whether what is at `path` may be replaced: when it is opened, and at `commit`.

    Attributes
    ----------
    model_fd, data_fd : int
        The files. They have the mode of the model that is replaced.

    Raises
    ------
    ValueError
        If `path` is a symbolic link: readers would look for the data beside the link.
    FileExistsError
        If there is something at `path`, and `overwrite` is false.
    OSError
        As `AtomicFile`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, nbytes: int = 0, durable: bool = True, overwrite: bool = True
    ) -> None:
        check_place(path, overwrite)
        if Path(path).is_symlink():
            raise ValueError(f"{os.fspath(path)}: a model with external data can't be written to a symbolic link")
        self.path = resolve(path)
        self.model_fd = self.data_fd = self._lock = -1
        self._durable, self._overwrite = durable, overwrite
        self._data = ""
        replaced = stat_regular(self.path)
        remove_stale(self.path)
        check_free(self.path, nbytes)
        self._temporary = new_temporary(self.path)
        try:
            call(self.path, os.mkdir, self._temporary)
            self._lock = call(self.path, open_directory, self._temporary)
            with suppress(OSError):
                exclusive(self._lock)
            self.model_fd = call(self.path, os.open, self.readable, WRITE_NEW, 0o666)
            self.data_fd = call(self.path, os.open, self._temporary / self._data_name(), WRITE_NEW, 0o666)
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
            forget_cached(fd)

    def commit(self) -> None:
        """Put the data in place, then the model. Needs `locked`.

        Raises
        ------
        FileExistsError
            If another file has the name of the data, or if something has appeared at `path` meanwhile, and
            `overwrite` is false.
        InPlaceError
            If both took their places, but may not be durable.
        OSError
            Of any other `path` is as it was.
        """
        try:
            for fd in (self.data_fd, self.model_fd) if self._durable else ():
                call(self.path, os.fsync, fd)
            self._rename()
        except BaseException:
            self.abort()
            raise
        with in_place(self.path):
            try:
                self._finish()  # what is left: the empty directory
            finally:
                if self._durable:
                    sync_directory(self.path.parent)

    def _rename(self) -> None:
        data = self.path.with_name(self._data)
        is_new = True
        try:
            rename_new(self._temporary / self._data, data)
        except FileExistsError:
            is_new = False
            if not _is_same(self.data_fd, data):
                message = "another file has the name of the external data"
                raise FileExistsError(errno.EEXIST, message, str(data)) from None
            call(self.path, rename_over, self._temporary / self._data, data)
        try:
            if self._durable:
                sync_directory(self.path.parent)
            if self._overwrite:
                call(self.path, rename_over, self.readable, self.path)
            else:
                rename_new(self.readable, self.path)
        except BaseException:
            if is_new:
                remove(data)
            raise

    def abort(self) -> None:
        """Remove the temporaries; `path` stays as it was. After `commit` this does nothing."""
        with suppress(OSError):  # what was written is given up
            self._finish()

    def _finish(self) -> None:
        """Remove the temporaries and close the files; OSError of the last close that failed."""
        if self._temporary.name:
            remove(self._temporary)
            forget_temporary(self._temporary)
            self._temporary = Path()
        error = None
        for name in ("model_fd", "data_fd", "_lock"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            try:
                if fd >= 0:
                    call(self.path, os.close, fd)
            except OSError as e:
                error = e
        if error is not None:
            raise error


def _is_same(fd: int, path: Path) -> bool:
    """Whether a file has the bytes of an open one."""
    try:
        other = os.open(path, READ | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        size = call(path, os.fstat, fd).st_size
        if call(path, os.fstat, other).st_size != size:
            return False
        tiles = range(0, size, _TILE)
        return all(read_at(fd, _TILE, at, path) == read_at(other, _TILE, at, path) for at in tiles)
    finally:
        call(path, os.close, other)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other writers of the package from putting models with data into a directory, or from removing data."""
    fd = call(directory, open_directory, directory)
    try:
        with suppress(OSError):  # some network file systems can't
            exclusive(fd, wait=True)
        yield
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(fd)
