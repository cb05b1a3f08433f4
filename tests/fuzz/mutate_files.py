"""Mutants of what else is read: checkpoints that are quantized, files of torch, importance matrices of llama.cpp."""

import json
import shutil
import struct
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mutate_safetensors import DTYPES, NUMBERS, Mutator, _bert

import modelopt_rs as mo

sys.path.insert(0, str(Path(__file__).parent.parent / "shared"))
from torch_samples import atom, plain, save, state, stream

__all__ = ["ImatrixMutator", "QuantizedMutator", "TorchMutator"]

FORMS: list[dict[str, Any]] = [
    {"bits": 8},
    {"bits": 4, "scheme": "asymmetric"},
    {"bits": 2, "scheme": "symmetric"},
    {"format": "fp8_e4m3"},
    {"format": "fp8_e4m3", "group_size": 128},
    {"format": "mxfp4"},
    {"format": "nvfp4"},
    {"format": "nf4"},
]


def plain_directory(path: Path) -> Path:
    """A small BERT as a directory."""
    config, shapes = _bert()
    path.mkdir()
    infos = [mo.files.TensorInfo(name, "F32", shape, 4 * int(np.prod(shape))) for name, shape in shapes.items()]
    with mo.files.SafetensorsSink(path / "model.safetensors", infos, durable=False) as sink:
        for i, info in enumerate(infos):
            sink.write(info.name, np.random.default_rng(i).standard_normal(info.shape).astype(np.float32))
        sink.commit()
    (path / "config.json").write_text(json.dumps(config))
    return path


@cache
def quantized(form: int) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The config.json, header and bytes of a model in a layout; the last one is stored as bitmasks."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = plain_directory(Path(folder) / "a"), Path(folder) / "q"
        if form == len(FORMS):
            mo.prune_file(source, out, sparsity=0.75, format="bitmask", durable=False)
        else:
            mo.quantize_file(source, out, exclude=["*layer.1.output*"], durable=False, **FORMS[form])
        whole = (out / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        return json.loads((out / "config.json").read_text()), json.loads(whole[8 : 8 + length]), whole[8 + length :]


class QuantizedMutator(Mutator):
    """Makes mutants of checkpoints in all layouts: of their headers, bytes, metadata and config.json."""

    def mutant(self, folder: Path) -> Path:
        """Write a mutant into a folder; return its path."""
        pick = self._random
        config, header, data = (
            json.loads(json.dumps(x)) if isinstance(x, dict) else x for x in quantized(self._form())
        )
        for _ in range(pick.choice((0, 1, 1, 2))):
            self._config(config)
        for _ in range(pick.choice((0, 1, 1, 2))):
            self._nested(config.get("quantization_config"))
        metadata = header.get("__metadata__", {})
        for key in list(metadata):
            if pick.random() < 0.2:
                metadata[key] = self._bytes(metadata[key].encode()).decode("utf-8", "replace")
        for _ in range(pick.choice((0, 1, 1, 2))):
            data = self._layout(header, data)
        path = folder / "checkpoint"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        text = json.dumps(header).encode()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        (path / "config.json").write_text(json.dumps(config))
        return path if pick.random() < 0.8 else path / "model.safetensors"

    def _form(self) -> int:
        return self._random.randrange(len(FORMS) + 1)

    def _nested(self, at: Any) -> None:
        """Change one value somewhere in a tree of JSON."""
        pick = self._random
        while isinstance(at, dict) and at:
            key = pick.choice(list(at))
            if not isinstance(at[key], dict) or pick.random() < 0.2:
                at[key] = pick.choice([*NUMBERS, "group", "channel", "float", ["re:("], ["Linear"], {"a": {"b": 1}}])
                return
            at = at[key]

    def _layout(self, header: dict[str, Any], data: bytes) -> bytes:
        """Change what belongs together: a part's dtype and shape with the same bytes, bytes, or a part goes."""
        pick = self._random
        names = [name for name in header if name != "__metadata__"]
        name = pick.choice(names)
        entry = header[name]
        what = pick.randrange(6)
        if what == 0:
            values = bytearray(data)
            begin, end = entry["data_offsets"]
            for _ in range(pick.choice((1, 4, 64))):
                if begin < end:
                    values[pick.randrange(begin, end)] = pick.choice((0, 1, 0x7F, 0x80, 0xFF))
            return bytes(values)
        if what == 1:
            shape = entry["shape"] if isinstance(entry["shape"], list) else []  # a mutant before may have changed it
            entry["shape"] = pick.choice([shape[::-1], [1, *shape], [int(np.prod(shape))]])
        elif what == 2:
            alike = {"F32": ("I32", "U32"), "U8": ("I8", "F8_E4M3", "F8_E8M0", "BOOL"), "F8_E4M3": ("U8", "F8_E5M2")}
            entry["dtype"] = pick.choice(alike.get(entry["dtype"], ("F16", "BF16", "I16")))
        elif what == 3:
            header[name + pick.choice(("x", "_packed", "_scale", ".absmax"))] = header.pop(name)
        elif what == 4:  # two parts change places
            other = pick.choice(names)
            header[name], header[other] = header[other], header[name]
        else:
            entry[pick.choice(("dtype", "shape"))] = pick.choice([*DTYPES, *NUMBERS])
        return data


class TorchMutator(Mutator):
    """Makes mutants of archives and streams of torch.save: of their pickles, numbers and bytes."""

    def mutant(self, folder: Path) -> Path:
        """Write a mutant into a folder; return its path."""
        pick = self._random
        rng = np.random.default_rng(pick.randrange(1000))
        names = ["fc.weight", "fc.bias", "conv.weight", "ids"]
        shapes: list[tuple[int, ...]] = [(32, 64), (32,), (8, 4, 3, 3), (7,)]
        arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in zip(names, shapes, strict=True)}
        arrays["ids"] = np.arange(7, dtype=np.int64)
        path = folder / pick.choice(("m.pt", "m.bin", "m.pth"))
        for old in folder.glob("m.*"):
            old.unlink()
        if pick.random() < 0.5:
            save(path, arrays)
        else:
            keys = {name: str(i) for i, name in enumerate(arrays)}
            body = state({name: plain(array, keys[name], atom(None)) for name, array in arrays.items()})
            stream(path, body, {keys[name]: array.reshape(-1) for name, array in arrays.items()})
        data = bytearray(path.read_bytes())
        # Few of the bytes are a pickle: these are changed more often than numbers of tensors.
        at = max(data.find(b"\x80\x02"), 0)
        for _ in range(pick.choice((0, 1, 1, 2, 4))):
            place = pick.randrange(at, min(at + 900, len(data))) if pick.random() < 0.7 else pick.randrange(len(data))
            how = pick.randrange(4)
            if how == 0:
                data[place] = pick.randrange(256)
            elif how == 1:
                data[place : place + 4] = struct.pack("<I", pick.choice((0, 1, 2**31, 2**32 - 1, 65536)))
            elif how == 2:
                del data[place : place + pick.choice((1, 4, 40))]
            else:
                data[place:place] = pick.choice(
                    (b"(" * 2000, b"\x8a\xff", b"Q", b"R", b"}", b"cos\nsystem\n", b"0", b".")
                )
        if pick.random() < 0.05:
            del data[pick.randrange(len(data)) :]
        path.write_bytes(data)
        return path


