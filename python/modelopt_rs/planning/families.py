"""The names of layers in the architectures of transformers: which weights stand quantization and pruning less well."""

import re
from collections.abc import Mapping
from typing import Any, Final

from modelopt_rs.stream.model import is_weight

__all__ = ["NO_WEIGHT", "kept_by_default"]

NO_WEIGHT: Final = "its name does not end in .weight"

# By the last part of the module's name, as the architectures of transformers spell them.
EMBEDDING = re.compile(r"(\w*_)?embeddings?|embed|(\w*_)?emb|embed_\w+|wte|wpe|shared|relative_attention_bias")
ROUTER = re.compile(r"gate|router")
# Anywhere in the module's name: a head may have several layers (`classifier.dense`).
HEAD = re.compile(r"(\w*_)?lm_head|classifier|score|qa_outputs|cls|embed_out|output_projection|vocab_projector")
CONV1D = re.compile(r"c_attn|c_proj|c_fc|q_attn")
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


def kept_by_default(name: str, config: Mapping[str, Any]) -> str | None:
    """Say why a tensor of this name is left alone if no glob names it; None if it isn't."""
    if not is_weight(name):
        return NO_WEIGHT
    parts = name.removesuffix(".weight").split(".")
    if parts == ["output"] or any(HEAD.fullmatch(part) for part in parts):
        return "the last head"
    if EMBEDDING.fullmatch(parts[-1]):
        return "an embedding"
    if ROUTER.fullmatch(parts[-1]):
        return "a router of experts"
    if config.get("model_type") in CONV1D_MODELS and CONV1D.fullmatch(parts[-1]):
        return "a Conv1D layer: stored as [in, out]"
    return None
