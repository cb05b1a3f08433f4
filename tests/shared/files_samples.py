"""Files for the tests of `modelopt_rs.files`, made by hand so that they can be wrong in any way."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from modelopt_rs.files import SafetensorsSink, TensorInfo


def raw(header: bytes | str | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file; `length` is the declared one."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype: str = "U8", shape: tuple[int, ...] = (4,), begin: int = 0, end: int = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


SAMPLE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([7, -1], np.int64)}
DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8", "uint16": "BF16"}


def infos(arrays: dict[str, np.ndarray]) -> list[TensorInfo]:
    return [TensorInfo(n, DTYPES[a.dtype.name], a.shape, a.nbytes) for n, a in arrays.items()]


def save(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None, **options: Any) -> None:
    with SafetensorsSink(path, infos(arrays), metadata, **options) as sink:
        for name, array in arrays.items():
            sink.write(name, array)
        sink.commit()


def left_over(folder: Path) -> list[str]:
    """Names of temporaries in a folder."""
    return [file.name for file in folder.iterdir() if ".modelopt-" in file.name]
