"""The float32 tensors of a GGUF file, as importance matrices of llama.cpp are stored; read strictly."""

import math
import struct
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelopt_rs.containers.reading import read_file
from modelopt_rs.errors import FormatError, UnsupportedError, quote

__all__ = ["MAX_STATISTICS", "read_gguf"]

MAX_STATISTICS: Final = 4 << 30
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_FLOAT32: Final = 0
_ALIGNMENTS: Final = tuple(1 << i for i in range(21))
_MAX_DIMS, _MAX_NAME = 4, 1 << 16


class _Cursor:
    """Takes values off the front; none is taken for there that isn't."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def wrong(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: malformed GGUF at byte {self.at:,}: {what}")

    def number(self, form: str) -> int:
        self.need(struct.calcsize(form))
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def need(self, nbytes: int) -> None:
        left = len(self.data) - self.at
        if nbytes > left:
            raise self.wrong(f"{nbytes:,} bytes are wanted, {left:,} are left")

    def skip(self, nbytes: int) -> None:
        self.need(nbytes)
        self.at += nbytes

    def count(self, least: int) -> int:
        """Take a number of records, of so many bytes at least."""
        value = self.number("Q")
        self.need(value * least)
        return value

    def text(self) -> str:
        length = self.number("Q")
        if length > _MAX_NAME:
            raise self.wrong(f"a name of {length:,} bytes")
        self.need(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.wrong("a name is not UTF-8") from None


def read_gguf(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of float32 by name, flat; others are left out.

    Raises
    ------
    FormatError
        If the file is malformed. `UnsupportedError`: another version, or nested arrays.
    """
    cursor = _Cursor(path, read_file(path, MAX_STATISTICS))
    if cursor.data[:4] != b"GGUF":
        raise cursor.wrong("it does not begin with GGUF")
    cursor.skip(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise UnsupportedError(f"{path}: GGUF of version {version:,} is not supported, only 2 and 3")
    tensors, values = cursor.count(24), cursor.count(12)
    alignment = _alignment(cursor, values)
    places = _places(cursor, tensors)
    begin = -(-cursor.at // alignment) * alignment
    found = {}
    for name, (size, offset) in places.items():
        if offset % alignment or begin + offset + 4 * size > len(cursor.data):
            raise cursor.wrong(f"tensor {quote(name)} reaches beyond the file, or is not aligned")
        found[name] = np.frombuffer(cursor.data, "<f4", size, begin + offset)
    return found


def _alignment(cursor: _Cursor, count: int) -> int:
    """Pass over the values beside the tensors; return the one that counts here."""
    alignment = 32
    for _ in range(count):
        name, kind = cursor.text(), cursor.number("I")
        if name == "general.alignment" and kind == _UINT32:
            alignment = cursor.number("I")
            if alignment not in _ALIGNMENTS:
                raise cursor.wrong(f"alignment {alignment:,} is no power of two up to 1 MiB")
        else:
            _pass(cursor, kind)
    return alignment


def _pass(cursor: _Cursor, kind: int) -> None:
    count = 1
    if kind == _ARRAY:
        kind = cursor.number("I")
        if kind == _ARRAY:
            raise UnsupportedError(f"{cursor.path}: GGUF with arrays in arrays is not supported")
        count = cursor.count(_SIZES.get(kind, 8))
    if kind == _STRING:
        for _ in range(count):
            cursor.skip(cursor.number("Q"))
    elif kind in _SIZES:
        cursor.skip(count * _SIZES[kind])
    else:
        raise cursor.wrong(f"a value of kind {kind:,}")


def _places(cursor: _Cursor, count: int) -> dict[str, tuple[int, int]]:
    """Return of each tensor of float32 its elements, and where they begin behind the header."""
    places: dict[str, tuple[int, int]] = {}
    names: set[str] = set()
    for _ in range(count):
        name, dims = cursor.text(), cursor.number("I")
        if name in names or dims > _MAX_DIMS:
            raise cursor.wrong(f"tensor {quote(name)} is there twice" if name in names else f"{dims:,} axes")
        names.add(name)
        size = math.prod(cursor.number("Q") for _ in range(dims))
        kind, offset = cursor.number("I"), cursor.number("Q")
        if kind == _FLOAT32:
            places[name] = (size, offset)
    return places
