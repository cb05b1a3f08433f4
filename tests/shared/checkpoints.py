"""Model files for the tests of the pipeline and the command line, written and read without the package."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

NUMPY = {
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "F8_E8M0": np.uint8,
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "BOOL": "?",
}
Tensors = dict[str, tuple[str, np.ndarray]]


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Reproducible values on every NumPy: integers of a linear congruence, as numbers of about -1 to 1."""
    n = int(np.prod(shape))
    state = (np.arange(n, dtype=np.uint64) + np.uint64(1000003 * seed + 1)) * np.uint64(6364136223846793005)
    return ((state >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32).reshape(shape)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The bits of float32 values cut to bfloat16."""
    return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for dtype, array in tensors.values():
            file.write(np.ascontiguousarray(array).astype(NUMPY[dtype], copy=False).tobytes())
    return path


def read(path: Path) -> Tensors:
    """Read a safetensors file."""
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        array = np.frombuffer(data[8 + n + begin : 8 + n + end], NUMPY[info["dtype"]])
        tensors[name] = (info["dtype"], array.reshape(info["shape"]))
    return tensors


def metadata(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]).get("__metadata__", {})


def bert(dtype: str = "F32") -> Tensors:
    """A small model with one of each kind of tensor."""

    def of(shape: tuple[int, ...], seed: int) -> tuple[str, np.ndarray]:
        x = weights(shape, seed)
        return dtype, to_bf16(x) if dtype == "BF16" else x.astype(NUMPY[dtype])

    return {
        "embeddings.word_embeddings.weight": of((50, 64), 1),
        "embeddings.LayerNorm.weight": of((64,), 2),
        "embeddings.position_ids": ("I64", np.arange(16, dtype=np.int64).reshape(1, 16)),
        "encoder.layer.0.attention.self.query.weight": of((64, 64), 3),
        "encoder.layer.0.attention.self.query.bias": of((64,), 4),
        "encoder.layer.0.output.dense.weight": of((64, 128), 5),
        "classifier.weight": of((3, 64), 6),
    }


LINEAR = ("encoder.layer.0.attention.self.query.weight", "encoder.layer.0.output.dense.weight")


def directory(path: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> Path:
    """Write a Hugging Face directory with files that must come along."""
    (path / "1_Pooling").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config or {"model_type": "bert"}))
    (path / "tokenizer.json").write_text("{}")
    (path / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    write(path / "model.safetensors", tensors, {"format": "pt"})
    return path


def sharded(path: Path, tensors: Tensors) -> Path:
    """Write a checkpoint of two shards and their index."""
    path.mkdir()
    names = list(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for shard, inside in shards.items():
        write(path / shard, {name: tensors[name] for name in inside}, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(array.nbytes for _, array in tensors.values())},
        "weight_map": {name: shard for shard, inside in shards.items() for name in inside},
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text('{"model_type": "bert"}')
    return path


def codes(words: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """The unsigned codes of rows of int32 words, the first in the lowest bits (compressed-tensors)."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    every = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    every = every.reshape(len(words), -1)
    assert not every[:, columns:].any(), "padding must be zero"
    return every[:, :columns].astype(np.int64)


def dense(tensors: Tensors, name: str, bits: int) -> np.ndarray:
    """What a loader of the pack-quantized layout makes of a weight: (q - zero_point) * scale in the scales' dtype."""
    rows, columns = (int(n) for n in tensors[f"{name}_shape"][1])
    q = codes(tensors[f"{name}_packed"][1], bits, columns)
    stored, scale = tensors[f"{name}_scale"]
    scale = from_bf16(scale) if stored == "BF16" else scale.astype(np.float32)
    zero = np.full(scale.shape, 2 ** (bits - 1))
    if f"{name}_zero_point" in tensors:
        zero = codes(np.ascontiguousarray(tensors[f"{name}_zero_point"][1].T), bits, rows).T
    group = columns // scale.shape[1]
    return rounded((q - np.repeat(zero, group, 1)).astype(np.float32) * np.repeat(scale, group, 1), stored)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Finite float32 numbers rounded to a dtype of files, half to even."""
    if dtype != "BF16":
        return array.astype("f2" if dtype == "F16" else "f4").astype("f4")
    bits = array.view(np.uint32)
    return from_bf16((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16))


def files_of(path: Path) -> dict[str, bytes]:
    """Every file under a directory, with its bytes."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
