"""The wire format of ONNX files (protocol buffers), walked so that no weights come into memory.

`scan` returns the file without the bytes of large tensors: in the place of each stands an entry of external data
that says where in the file they are. What is left, the skeleton, is small, and protobuf's own parser reads it.
Fields of less than `LAZY_BYTES` are kept whole and left to that parser.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelopt_rs._core import FormatError, LimitError, UnsupportedError
from modelopt_rs.containers.system import read_place

__all__ = ["LAZY_BYTES", "MAX_DEPTH", "NO_SPARSE", "Payload", "Skeleton", "field", "scan", "varint"]

LAZY_BYTES: Final = 1024
"""Tensors of so many bytes or more stay in the file until they are asked for."""
NO_SPARSE: Final = "sparse tensors are not supported; store them as dense initializers (onnx.numpy_helper.from_array)"
MAX_DEPTH: Final = 64  # messages within messages; protobuf's own parser stops at 100

_WINDOW = 64 << 10
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_GROUPS = (3, 4)

_GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _DROPPED = range(6)
# By message: the fields to look into, and what they are. All others are kept as they stand.
_FIELDS: Final[dict[int | None, dict[int, int]]] = {
    None: {7: _GRAPH, 20: _DROPPED},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
}
_COUNTED = (_NODE, _TENSOR)
# Fields of a tensor whose bytes are those of its elements: float_data, raw_data, double_data.
_PAYLOADS = (4, 9, 10)
_EXTERNAL_DATA, _DATA_LOCATION, _IS_EXTERNAL = 13, 14, 1


@dataclass(frozen=True, slots=True)
class Payload:
    """The bytes of one tensor in the file, and the number of the field that they are."""

    offset: int
    nbytes: int
    number: int


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model without the bytes of its large tensors.

    Attributes
    ----------
    data : bytes
        The model. The location of a tensor that was taken out is `token`, a colon, and an index into `payloads`.
    token : str
        What no location of the file's own begins with.
    payloads : tuple of Payload
    """

    data: bytes
    token: str
    payloads: tuple[Payload, ...]


