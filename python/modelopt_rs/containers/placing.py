"""Names put in place by one system call: one that replaces nothing, and one that exchanges."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelopt_rs.containers.reading import call
from modelopt_rs.errors import InPlaceError

__all__ = ["exchange", "exists", "in_place", "rename_new"]

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # of a kernel or a file system without such renames


def _renameat2(a: Path, b: Path, flags: int) -> int:
    """Rename as the flags say; return 0 or an errno."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return errno.ENOSYS
    done = rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), flags)
    return 0 if done == 0 else ctypes.get_errno()


def exchange(a: Path, b: Path) -> bool:
    """Exchange two directories at once; False where the system can't."""
    return _renameat2(a, b, _RENAME_EXCHANGE) == 0


def exists(path: Path) -> FileExistsError:
    """Return the error of a destination that is there and may not be replaced."""
    message = "the file exists; pass overwrite=True (--overwrite) to replace it"
    return FileExistsError(errno.EEXIST, message, str(path))


def rename_new(temporary: Path, path: Path) -> None:
    """Rename a file or a directory unless there is something at `path`; of several that race for it one wins.

    Raises
    ------
    FileExistsError
        If there is something.
    OSError
        Whatever else the file system says; it names `path`.
    """
    code = _renameat2(temporary, path, _RENAME_NOREPLACE)
    if code in _NOT_HERE and not temporary.is_dir():
        try:
            call(path, os.link, temporary, path)  # never replaces, either
        except FileExistsError:
            raise exists(path) from None
        call(path, os.unlink, temporary)
    elif code in _NOT_HERE:
        try:
            call(path, os.rename, temporary, path)  # of directories: replaces an empty one at most
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise exists(path) from None
    elif code == errno.EEXIST:
        raise exists(path)
    elif code:
        raise OSError(code, os.strerror(code), str(path))


@contextmanager
def in_place(path: Path) -> Iterator[None]:
    """Say of an error that comes after the rename that the file is there all the same."""
    try:
        yield
    except OSError as e:
        raise InPlaceError(e.errno, f"is in place, but may not be durable: {e.strerror}", str(path)) from e
