"""The table of the families of transformers: what their layers and the numbers in config.json are called."""

from collections.abc import Mapping
from typing import Any, Final

from modelopt_rs.errors import ArgumentError, check_mapping
from modelopt_rs.prune.family import Family, Rules

__all__ = ["FAMILIES", "FIXED", "families_of", "is_known"]

_INTO = r"(self\.(query|key|value)|attn\.(q|k|v)|(q|k|v)_lin|intermediate\.dense|lin1)"
_SQUARE = r"((pooler|transform|lm_head|classifier|discriminator_predictions)\.dense|vocab_transform|pre_classifier)"
_LAST = r"(decoder|out_proj|classifier|qa_outputs|seq_relationship|vocab_projector|dense_prediction)"
_ENCODER: Rules = (
    (r"embeddings\.(word|position|token_type)_embeddings\.weight", (1,)),
    (r"embeddings\.(position_ids|token_type_ids)", ()),
    (r"(LayerNorm|(sa_|output_|vocab_)?layer_norm)\.(weight|bias|gamma|beta)", (0,)),
    (rf"{_INTO}\.weight", (1,)),
    (rf"{_INTO}\.bias", ()),
    (r"(output\.dense|attn\.o|out_lin|lin2)\.(weight|bias)", (0,)),
    (r"relative_attention_bias\.weight", ()),
    (rf"{_SQUARE}\.weight", (0, 1)),
    (rf"{_SQUARE}\.bias", (0,)),
    (rf"{_LAST}\.weight", (1,)),
    (rf"({_LAST}|lm_head|predictions)\.bias", ()),
)
# ELECTRA's embeddings may be narrower than the model.
_NARROW_EMBEDDINGS: Rules = (
    (r"embeddings\..*", ()),
    (r"embeddings_project\.(weight|bias)", (0,)),
    (r"generator_predictions\.dense\.weight", (1,)),
    (r"generator_(predictions|lm_head)\..*", ()),
)
_WIDE_EMBEDDINGS: Rules = (
    (r"generator_predictions\.dense\.weight", (0, 1)),
    (r"generator_predictions\.dense\.bias", (0,)),
    (r"generator_lm_head\.weight", (1,)),
    (r"generator_lm_head\.bias", ()),
)
_DECODER: Rules = (
    (r"(embed_tokens|lm_head|score)\.weight", (1,)),
    (r"lm_head\.bias", ()),
    (r"(qkv_proj|gate_up_proj|(q|k|v|gate|up)_proj|fc1|c_fc)\.weight", (1,)),
    (r"(qkv_proj|gate_up_proj|(q|k|v|gate|up)_proj|fc1|c_fc)\.bias", ()),
    (r"(o_proj|down_proj|self_attn\.dense|fc2|c_proj)\.(weight|bias)", (0,)),
    (r"(q|k)_(norm|layernorm)\.(weight|bias)", ()),
    (r"rotary_emb\.inv_freq", ()),
    (r"(\w*layernorm|norm)\.(weight|bias)", (0,)),
)
_EXPERTS: Rules = (
    (r"(gate|shared_expert_gate|w1|w3)\.weight", (1,)),
    (r"w2\.weight", (0,)),
)


def _encoder(*types: str, **others: Any) -> Family:
    """Return a family whose layers are BERT's."""
    own: dict[str, Any] = {
        "layer": r"encoder\.layer\.\d+",
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention_out": "attention.output.dense",
        "ffn": ("intermediate.dense",),
        "ffn_out": "output.dense",
        "hidden": _ENCODER,
    }
    return Family(types=types, **(own | others))


def _decoder(*types: str, **others: Any) -> Family:
    """Return a family whose layers are Llama's."""
    own: dict[str, Any] = {
        "layer": r"layers\.\d+",
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_out": "self_attn.o_proj",
        "ffn": _GATED,
        "ffn_out": "mlp.down_proj",
        "hidden": _DECODER,
        "qk_norms": ("self_attn.q_norm", "self_attn.k_norm"),
        "key_value_heads": True,
        "head_dim": "head_dim",
    }
    return Family(types=types, **(own | others))


