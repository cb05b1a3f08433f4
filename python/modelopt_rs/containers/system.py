"""What only some systems can do, and what is done where they can't: the one place that asks which system this is.

Linux has files without a name (`O_TMPFILE`), `/proc`, and locks of files; macOS has no first two, Windows none of them,
nor reads at a place, nor directories that can be opened. Where a lock is missing, a temporary is told from a stale one
by its process alone; where directories can't be synced, the system does so itself. What has no way is an error.
"""

import errno
import os
import shutil
import stat
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "READ",
    "WRITE_NEW",
    "descriptor_path",
    "exclusive",
    "forget_cached",
    "free_bytes",
    "give_name",
    "is_alive",
    "keep_owner_and_mode",
    "open_beneath",
    "open_directory",
    "open_unnamed",
    "read_at_place",
    "read_place",
    "rename_over",
    "renames_open_files",
    "write_at_place",
]


def _flags(*names: str) -> int:
    """Return those flags of `os.open` that this system has."""
    made = getattr(os, "O_BINARY", 0)
    for name in names:
        made |= getattr(os, name, 0)
    return made


READ: Final = os.O_RDONLY | _flags("O_NONBLOCK", "O_CLOEXEC")
WRITE_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | _flags("O_CLOEXEC")
_DIRECTORY: Final = os.O_RDONLY | _flags("O_DIRECTORY", "O_CLOEXEC")
_BENEATH: Final = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
_seeking: Final = threading.Lock()


def descriptor_path(fd: int) -> Path | None:
    """Return a path at which this process can open what a descriptor has open; None where there is none."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        if Path(folder).is_dir():
            return Path(folder, str(fd))
    return None


def open_unnamed(directory: Path) -> int | None:
    """Open a new file without a name; None where the system or the file system can't give it one in the end."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    with suppress(OSError):  # EOPNOTSUPP, EISDIR, EINVAL: not on this file system
        return os.open(directory, os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE, 0o666)
    return None


def give_name(fd: int, path: Path) -> None:
    """Give a file of `open_unnamed` its name; FileExistsError if there is something."""
    # The directory fd doesn't matter beside an absolute path, but without one os.link calls link(), which
    # does not follow the symbolic link in /proc.
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def exclusive(fd: int, *, wait: bool = False) -> bool:
    """Lock an open file or directory, for this process alone; return whether this system can.

    Raises
    ------
    BlockingIOError
        If somebody else has it, and `wait` is false.
    OSError
        If its file system has no locks.
    """
    if fcntl is None:
        return False
    fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    return True


def open_directory(path: Path) -> int:
    """Open a directory; -1 where that can't be done."""
    return os.open(path, _DIRECTORY) if hasattr(os, "O_DIRECTORY") else -1


def read_at_place(fd: int, buffer: Any, offset: int) -> int:
    """Fill a buffer with the bytes from `offset` on, and return how many came."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    data = read_place(fd, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


def read_place(fd: int, nbytes: int, offset: int) -> bytes:
    """Return at most so many bytes from `offset` on."""
    if hasattr(os, "pread"):
        return os.pread(fd, nbytes, offset)
    with _seeking:  # a descriptor has one place
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, nbytes)


def write_at_place(fd: int, data: Any, offset: int) -> int:
    """Write bytes at `offset`, and return how many went."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def forget_cached(fd: int) -> None:
    """Let the next read of a file come from the disk, where the system takes such a hint."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def free_bytes(directory: Path) -> int:
    """Return how many bytes the file system of a directory has room for."""
    if hasattr(os, "statvfs"):
        info = os.statvfs(directory)
        return info.f_bavail * info.f_frsize
    return shutil.disk_usage(directory).free


def keep_owner_and_mode(fd: int, replaced: os.stat_result) -> None:
    """Give a new file the owner and the mode of the one that it will replace, as far as the system has them."""
    # Only root may give files away; the mode comes second because chown clears the setuid bit.
    if hasattr(os, "fchown"):
        with suppress(PermissionError):
            os.fchown(fd, replaced.st_uid, replaced.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(fd, stat.S_IMODE(replaced.st_mode))


def renames_open_files() -> bool:
    """Whether a file can get another name while it is open."""
    return sys.platform != "win32"


def rename_over(temporary: Path, path: Path) -> None:
    """Put a file in the place of another at once."""
    if sys.platform == "win32":
        os.replace(temporary, path)  # noqa: PTH105
    else:
        os.rename(temporary, path)  # noqa: PTH104


def is_alive(pid: int) -> bool:
    """Whether there is a process; true where that can't be asked without harm."""
    if sys.platform == "win32":  # where os.kill ends it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def open_beneath(directory: Path, parts: Sequence[str]) -> int:
    """Open a file below a directory without following a link on the way."""
    if not _BENEATH:
        return _open_checked(directory, parts)
    walk = READ | os.O_NOFOLLOW
    at = os.open(directory, _DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, walk | _DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        return os.open(parts[-1], walk, dir_fd=at)
    finally:
        os.close(at)


def _open_checked(directory: Path, parts: Sequence[str]) -> int:
    """Open a file after a look at each name on its way: what changes between the look and the opening goes unseen."""
    at = directory
    for part in parts:
        at = at / part
        info = at.lstat()
        is_junction = bool(getattr(info, "st_file_attributes", 0) & 0x400)  # FILE_ATTRIBUTE_REPARSE_POINT
        if stat.S_ISLNK(info.st_mode) or is_junction:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(at))
    return os.open(at, READ)
