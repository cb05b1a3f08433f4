"""Files of torch.save, assembled by hand so that they can be wrong in any way; torch is not needed."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
TYPES = {
    "<f4": "FloatStorage",
    "<f8": "DoubleStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
    "|b1": "BoolStorage",
    "<u2": "BFloat16Storage",  # the bits
}


def atom(value: Any) -> bytes:
    """The instructions that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def whole(body: bytes) -> bytes:
    """A pickle whose value the instructions leave on the stack."""
    return b"\x80\x02" + body + b"."


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def row(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + row(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(atom(key) + value for key, value in items.items()) + b"u"


def state(items: dict[str, bytes]) -> bytes:
    """An OrderedDict as the state dict of a module is one."""
    body = b"".join(atom(key) + value for key, value in items.items())
    return named("collections", "OrderedDict") + b")R(" + body + b"u" + atom({"_metadata": {}}) + b"b"


def storage(kind: str, key: str, elements: int, *view: bytes, module: str = "torch") -> bytes:
    return row(atom("storage"), named(module, kind), atom(key), atom("cpu"), atom(elements), *view) + b"Q"


def tensor(of: bytes, shape: Any, strides: Any, offset: Any = 0) -> bytes:
    hooks = named("collections", "OrderedDict") + b")R"
    return called("torch._utils", "_rebuild_tensor_v2", of, atom(offset), atom(shape), atom(strides), b"\x89", hooks)


def plain(array: np.ndarray, key: str, *view: bytes) -> bytes:
    """A tensor that has a storage of its own."""
    strides = tuple(n // array.itemsize for n in array.strides)
    return tensor(storage(TYPES[array.dtype.str], key, array.size, *view), array.shape, strides)


def archive(path: Path, body: bytes, data: dict[str, bytes], **options: Any) -> Path:
    """An archive as torch.save writes it, of one pickle and storages."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("model/data.pkl", whole(body))
        file.writestr("model/byteorder", "little")
        for key, content in data.items():
            file.writestr(f"model/data/{key}", content)
        file.writestr("model/version", "3\n")
    return path


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A state dict in an archive."""
    keys = {name: str(i) for i, name in enumerate(arrays)}
    body = state({name: plain(array, keys[name]) for name, array in arrays.items()})
    return archive(path, body, {keys[name]: array.tobytes() for name, array in arrays.items()})


def stream(path: Path, body: bytes, data: dict[str, np.ndarray], little: bool = True) -> Path:
    """A file of torch.save before version 1.6."""
    heads = [pickle.dumps(each, 2) for each in (MAGIC, 1001, {"little_endian": little})]
    tail = [struct.pack("<q", array.size) + array.tobytes() for array in data.values()]
    path.write_bytes(b"".join([*heads, whole(body), pickle.dumps(list(data), 2), *tail]))
    return path
