"""Mutants of safetensors files and of checkpoint directories: headers, offsets, bytes, config.json, indices."""

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    3,
    7,
    15,
    31,
    32,
    33,
    64,
    255,
    1 << 31,
    (1 << 53) + 1,
    1 << 63,
    (1 << 64) - 1,
    1 << 70,
]
NUMBERS += [0.5, float("1e30"), True, None, "4", [], [1], {}, "\ud800", "x" * 300]
DTYPES = ["F32", "F16", "BF16", "F64", "I64", "I32", "U8", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "X", "", 7, None]


def _bert() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    hidden, inner = 32, 64
    shapes = {"embeddings.word_embeddings.weight": (40, hidden), "embeddings.position_embeddings.weight": (16, hidden)}
    for name in ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"):
        shapes[name] = (hidden,)
    for i in range(2):
        at = f"encoder.layer.{i}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"{at}.{part}.weight"], shapes[f"{at}.{part}.bias"] = (hidden, hidden), (hidden,)
        shapes[f"{at}.intermediate.dense.weight"], shapes[f"{at}.intermediate.dense.bias"] = (inner, hidden), (inner,)
        shapes[f"{at}.output.dense.weight"], shapes[f"{at}.output.dense.bias"] = (hidden, inner), (hidden,)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{at}.{norm}.weight"] = shapes[f"{at}.{norm}.bias"] = (hidden,)
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_attention_heads": 4}
    config |= {"intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 40, "max_position_embeddings": 16}
    return config, shapes


def _llama() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    shapes = {"model.embed_tokens.weight": (40, 32), "model.norm.weight": (32,), "lm_head.weight": (40, 32)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (32 if part in "qo" else 16, 32) for part in "qkvo"}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (64, 32) for part in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (32, 64)}
        shapes |= {f"{at}.{norm}_layernorm.weight": (32,) for norm in ("input", "post_attention")}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "head_dim": 8}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    return config | {"vocab_size": 40, "tie_word_embeddings": False}, shapes