def _ffn(
    *types: str, layer: str, ffn: tuple[str, ...], out: str, key: str = "intermediate_size", **more: Any
) -> Family:
    """Return layers of which config.json says nothing but how wide the feed-forward network is."""
    keys = ("hidden_size", "num_attention_heads", key)
    return Family(types=types, layer=layer, ffn=ffn, ffn_out=out, keys=keys, **more)


def _pictures(*types: str, **others: Any) -> Family:
    """Return a family whose layers are ViT's: a head is as wide as transformers 5 reads from ``head_dim``."""
    own: dict[str, Any] = {
        "layer": r"encoder\.layer\.\d+",
        "qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attention_out": "attention.output.dense",
        "ffn": ("intermediate.dense",),
        "ffn_out": "output.dense",
        "head_dim": "head_dim",
    }
    return Family(types=types, **(own | others))


def _attention(*types: str, layer: str, name: str, **others: Any) -> Family:
    """Return attention of T5."""
    qkv = (f"{name}.q", f"{name}.k", f"{name}.v")
    keys = ("d_model", "num_heads", "d_ff")
    return Family(types=types, layer=layer, qkv=qkv, attention_out=f"{name}.o", keys=keys, head_dim="d_kv", **others)


def _sides(types: tuple[str, ...]) -> tuple[Family, ...]:
    """Return the encoder and the decoder of a family whose layers are BART's."""
    return tuple(
        _ffn(*types, layer=rf"{side}\.layers\.\d+", ffn=("fc1",), out="fc2", key=f"{side}_ffn_dim")
        for side in ("encoder", "decoder")
    )


def _towers(types: tuple[str, ...], **more: Any) -> tuple[Family, ...]:
    """Return the layers for texts and those for pictures of a family whose names are CLIP's, each with its numbers."""
    layers = {"text": r"text_model\.encoder\.layers\.\d+", "vision": rf"vision_model\.{_TOWER}"}
    return tuple(
        _ffn(*types, layer=layer, ffn=("mlp.fc1",), out="mlp.fc2", section=f"{kind}_config", **more)
        for kind, layer in layers.items()
    )


_GATED = ("mlp.gate_proj", "mlp.up_proj")
_FUSED = ("mlp.gate_up_proj", "mlp.gate_up_proj")
_TOWER = r"(encoder\.layers\.\d+|head)"
_T5 = ("t5", "mt5")
_MIXTRAL = ("mixtral", "phimoe")
_QWEN_MOE = ("qwen2_moe", "qwen3_moe")
_BLOCK = r"h\.\d+"