def varint(value: int) -> bytes:
    """Return a number as the wire format writes it.

    Examples
    --------
    >>> from modelopt_rs.containers.onnx.wire import varint
    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, body: bytes) -> bytes:
    """Return a field that is bytes, text, or a message."""
    return varint(number << 3 | _LEN) + varint(len(body)) + body


def scan(fd: int, path: Path, *, max_header: int, max_tensors: int) -> Skeleton:
    """Walk an ONNX file and return it without the bytes of its large tensors.

    Parameters
    ----------
    fd : int
        The file.
    path : Path
        How errors call it.
    max_header : int
        The largest skeleton to accept, in bytes.
    max_tensors : int
        The most tensors, and the most nodes, to accept.

    Raises
    ------
    FormatError
        If it isn't the wire format. `LimitError`: it is over a limit. `UnsupportedError`: it has sparse tensors.
    """
    return _Scanner(fd, path, max_header, max_tensors).run()


class _Scanner:
    def __init__(self, fd: int, path: Path, max_header: int, max_tensors: int) -> None:
        self._fd = fd
        self._path = path
        self._max_header = max_header
        self._max_tensors = max_tensors
        self._size = os.fstat(fd).st_size
        self._kept = 0  # bytes of the skeleton so far
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._payloads: list[Payload] = []
        self._token = "\0" + os.urandom(16).hex()
        self._window = b""
        self._window_at = 0

    def run(self) -> Skeleton:
        if self._size == 0:
            raise FormatError(f"{self._path}: the file is empty")
        parts = self._message(None, 0, self._size, 1)
        return Skeleton(b"".join(parts), self._token, tuple(self._payloads))

    def _message(self, kind: int | None, begin: int, end: int, depth: int) -> list[bytes]:
        """Return a message without the bytes of large tensors in it, in pieces."""
        if depth > MAX_DEPTH:
            raise self._error(begin, f"messages nest deeper than {MAX_DEPTH}")
        fields = _FIELDS[kind]
        parts: list[bytes] = []
        unwritten = at = begin
        while at < end:
            start = at
            number, wire, value, at = self._field(at, end)
            child = fields.get(number)
            if child is None:
                self._check_limit(at - unwritten)
                continue
            if wire != _LEN:
                raise self._error(start, f"field {number} has wire type {wire}, not {_LEN}")
            if child == _SPARSE:
                raise UnsupportedError(f"{self._path}: byte {start:,}: {NO_SPARSE}")
            self._count(child, start)
            if child != _DROPPED and at - value < LAZY_BYTES:
                continue
            parts.append(self._keep(unwritten, start))
            if child != _DROPPED:
                into = self._tensor if child == _TENSOR else self._message
                inner = into(child, value, at, depth + 1)
                parts.append(varint(number << 3 | _LEN) + varint(sum(map(len, inner))))
                parts += inner
            unwritten = at
        parts.append(self._keep(unwritten, end))
        return parts

    def _tensor(self, kind: int, begin: int, end: int, depth: int) -> list[bytes]:
        """Return a tensor; if it has many bytes in one field, then where they stand instead of them."""
        payload = None
        is_external = False
        parts = []
        unwritten = at = begin
        while at < end:
            start = at
            number, wire, value, at = self._field(at, end)
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and wire == _VARINT and value == _IS_EXTERNAL):
                is_external = True
            if number not in _PAYLOADS or wire != _LEN or at - value < LAZY_BYTES:
                self._check_limit(at - unwritten)
                continue
            if payload is not None:
                raise UnsupportedError(f"{self._path}: byte {start:,}: a tensor's data stand in two pieces")
            payload = Payload(value, at - value, number)
            parts.append(self._keep(unwritten, start))
            unwritten = at
        parts.append(self._keep(unwritten, end))
        if payload is not None:
            if is_external:
                raise self._error(begin, "a tensor has data of its own and external data")
            parts.append(self._marker(payload))
        return parts

    def _marker(self, payload: Payload) -> bytes:
        location = f"{self._token}:{len(self._payloads)}"
        self._payloads.append(payload)
        entry = field(1, b"location") + field(2, location.encode())
        return field(_EXTERNAL_DATA, entry) + varint(_DATA_LOCATION << 3 | _VARINT) + varint(_IS_EXTERNAL)

    def _field(self, at: int, end: int) -> tuple[int, int, int, int]:
        """Return the number of the field at `at`, its wire type, its value or where that begins, and its end."""
        start = at
        tag, at = self._varint(at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag >> 32:
            raise self._error(start, f"{number} can't be the number of a field")
        if wire == _VARINT:
            value, at = self._varint(at, end)
            return number, wire, value, at
        if wire == _LEN:
            length, at = self._varint(at, end)
        elif wire in (_I64, _I32):
            length = 8 if wire == _I64 else 4
        else:
            what = "groups are not supported" if wire in _GROUPS else f"unknown wire type {wire}"
            raise self._error(start, f"field {number}: {what}")
        if length > end - at:
            cut = "; was the file cut short?" if end == self._size else ""
            raise self._error(start, f"field {number} has {length:,} bytes, {end - at:,} are left{cut}")
        return number, wire, at, at + length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return the number that begins at `at`, and where it ends."""
        i = at - self._window_at
        if not 0 <= i <= len(self._window) - 10:
            self._load(at)
            i = 0
        value = shift = 0
        for byte in self._window[i : i + min(10, end - at)]:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at + shift // 7
        raise self._error(at, "a number is longer than 64 bits" if end - at >= 10 else "the message ends in a number")

    def _load(self, at: int) -> None:
        self._window, self._window_at = self._read(at, min(_WINDOW, self._size - at)), at

    def _read(self, at: int, nbytes: int) -> bytes:
        parts = []
        while nbytes:
            try:
                part = read_place(self._fd, nbytes, at)
            except OSError as e:
                raise OSError(e.errno, e.strerror, str(self._path)) from e
            if not part:
                raise FormatError(f"{self._path}: file shrank while reading")
            parts.append(part)
            at, nbytes = at + len(part), nbytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _keep(self, begin: int, end: int) -> bytes:
        """Return bytes of the file, which become part of the skeleton."""
        self._check_limit(end - begin)
        self._kept += end - begin
        i = begin - self._window_at
        if i >= 0 and end - self._window_at <= len(self._window):
            return self._window[i : i + end - begin]
        return self._read(begin, end - begin)

    def _check_limit(self, more: int) -> None:
        if self._kept + more > self._max_header:
            raise LimitError(
                f"{self._path}: the graph without its large tensors exceeds max_header={self._max_header:,} bytes"
            )

    def _count(self, kind: int, at: int) -> None:
        if kind in self._counts:
            self._counts[kind] += 1
            if self._counts[kind] > self._max_tensors:
                what = "tensors" if kind == _TENSOR else "nodes"
                raise LimitError(f"{self._path}: byte {at:,}: more than max_tensors={self._max_tensors:,} {what}")

    def _error(self, at: int, what: str) -> FormatError:
        return FormatError(f"{self._path}: byte {at:,}: {what}")
