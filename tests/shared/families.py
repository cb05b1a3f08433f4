"""BERT and Llama as safetensors files whose heads and units can be cropped."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import NUMPY, Tensors, to_bf16, weights

BERT = {"model_type": "bert", "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 40, "vocab_size": 11}
LLAMA = {**BERT, "model_type": "llama", "num_key_value_heads": 2, "torch_dtype": "float32"}


def filled(shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> Tensors:
    def of(shape: tuple[int, ...], seed: int) -> np.ndarray:
        x = weights(shape, seed)
        return to_bf16(x) if dtype == "BF16" else x.astype(NUMPY[dtype])

    return {name: (dtype, of(shape, seed)) for seed, (name, shape) in enumerate(shapes.items())}


def bert(dtype: str = "F32", layers: int = 2) -> Tensors:
    """A BERT under a prefix, in the order of safetensors: by name."""
    shapes = {f"embeddings.{name}_embeddings.weight": (11, 48) for name in ("word", "position", "token_type")}
    shapes |= {"embeddings.LayerNorm.weight": (48,), "pooler.dense.weight": (48, 48), "pooler.dense.bias": (48,)}
    for i in range(layers):
        layer = f"encoder.layer.{i}."
        linear = {f"attention.self.{part}": (48, 48) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (48, 48), "intermediate.dense": (40, 48), "output.dense": (48, 40)}
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        shapes |= {f"{layer}output.LayerNorm.{part}": (48,) for part in ("weight", "bias")}
    model = filled({f"bert.{name}": shape for name, shape in sorted(shapes.items())}, dtype)
    return model | {"bert.embeddings.position_ids": ("I64", np.arange(11).reshape(1, 11))}


def llama(dtype: str = "F32", layers: int = 2) -> Tensors:
    shapes = {"model.embed_tokens.weight": (11, 48), "model.norm.weight": (48,), "lm_head.weight": (11, 48)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (48 if part == "q" else 16, 48) for part in "qkv"}
        shapes |= {f"{layer}self_attn.o_proj.weight": (48, 48), f"{layer}mlp.down_proj.weight": (48, 40)}
        shapes |= {f"{layer}mlp.{part}_proj.weight": (40, 48) for part in ("gate", "up")}
        shapes |= {f"{layer}{norm}.weight": (48,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return filled(dict(sorted(shapes.items())), dtype)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
