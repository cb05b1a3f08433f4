"""The table of the families of transformers: what their layers and the numbers in config.json are called."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from modelopt_rs.errors import ArgumentError, check_mapping

__all__ = ["FAMILIES", "Family", "Rules", "family_of"]

# Which axes of a tensor are as long as the model is wide, by the end of its name; () for those that have none.
Rules: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the models of some types name their layers and numbers: all that a new family needs is one of these.

    Names of layers stand without ``.weight``, relative to a layer of the transformer. Biases are found in the tensors.

    Attributes
    ----------
    types : tuple of str
        The values of `model_type`.
    layer : str
        A regular expression: what the name of a layer ends as.
    qkv : (str, str, str)
        The projections to queries, keys and values. Thrice the same name: one matrix that holds them in this order.
    attention_out : str
        The projection of all heads to the width of the model.
    ffn : tuple of str
        The projections into the feed-forward network; twice the same name: one matrix that holds both.
    ffn_out : str
        The projection out of it.
    qk_norms : tuple of str
        Norms of queries and keys, where a model has them; only those that go over one head allow to crop heads.
    hidden : rules
        Which axes are as long as the model is wide.
    embedding : (str, rules) or None
        The number in config.json of the width of the embeddings, and the rules where that is not the model's.
    shared_bias : str
        A table with a column for each head that all layers use: they then lose the same heads.
    keys : (str, str, str)
        The numbers in config.json of the model's width, its heads and its feed-forward width.
    key_value_heads : bool
        Whether several query heads may share a key-value head, ``num_key_value_heads``.
    head_dim : bool
        Whether config.json can say how wide a head is. Else it is the model's width by the number of heads.
    fixed_by : str
        An option in config.json, true in models that have norms as wide as that, whatever `head_dim` says.
    divides : bool
        Whether transformers wants the heads to divide the model's width none the less.
    lists_heads : bool
        Whether config.json may list the heads that are gone, as ``pruned_heads``.
    """

    types: tuple[str, ...]
    layer: str
    qkv: tuple[str, str, str]
    attention_out: str
    ffn: tuple[str, ...]
    ffn_out: str
    hidden: Rules
    qk_norms: tuple[str, ...] = ()
    embedding: tuple[str, Rules] | None = None
    shared_bias: str = ""
    keys: tuple[str, str, str] = ("hidden_size", "num_attention_heads", "intermediate_size")
    key_value_heads: bool = False
    head_dim: bool = False
    fixed_by: str = ""
    divides: bool = False
    lists_heads: bool = False


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
        "ffn": ("mlp.gate_proj", "mlp.up_proj"),
        "ffn_out": "mlp.down_proj",
        "hidden": _DECODER,
        "qk_norms": ("self_attn.q_norm", "self_attn.k_norm"),
        "key_value_heads": True,
        "head_dim": True,
    }
    return Family(types=types, **(own | others))


_FUSED = ("mlp.gate_up_proj", "mlp.gate_up_proj")

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
    _decoder("starcoder2", ffn=("mlp.c_fc",), ffn_out="mlp.c_proj"),
    _decoder("stablelm", qk_norms=("self_attn.q_layernorm", "self_attn.k_layernorm"), head_dim=False),
)


def family_of(function: str, config: Mapping[str, Any]) -> Family:
    """Return the family of a model.

    Raises
    ------
    ArgumentError
        If it is of none that is known.
    """
    check_mapping(function, "config", config, "what config.json holds")
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind in family.types:
            return family
    known = ", ".join(each for family in FAMILIES for each in family.types)
    fix = "export it to ONNX, or say its structure: groups (--groups)"
    raise ArgumentError(function, f"config['model_type'] must be one of {known}, got {kind!r}; {fix}")