def _header(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        nbytes = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    return header, np.random.default_rng(0).standard_normal(end // 4).astype(np.float32).tobytes()


class Mutator:
    """Makes mutants of files and directories; the same seed makes the same."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def mutant(self, folder: Path) -> Path:
        """Write a mutant, a file or a directory, into a folder; return its path."""
        pick = self._random
        config, shapes = pick.choice([_bert, _llama])()
        header, data = _header(shapes)
        if pick.random() < 0.3:
            header["__metadata__"] = {"format": "pt"}
        for _ in range(pick.choice((0, 1, 1, 1, 2, 3))):
            data = self._header(header, data)
        for _ in range(pick.choice((0, 1, 1, 2, 3))):
            self._config(config)
        text = json.dumps(header).encode()
        if pick.random() < 0.1:
            text = self._bytes(text)
        length = pick.choice(NUMBERS[:16]) % (1 << 64) if pick.random() < 0.03 else len(text)
        whole = struct.pack("<Q", length) + text + data
        if pick.random() < 0.03:
            whole = whole[: pick.randrange(len(whole))]
        path = folder / "m.safetensors"
        if pick.random() < 0.3:
            path.write_bytes(whole)
            return path
        path = folder / "checkpoint"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        words = json.dumps(config).encode()
        (path / "config.json").write_bytes(self._bytes(words) if pick.random() < 0.05 else words)
        self._place(path, whole, header)
        return path

    def _place(self, path: Path, whole: bytes, header: dict[str, Any]) -> None:
        pick = self._random
        if pick.random() < 0.7:
            (path / "model.safetensors").write_bytes(whole)
            return
        name = "model-00001-of-00001.safetensors"
        (path / name).write_bytes(whole)
        index: dict[str, Any] = {"metadata": {"total_size": len(whole)}, "weight_map": dict.fromkeys(header, name)}
        index["weight_map"].pop("__metadata__", None)
        for _ in range(pick.choice((0, 1, 2))):
            key = pick.choice([*index["weight_map"], "other"])
            index["weight_map"][key] = pick.choice([*NUMBERS, "../x.safetensors", "/etc/passwd", "a\0b", "", ".", name])
        if pick.random() < 0.3:
            index[pick.choice(["metadata", "weight_map"])] = pick.choice(
                [*NUMBERS, {"total_size": pick.choice(NUMBERS)}]
            )
        words = json.dumps(index).encode()
        index_path = path / "model.safetensors.index.json"
        index_path.write_bytes(self._bytes(words) if pick.random() < 0.1 else words)

    def _bytes(self, text: bytes) -> bytes:
        pick, data = self._random, bytearray(text)
        for _ in range(pick.randint(1, 3)):
            at = pick.randrange(len(data))
            what = pick.randrange(3)
            if what == 0:
                data[at] = pick.randrange(256)
            elif what == 1:
                del data[at : at + pick.randint(1, 4)]
            else:
                data[at:at] = pick.choice(
                    [b"[" * 1000, b'{"a":', b"\xff", b"\\ud800", b"1e999", b"NaN", b'"w":1,', b"}"]
                )
        return bytes(data)

    def _header(self, header: dict[str, Any], data: bytes) -> bytes:
        """Change one thing of a header, or of the bytes; return those."""
        pick = self._random
        name = pick.choice([name for name in header if name != "__metadata__"] or ["x"])
        entry = header.get(name)
        what = pick.randrange(10)
        if what == 0:
            header[pick.choice([*header, "", "new", "a\0b", "../x", "\ud800", "x" * 70_000])] = header.pop(name, {})
        elif what == 1:
            header.pop(name, None)
        elif what == 2:
            header["__metadata__"] = pick.choice([*NUMBERS, {"a": 1}, {"a": "\ud800"}, {"format": "pt" * 9999}])
        elif what == 3:
            header[name] = pick.choice(NUMBERS)
        elif what == 4:
            values = np.frombuffer(data, np.float32).copy()
            values[pick.randrange(max(len(values), 1)) :][: pick.choice([1, 9])] = pick.choice(
                [np.nan, np.inf, 3e38, 1e-45]
            )
            return values.tobytes()
        elif not isinstance(entry, dict):
            return data
        elif what == 5:
            entry["dtype"] = pick.choice(DTYPES)
        elif what == 6 and isinstance(entry.get("shape"), list) and entry["shape"]:
            entry["shape"][pick.randrange(len(entry["shape"]))] = pick.choice(NUMBERS)
        elif what == 7 and isinstance(entry.get("data_offsets"), list):
            entry["data_offsets"][pick.randrange(2)] = pick.choice(NUMBERS)
        elif what == 8:
            entry[pick.choice(["dtype", "shape", "data_offsets", "more"])] = pick.choice(NUMBERS)
        elif isinstance(entry.get("shape"), list):  # the same bytes in another shape, or of another dtype
            shape = entry["shape"]
            flat = [int(np.prod([n for n in shape if isinstance(n, int)], dtype=object))]  # others have put words there
            entry["shape"] = pick.choice([shape[::-1], [1, *shape], [*shape, 1], flat])
            if pick.random() < 0.5 and entry.get("dtype") == "F32":
                entry["dtype"] = pick.choice(["I32", "F32", "U32"])
        return data

    def _config(self, config: dict[str, Any]) -> None:
        pick = self._random
        names = [
            *config,
            "pruned_heads",
            "quantization_config",
            "num_key_value_heads",
            "torch_dtype",
            "note",
            "text_config",
        ]
        heads: list[Any] = [{"0": [0, 1, 2, 3]}, {"0": [9]}, {"x": [0]}, {"0": 3}, {"1": [0, 0]}, {"7": [0]}]
        packed = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": pick.choice(NUMBERS),
        }
        values = [*NUMBERS, *heads, packed, {"quant_method": pick.choice(["gptq", "awq", "bitsandbytes", "fp8", 1])}]
        if pick.random() < 0.15:
            config.pop(pick.choice(list(config)))
        else:
            config[pick.choice(names)] = pick.choice(values)