FAMILIES: Final = (
    _encoder("bert", "roberta", "xlm-roberta", "camembert", lists_heads=True),
    _encoder(
        "electra",
        hidden=_WIDE_EMBEDDINGS + _ENCODER,
        embedding=("embedding_size", _NARROW_EMBEDDINGS),
        lists_heads=True,
    ),
    _encoder(
        "mpnet",
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_out="attention.attn.o",
        shared_bias="encoder.relative_attention_bias",
    ),
    _encoder(
        "distilbert",
        layer=r"transformer\.layer\.\d+",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_out="attention.out_lin",
        ffn=("ffn.lin1",),
        ffn_out="ffn.lin2",
        keys=("dim", "n_heads", "hidden_dim"),
    ),
    _decoder("llama", "gemma2", "gemma3_text", divides=True),
    _decoder("mistral", "qwen2", "qwen3", "gemma", "smollm3", "olmo", "olmo2", "olmo3"),
    _decoder(
        "phi",
        attention_out="self_attn.dense",
        ffn=("mlp.fc1",),
        ffn_out="mlp.fc2",
        qk_norms=("self_attn.q_layernorm", "self_attn.k_layernorm"),
        fixed_by="qk_layernorm",
    ),
    _decoder("phi3", qkv=("self_attn.qkv_proj",) * 3, ffn=_FUSED),
    _decoder("granite", "seed_oss", "exaone4", "ernie4_5", "cohere", "cohere2"),
    _decoder("glm", "glm4", ffn=_FUSED),
    _decoder("nemotron", "arcee", ffn=("mlp.up_proj",)),
    _ffn(
        "helium", "diffllama", "hunyuan_v1_dense", "vaultgemma", layer=r"layers\.\d+", ffn=_GATED, out="mlp.down_proj"
    ),
    _ffn("apertus", layer=r"layers\.\d+", ffn=("mlp.up_proj",), out="mlp.down_proj"),
    _decoder("starcoder2", ffn=("mlp.c_fc",), ffn_out="mlp.c_proj"),
    _decoder("stablelm", qk_norms=("self_attn.q_layernorm", "self_attn.k_layernorm"), head_dim=""),
    _decoder(*_MIXTRAL, ffn=(), hidden=_EXPERTS + _DECODER),
    _ffn(*_MIXTRAL, layer=r"layers\.\d+\.block_sparse_moe\.experts\.\d+", ffn=("w1", "w3"), out="w2"),
    _decoder(*_QWEN_MOE, ffn=(), hidden=_EXPERTS + _DECODER),
    _ffn(*_QWEN_MOE, layer=r"layers\.\d+", ffn=_GATED, out="mlp.down_proj"),
    _ffn(
        *_QWEN_MOE,
        layer=r"layers\.\d+\.mlp\.experts\.\d+",
        ffn=("gate_proj", "up_proj"),
        out="down_proj",
        key="moe_intermediate_size",
    ),
    _ffn(
        "qwen2_moe",
        layer=r"layers\.\d+\.mlp\.shared_expert",
        ffn=("gate_proj", "up_proj"),
        out="down_proj",
        key="shared_expert_intermediate_size",
    ),
    _decoder("olmoe", ffn=(), hidden=_EXPERTS + _DECODER),
    _ffn("olmoe", layer=r"layers\.\d+\.mlp\.experts\.\d+", ffn=("gate_proj", "up_proj"), out="down_proj"),
    _ffn("gpt2", layer=_BLOCK, ffn=("mlp.c_fc",), out="mlp.c_proj", key="n_inner", transposed=True),
    _ffn("gpt_bigcode", layer=_BLOCK, ffn=("mlp.c_fc",), out="mlp.c_proj", key="n_inner"),
    _ffn("gpt_neo", layer=_BLOCK, ffn=("mlp.c_fc",), out="mlp.c_proj"),
    _ffn("gptj", "codegen", layer=_BLOCK, ffn=("mlp.fc_in",), out="mlp.fc_out", key="n_inner"),
    _ffn("gpt_neox", "persimmon", layer=r"layers\.\d+", ffn=("mlp.dense_h_to_4h",), out="mlp.dense_4h_to_h"),
    _ffn("falcon", layer=_BLOCK, ffn=("mlp.dense_h_to_4h",), out="mlp.dense_4h_to_h", key="ffn_hidden_size"),
    _ffn("opt", layer=r"decoder\.layers\.\d+", ffn=("fc1",), out="fc2", key="ffn_dim"),
    _ffn("xglm", layer=r"layers\.\d+", ffn=("fc1",), out="fc2", key="ffn_dim"),
    _ffn("biogpt", layer=r"layers\.\d+", ffn=("fc1",), out="fc2"),
    _attention(
        *_T5,
        layer=r"encoder\.block\.\d+\.layer\.0",
        name="SelfAttention",
        shared_bias="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    ),
    _attention(
        *_T5,
        layer=r"decoder\.block\.\d+\.layer\.0",
        name="SelfAttention",
        shared_bias="decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    ),
    _attention(*_T5, layer=r"decoder\.block\.\d+\.layer\.1", name="EncDecAttention"),
    *(
        _ffn(*_T5, "umt5", "longt5", layer=r"block\.\d+\.layer\.\d+", ffn=ffn, out="DenseReluDense.wo", key="d_ff")
        for ffn in (("DenseReluDense.wi",), ("DenseReluDense.wi_0", "DenseReluDense.wi_1"))
    ),
    *_sides(("bart", "mbart", "marian", "pegasus", "blenderbot", "blenderbot-small", "m2m_100", "plbart")),
    *_sides(("led", "pegasus_x", "bigbird_pegasus")),
    *_sides(("whisper", "speech_to_text")),
    _ffn(
        "albert",
        layer=r"albert_layer_groups\.\d+\.albert_layers\.\d+",
        ffn=("ffn",),
        out="ffn_output",
    ),
    _ffn(
        *("deberta", "deberta-v2", "ernie", "esm", "roformer", "data2vec-text", "layoutlm", "longformer", "big_bird"),
        *("roberta-prelayernorm", "xlm-roberta-xl", "megatron-bert", "rembert", "layoutlmv3"),
        *("nystromformer", "luke", "mra", "yoso", "splinter", "tapas", "markuplm", "visual_bert", "bert-generation"),
        *("xmod", "fnet", "roc_bert", "vilt", "videomae", "timesformer", "dpt"),
        *("beit", "data2vec-vision", "yolos", "audio-spectrogram-transformer"),
        layer=r"encoder\.layer\.\d+",
        ffn=("intermediate.dense",),
        out="output.dense",
    ),
    _ffn("mobilebert", layer=r"encoder\.layer\.\d+(\.ffn\.\d+)?", ffn=("intermediate.dense",), out="output.dense"),
    _ffn("modernbert", layer=r"layers\.\d+", ffn=("mlp.Wi", "mlp.Wi"), out="mlp.Wo"),
    _pictures("vit", "deit", "vit_mae", "vit_msn", "ijepa"),
    _pictures(
        *("dinov2", "dinov2_with_registers"),
        ffn=("mlp.fc1",),
        ffn_out="mlp.fc2",
        keys=("hidden_size", "num_attention_heads", "mlp_ratio"),
        multiple=True,
    ),
    _ffn(
        *("swin", "swinv2", "donut-swin"),
        layer=r"layers\.\d+\.blocks\.\d+",
        ffn=("intermediate.dense",),
        out="output.dense",
        key="mlp_ratio",
        multiple=True,
    ),
    *_towers(("clip", "siglip", "clipseg", "metaclip_2")),
    _ffn(
        *("clip_text_model", "siglip_text_model"),
        layer=r"encoder\.layers\.\d+",
        ffn=("mlp.fc1",),
        out="mlp.fc2",
    ),
    _ffn("clip_vision_model", "siglip_vision_model", layer=_TOWER, ffn=("mlp.fc1",), out="mlp.fc2"),
    _ffn(
        *("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "sew"),
        layer=r"encoder\.layers\.\d+",
        ffn=("feed_forward.intermediate_dense",),
        out="feed_forward.output_dense",
    ),
)
SHOWN: Final = 8  # types that an error names
# Known families of which no number in config.json says how wide the inside of a layer is.
FIXED: Final[dict[str, str]] = {
    "bloom": "4 times hidden_size in any model",
    "openai-gpt": "4 times n_embd in any model",
    "convnext": "4 times the width of a stage in any model",
    "convnextv2": "4 times the width of a stage in any model",
}


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether the type of a model is one whose layers are known, or known not to be sayable, or no name at all."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return kind is not None
    return kind in FIXED or any(kind in family.types for family in FAMILIES)


def families_of(function: str, config: Mapping[str, Any]) -> tuple[Family, ...]:
    """Return the kinds of layers that a model of some type has.

    Raises
    ------
    ArgumentError
        If its type is none that is known, or one whose config.json can't say what would stay.
    """
    check_mapping(function, "config", config, "what config.json holds")
    kind = config.get("model_type")
    found = tuple(family for family in FAMILIES if kind in family.types)
    if found:
        return found
    if isinstance(kind, str) and kind in FIXED:
        text = f"one whose config.json says how wide its feed-forward networks are, got {kind!r}: {FIXED[kind]}"
        raise ArgumentError(function, f"config['model_type'] must be {text}; export it to ONNX, whose graph says it")
    known = list(dict.fromkeys(each for family in FAMILIES for each in family.types))
    some = f"{', '.join(known[:SHOWN])} and {len(known) - SHOWN} more (the how-to of cropping lists them)"
    fix = "export it to ONNX, or say its structure: groups (--groups)"
    raise ArgumentError(function, f"config['model_type'] must be one of {some}, got {kind!r}; {fix}")
