"""Zip archives whose members are stored as they are: where each lies in the file, checked before any is read."""

import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from modelopt_rs.containers.reading import call, read_at
from modelopt_rs.errors import FormatError, LimitError, UnsupportedError, quote

__all__ = ["ZIP_BEGIN", "Member", "stored_members"]

ZIP_BEGIN: Final = b"PK\x03\x04"
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_LONGEST_END = 22 + 0xFFFF  # the last record and its comment


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive: its bytes are those of the file from `begin` to `end`."""

    name: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.end - self.begin


def stored_members(fd: int, path: Path, *, max_header: int, max_tensors: int) -> dict[str, Member]:
    """Return the members of an archive by name, in the order of its directory.

    Raises
    ------
    FormatError
        If it is no zip archive, two members have one name or lie over each other, or one reaches beyond the file.
        `LimitError`: the directory is over a limit. `UnsupportedError`: a member is compressed or encrypted.
    """
    size = call(path, os.fstat, fd).st_size
    count, nbytes, begin = _directory(fd, size, path)
    if nbytes > max_header:
        raise LimitError(f"{path}: directory of the archive of {nbytes:,} bytes exceeds max_header={max_header:,}")
    if count > max_tensors:
        raise LimitError(f"{path}: {count:,} members of the archive exceed max_tensors={max_tensors:,}")
    if begin + nbytes > size:
        raise FormatError(f"{path}: the directory of the archive ends at {begin + nbytes:,} of {size:,} bytes")
    text = read_at(fd, nbytes, begin, path)
    members: dict[str, Member] = {}
    spans = []
    at = 0
    for _ in range(count):
        name, at, local, length = _entry(text, at, path)
        if name in members:
            raise FormatError(f"{path}: two members of the archive are named {quote(name)}")
        data = _data_begin(fd, local, name, path)
        if data + length > begin:
            raise FormatError(f"{path}: member {quote(name)} of {length:,} bytes reaches beyond the archive's data")
        members[name] = Member(name, data, data + length)
        spans.append((local, data + length, name))
    spans.sort()
    for (_, end, one), (other_begin, _, other) in pairwise(spans):
        if other_begin < end:
            raise FormatError(f"{path}: members {quote(one)} and {quote(other)} lie over each other")
    return members


def _directory(fd: int, size: int, path: Path) -> tuple[int, int, int]:
    """Return how many entries the directory has, its bytes, and where it begins."""
    base = max(0, size - _LONGEST_END)
    tail = read_at(fd, size - base, base, path)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise FormatError(f"{path}: the zip archive has no end: it is cut short, or something follows it")
    *disks, count, nbytes, begin = struct.unpack_from("<4H2I", tail, at + 4)[:6]
    if disks[0] not in (0, 0xFFFF):
        raise UnsupportedError(f"{path}: is a part of a zip archive of several files")
    if count != 0xFFFF and 0xFFFFFFFF not in (nbytes, begin):
        return count, nbytes, begin
    locator = read_at(fd, 20, base + at - 20, path) if base + at >= 20 else b""
    if locator[:4] != _LOCATOR:
        return count, nbytes, begin
    record = read_at(fd, 56, struct.unpack_from("<Q", locator, 8)[0] & (1 << 63) - 1, path)
    if len(record) < 56 or record[:4] != _END64:
        raise FormatError(f"{path}: the zip archive's 64-bit end is not where its locator says")
    count, nbytes, begin = struct.unpack_from("<3Q", record, 32)
    return count, nbytes, begin


def _entry(text: bytes, at: int, path: Path) -> tuple[str, int, int, int]:
    """Return of an entry of the directory its name, where the next begins, its local header and its bytes."""
    if len(text) - at < _ENTRY.size or text[at : at + 4] != b"PK\x01\x02":
        raise FormatError(f"{path}: the directory of the archive is damaged after {at:,} bytes")
    fields = _ENTRY.unpack_from(text, at)
    flags, method, packed, length = fields[3], fields[4], fields[8], fields[9]
    name_len, extra_len, comment_len, disk, local = *fields[10:14], fields[16]
    begin = at + _ENTRY.size
    end = begin + name_len + extra_len + comment_len
    if end > len(text):
        raise FormatError(f"{path}: the directory of the archive is damaged after {at:,} bytes")
    name = text[begin : begin + name_len].decode("utf-8", "backslashreplace")
    length, packed, local = _wide(text[begin + name_len : end - comment_len], (length, packed, local))
    if flags & 1:
        raise UnsupportedError(f"{path}: member {quote(name)} is encrypted")
    if method and "/code/" in name:
        fix = "save the state_dict() of the module, or export it to ONNX"
        raise UnsupportedError(f"{path}: is a TorchScript archive, whose code is not read; {fix}")
    if method or packed != length:
        raise UnsupportedError(f"{path}: member {quote(name)} is compressed; pack the archive without compression")
    if disk not in (0, 0xFFFF) or max(length, local) >> 63:
        raise FormatError(f"{path}: member {quote(name)} lies outside of the file")
    return name, end, local, length


def _wide(extra: bytes, narrow: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return sizes and offset with those that are 64 bits wide from an entry's extra fields."""
    at = 0
    while len(extra) - at >= 4:
        kind, nbytes = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + nbytes]
            values = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            a, b, c = (next(values, each) if each == 0xFFFFFFFF else each for each in narrow)
            return a, b, c
        at += 4 + nbytes
    return narrow


def _data_begin(fd: int, local: int, name: str, path: Path) -> int:
    """Return where a member's bytes begin: after its local header."""
    header = read_at(fd, _LOCAL.size, local, path)
    if len(header) < _LOCAL.size or header[:4] != ZIP_BEGIN:
        raise FormatError(f"{path}: member {quote(name)} has no header where the archive's directory says")
    name_len, extra_len = _LOCAL.unpack(header)[-2:]
    return int(local + _LOCAL.size + name_len + extra_len)
