"""The names of layers in the architectures of transformers: which weights stand quantization and pruning less well."""

import re
from collections.abc import Mapping
from typing import Any, Final

from modelopt_rs.stream.model import is_kernel, is_merged, is_recurrent, is_weight

__all__ = ["CONV1D", "CONV1D_MODELS", "NO_WEIGHT", "is_conv1d", "is_embedding", "kept_by_default", "model_types"]

NO_WEIGHT: Final = "its name does not end in .weight"
CONV1D: Final = "a Conv1D layer: stored as [in, out]"

# By the last part of the module's name, as the architectures of transformers spell them.
EMBEDDING = re.compile(
    r"(\w*_)?embeddings?|(\w*_)?embed|(\w*_)?emb|embed_\w+|wte|wpe|shared|(\w*_)?relative_attention_bias|"
    r"\w+_embeds_layer|\w*embedder(_\d+)?|\w+_embedding_table|\w+_tokens?|codebook",
    re.IGNORECASE,
)
ROUTER = re.compile(r"gate|router")
# Anywhere in the module's name: a head may have several layers (`classifier.dense`).
HEAD = re.compile(r"(\w*_)?lm_head|classifier|score|qa_outputs|cls|embed_out|unembed|output_projection|vocab_projector")
CONV1D_NAME = re.compile(r"c_attn|c_proj|c_fc|q_attn")
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


def model_types(config: Mapping[str, Any]) -> set[str]:
    """Return what a config.json says that the model and its parts are."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    return {part["model_type"] for part in parts if isinstance(part.get("model_type"), str)}


def is_embedding(name: str) -> bool:
    """Whether a tensor has the name of an embedding's table; of several in a list the list has it.

    Examples
    --------
    >>> from modelopt_rs.planning.families import is_embedding
    >>> [is_embedding(name) for name in ("emb.0.weight", "tokens_embed.weight", "embeddings.dense.weight")]
    [True, True, False]
    """
    parts = name.removesuffix(".weight").split(".")
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    return EMBEDDING.fullmatch(parts[-1]) is not None


def is_conv1d(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor has the name of a layer that is stored as [in, out]."""
    last = name.removesuffix(".weight").split(".")[-1]
    return CONV1D_NAME.fullmatch(last) is not None and not model_types(config).isdisjoint(CONV1D_MODELS)


def kept_by_default(name: str) -> str | None:
    """Say why a tensor of this name is left alone if no glob names it; None if it isn't."""
    if is_kernel(name):
        layers = [re.sub(r"_\d+$", "", part) for part in name.split("/")]
        return "an embedding" if any(EMBEDDING.fullmatch(part.split(":")[0]) for part in layers) else None
    if not (is_weight(name) or is_recurrent(name) or is_merged(name)):
        return NO_WEIGHT
    parts = name.removesuffix(".weight").split(".")
    if parts in (["output"], ["head"]) or any(HEAD.fullmatch(part) for part in parts):
        return "the last head"
    if is_embedding(name):
        return "an embedding"
    if ROUTER.fullmatch(parts[-1]) or "router" in parts:
        return "a router of experts"
    return None
