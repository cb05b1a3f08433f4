"""Files of NumPy with samples: read as numbers only, and no array is made for more than a file has."""

import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.containers.reading import open_regular
from modelopt_rs.errors import FormatError, quote

__all__ = ["read_npy", "read_npz"]

_PROBLEMS: Final = (
    *(AttributeError, EOFError, TypeError, ValueError, SyntaxError, tokenize.TokenError),  # of NumPy
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error),  # of archives
)
_MOST: Final = 1032  # bytes that one compressed byte can become


def read_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read the arrays of an .npz file by name; never runs what a file may have pickled.

    Raises
    ------
    FormatError
        If it is no such file, or has not what it declares.
    OSError
        If it can't be opened.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from modelopt_rs.containers.numpy_files import read_npz
    >>> with tempfile.TemporaryDirectory() as d:
    ...     np.savez(f"{d}/data.npz", x=np.zeros((2, 3)))
    ...     read_npz(f"{d}/data.npz")["x"].shape
    (2, 3)
    """

    def read(file: IO[bytes], size: int) -> dict[str, Array]:
        # Else NumPy would take it for something pickled, and say so.
        if file.read(2) != b"PK":
            raise FormatError(f"{os.fspath(path)}: not an .npz file of arrays, such as np.savez writes")
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as opened:
                    _check(opened, min(member.file_size, member.compress_size * _MOST, size * _MOST), member.filename)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    arrays: dict[str, Array] = _read(path, "an .npz file of arrays", read)
    return arrays


def read_npy(path: str | os.PathLike[str]) -> Array:
    """Read the array of an .npy file, as `read_npz`."""

    def read(file: IO[bytes], size: int) -> Array:
        _check(file, size, "")
        file.seek(0)
        return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]

    array: Array = _read(path, "an .npy file of an array", read)
    return array


def _read(path: str | os.PathLike[str], what: str, read: Callable[[IO[bytes], int], Any]) -> Any:
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            return read(file, os.fstat(file.fileno()).st_size)
        except FormatError:  # which is a ValueError, too
            raise
        except _PROBLEMS as error:
            raise FormatError(f"{os.fspath(path)}: not {what}: {quote(str(error))}") from error


def _check(file: IO[bytes], size: int, name: str) -> None:
    """Refuse an array that declares more bytes than there are."""
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:  # none of NumPy's: no number in it says how large it is
        return
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    array = f"{name.removesuffix('.npy')} ".lstrip()
    if dtype.hasobject:
        raise ValueError(f"{array}has Python objects, which are never unpickled; save strings as array.astype(str)")
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= int(n)
    size -= file.tell()
    if nbytes > size:
        raise ValueError(f"{array}declares {nbytes:,} bytes and has {size:,} at most")