class ImatrixMutator(Mutator):
    """Makes mutants of importance matrices of llama.cpp, .dat and .gguf."""

    def mutant(self, folder: Path) -> Path:
        """Write a mutant into a folder; return its path."""
        pick = self._random
        named = {"encoder.layer.0.output.dense.weight": 64, "blk.0.ffn_down.weight": 64, "fc.weight": 32}
        if pick.random() < 0.4:
            path, data = folder / "m.dat", bytearray(_dat(named))
        else:
            path, data = folder / "m.gguf", bytearray(_gguf(named))
        for _ in range(pick.choice((0, 1, 1, 2, 4))):
            place = pick.randrange(min(len(data), 700)) if pick.random() < 0.8 else pick.randrange(len(data))
            how = pick.randrange(3)
            if how == 0:
                data[place] = pick.randrange(256)
            elif how == 1:
                wide = pick.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**40))
                data[place : place + 8] = struct.pack("<Q", wide)
            else:
                del data[place : place + pick.choice((1, 4, 40))]
        if pick.random() < 0.05:
            del data[pick.randrange(len(data)) :]
        path.write_bytes(data)
        return path


def _dat(named: dict[str, int]) -> bytes:
    parts = [struct.pack("<i", len(named))]
    for name, n in named.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", 3, n)]
        parts.append(np.random.default_rng(n).uniform(0, 2, n).astype("<f4").tobytes())
    return b"".join(parts)


def _gguf(named: dict[str, int]) -> bytes:
    """Version 3, one text beside the tensors, which have an alignment of 32 bytes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    tensors = {f"{n}.{part}": size for n, c in named.items() for part, size in (("in_sum2", c), ("counts", 1))}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    head += text("general.type") + struct.pack("<I", 8) + text("imatrix")
    data = b""
    for name, n in tensors.items():
        head += text(name) + struct.pack("<IQIQ", 1, n, 0, len(data))
        values = np.random.default_rng(n).uniform(1, 2, n).astype("<f4").tobytes()
        data += values + bytes(-len(values) % 32)
    return head + bytes(-len(head) % 32) + data
