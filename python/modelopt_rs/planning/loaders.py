"""Which weights those that load a checkpoint read back if they are quantized, and which they would make up.

As tried with transformers 5.23, compressed-tensors 0.20 and bitsandbytes 0.50. As `config.json` asks for it,
transformers dequantizes the layouts of compressed-tensors while it loads: then it reads embeddings (tied ones too),
Conv1D and experts as well as linear layers, but one way of coding for all but experts, and experts that are all
quantized or none.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from modelopt_rs.errors import OptionError, quote
from modelopt_rs.planning.families import CONV1D, NO_WEIGHT, is_conv1d, is_embedding, model_types
from modelopt_rs.stream.model import TensorInfo, is_kernel, is_merged, is_recurrent, is_weight

__all__ = ["NO_ZERO_POINTS", "check_loaded", "groups_alike", "is_expert", "why_none_loaded", "why_not_loaded"]

# transformers makes one tensor of them.
EXPERT: Final = re.compile(r"(?:.*\.)?experts\.\d+\..*")
# These initialize weights of modules by name, before the codes in them are decoded: their `_init_weights` in
# transformers 5.23, and `QuantLinear` of I-BERT.
INITIALIZED: Final = frozenset(
    """
    align altclip bit blt bridgetower chinese_clip chmv2 clap clipseg clvp conditional_detr cvt d_fine dab_detr
    data2vec_audio deformable_detr deimv2 detr dinov3_vit esm esmfold esmfold2 falcon falcon_mamba gpt_bigcode
    grounding_dino groupvit hiera higgs_audio_v2_tokenizer ibert ijepa kosmos_2 longt5 lw_detr mamba mamba2
    mask2former maskformer mgp_str minicpm_ocr minicpmv4_6 minicpmv4_7 mlcd mm_grounding_dino modernbert
    modernbert_decoder modernvbert mt5 musicgen_melody nanochat nemotron_h neomme omdet_turbo oneformer owlv2 owlvit
    phi4_multimodal pix2struct pop2piano pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pvt pvt_v2 radio
    recurrent_gemma rf_detr rt_detr rt_detr_v2 rwkv seamless_m4t seamless_m4t_v2 seggpt siglip siglip2
    siglip2_vision_model siglip_text_model siglip_vision_model slanet slanext speecht5 swiftformer swin2sr
    switch_transformers t5 t5gemma t5gemma2 tapas timesformer udop ultravbert umt5 unispeech unispeech_sat videoprism
    vitdet vitpose vitpose_backbone vjepa2 wav2vec2 wav2vec2_bert wav2vec2_conformer wavlm xclip xcodec xlstm
    """.split()  # noqa: SIM905
)
# Kept in float32, or linear layers of a class of their own: bitsandbytes doesn't replace them.
FLOAT32: Final = {"t5": "wo", "mt5": "wo", "umt5": "wo", "longt5": "wo", "switch_transformers": "wo"}
OWN_LINEAR: Final = {"falcon", "wavlm"}
# transformers splits or joins weights of these as it loads them, and can't if any weight has codes; or it gives a
# quantized model other modules than a float one (Llama 4).
SPLIT: Final = {"dinov2", "dinov2_with_registers", "ernie4_5_vl_moe", "hrm_text", "molmo2", "sapiens2", "tipsv2"}.union(
    {"llama4", "llama4_text", "inkling_mm_model", "minimax_m3_vl", "qianfan_ocr", "unlimited_ocr", "nemo_speechlm"},
    # Their losses have a constant called `empty_weight`, which transformers takes for codes.
    {"eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer", "videomt"},
    {"bailing_hybrid", "glm5_next", "glm5_next_text", "kimi_linear", "olmo_hybrid", "gradium_phonon_tts"},
)
OTHER_MODULES: Final = {"llama4", "llama4_text"}
# Embeddings of these have names as layers have them: `query`, `reference_points`, `w`.
OWN_TABLES: Final = {"ctrl", "dab_detr", "deepseek_ocr2", "esm", "grounding_dino", "lw_detr"}.union(
    {"phi4_multimodal", "rf_detr", "sam3", "sam3_lite_text"}
)
# A head of theirs is tied to a layer that is none and no embedding: modules that have codes can't be tied.
TIED_LAYERS: Final = {"granite_speech5_ctc"}
# It splits these of some models, or permutes their rows: they must be floats, others may have codes.
SPLIT_WEIGHTS: Final = {
    **dict.fromkeys(("nomic_bert", "jina_embeddings_v3"), r"Wqkv"),
    "gte": r"qkv_proj|up_gate_proj",
    "radio": r"qkv",
    "kimi_k25": r"wqkv",
    "mistral_large4": r"wq|wk",
}
# It renames modules of these as it loads them: modules are found by name only if it dequantizes while it loads.
RENAMED: Final = {*SPLIT_WEIGHTS, "hunyuan_vl", "lfm3", "hy_v3", "hy_v4", "axk1", "axk2", "deepseek_v4"}.union(
    {"laguna"},
    {"altclip", "cohere_asr", "conditional_detr", "deformable_detr", "deepseek_ocr2", "dots3_note", "step3p7", "yolos"},
    {"inkling2", "inkling2_text", "pi0", "timesfm2_5", "sam3_tracker", "cosmos3_edge", "cosmos3_omni"},
)

NO_ZERO_POINTS: Final = "compressed-tensors can't unpack 4-bit zero points of 8 rows or less"
"""Why a weight stays that could be had without them."""


def is_expert(name: str) -> bool:
    """Whether transformers makes one tensor of a weight and others.

    Examples
    --------
    >>> from modelopt_rs.planning.loaders import is_expert
    >>> is_expert("model.layers.0.mlp.experts.7.up_proj.weight"), is_expert("lm_head.weight")
    (True, False)
    """
    return EXPERT.fullmatch(name) is not None


def why_none_loaded(names: Collection[str], layout: str, config: Mapping[str, Any]) -> str | None:
    """Say why transformers loads no model with such tensors if any weight of it is quantized; None if it does.

    It takes every tensor called ``weight`` for one that may have codes, and looks for a parameter of that name. The
    frozen norms of DETR and its kin have buffers: known by their means without a count of batches.

    Examples
    --------
    >>> from modelopt_rs.planning.loaders import why_none_loaded
    >>> names = ["conv.weight", "norm.weight", "norm.running_mean"]
    >>> why_none_loaded(names, "pack-quantized", {"model_type": "detr"})
    'transformers loads no model with frozen norms and quantized weights'
    >>> why_none_loaded([*names, "norm.num_batches_tracked"], "pack-quantized", {"model_type": "rt_detr"})
    """
    if not config or layout == "bitsandbytes":
        return None
    ending = "running_mean"
    norms = [name.removesuffix(ending) for name in names if name.endswith(f".{ending}")]
    frozen = any(f"{norm}weight" in names and f"{norm}num_batches_tracked" not in names for norm in norms)
    return "transformers loads no model with frozen norms and quantized weights" if frozen else None


def why_not_loaded(info: TensorInfo, layout: str, spec: Any, config: Mapping[str, Any]) -> str | None:
    """Say why no loader reads a weight back that is stored in a layout; None if one does."""
    if len(info.shape) >= 2 and is_kernel(info.name):
        return "a weight of Keras, whose codes only `dequantize` reads: pass only_dequantize (--only-dequantize)"
    if len(info.shape) == 3 and is_merged(info.name):
        return "experts in one tensor, whose codes only `dequantize` reads: pass only_dequantize (--only-dequantize)"
    if len(info.shape) != 2:
        return f"not 2-dimensional, but {len(info.shape)}-dimensional"
    if is_recurrent(info.name):
        return "a recurrent weight"
    if not is_weight(info.name):
        return NO_WEIGHT
    kinds = model_types(config)
    if not SPLIT.isdisjoint(kinds) and (layout != "bitsandbytes" or kinds & OTHER_MODULES):
        return "transformers loads no such model with quantized weights"
    split = [SPLIT_WEIGHTS[kind] for kind in sorted(kinds & SPLIT_WEIGHTS.keys())]
    last = info.name.removesuffix(".weight").split(".")[-1]
    if split and (layout == "bitsandbytes" or any(re.fullmatch(pattern, last) for pattern in split)):
        return "transformers splits it as it loads it, and can't with codes"
    expert = is_expert(info.name)
    if config and layout == "pack-quantized" and (spec.symmetric, spec.bits) == (False, 4) and info.shape[0] <= 8:
        return NO_ZERO_POINTS
    return _why_not_bitsandbytes(info.name, expert, config) if layout == "bitsandbytes" else None


def _why_not_bitsandbytes(name: str, expert: bool, config: Mapping[str, Any]) -> str | None:
    if expert:
        return "transformers merges experts only as floats"
    if is_embedding(name):
        return "an embedding, which bitsandbytes has no layer for"
    if is_conv1d(name, config):
        return CONV1D
    kinds = model_types(config)
    if kinds & RENAMED:
        return "transformers renames it, and bitsandbytes doesn't"
    is_float32 = any(name.endswith(f".{FLOAT32[kind]}.weight") for kind in kinds & FLOAT32.keys())
    # The attention of torch has linear layers of its own class too.
    if is_float32 or kinds & OWN_LINEAR or name.endswith("head.attention.out_proj.weight"):
        return "transformers keeps it as it is"
    return None


def check_loaded(
    specs: Mapping[str, Any],
    left: Mapping[str, str],
    layout: str,
    config: Mapping[str, Any],
    stored: Collection[str],
) -> None:
    """Refuse a choice of weights that transformers can't load together.

    Parameters
    ----------
    specs : mapping
        How each weight that is quantized is coded.
    left : mapping
        Why each other tensor is not.
    layout : str
        The layout's name.
    config : mapping
        The model's config.json; where there is none, no loader reads it.
    stored : collection of str, optional
        Those that are quantized already.

    Raises
    ------
    OptionError
        If experts are quantized in part, or so that they are not merged; or if a weight is read only where all but
        experts are coded alike, and they aren't.
    """
    if not config or layout == "bitsandbytes":
        return
    if layout != "float-quantized":
        _check_experts(specs, left, layout)
    for reader, names in groups_alike(specs, layout, config):
        ways = len({specs[name] for name in names})
        if ways > 1:
            fix = "dequantize it first" if stored else "exclude it, pass uniform"
            raise OptionError(
                f"tensor {quote(reader)}: transformers reads it only where all weights are coded alike, got "
                f"{ways} ways; {fix}, or pass only_dequantize (--only-dequantize)"
            )


def groups_alike(specs: Mapping[str, Any], layout: str, config: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the weights that transformers reads only where they are coded alike, and one of each group that wants it.

    Parameters
    ----------
    specs : mapping
        How each weight that is quantized is coded.
    layout : str
        The layout's name.
    config : mapping
        The model's config.json.

    Examples
    --------
    >>> from modelopt_rs.layouts.packed_spec import PackedSpec
    >>> from modelopt_rs.planning.loaders import groups_alike
    >>> four = PackedSpec(bits=4, group_size=32, symmetric=True)
    >>> groups_alike({"a.weight": four, "embed_tokens.weight": four}, "pack-quantized", {"model_type": "llama"})
    [('embed_tokens.weight', ['a.weight', 'embed_tokens.weight'])]
    >>> groups_alike({"a.weight": four}, "pack-quantized", {"model_type": "llama"})
    []
    """
    if not config or layout == "bitsandbytes":
        return []
    experts: list[str] = []
    dense: list[str] = []
    for name in specs:
        (experts if EXPERT.fullmatch(name) else dense).append(name)
    # Packed zero points are read only by what dequantizes while it loads.
    zero_points = any(not getattr(specs[name], "symmetric", True) for name in dense)
    kinds = {kind.replace("-", "_") for kind in model_types(config)}
    whole = zero_points or bool(kinds & (INITIALIZED | RENAMED | OWN_TABLES | TIED_LAYERS))
    reader = next((name for name in dense if whole or is_embedding(name) or is_conv1d(name, config)), None)
    # Those that it makes one tensor of.
    groups = [(reader, dense), (next(iter(experts), None), experts)]
    return [(name, group) for name, group in groups if name is not None]


def _check_experts(specs: Mapping[str, Any], left: Mapping[str, str], layout: str) -> None:
    expert = next((name for name in specs if EXPERT.fullmatch(name)), None)
    whole = next((name for name in left if EXPERT.fullmatch(name) and is_weight(name)), None)
    if whole is not None and specs:
        raise OptionError(
            f"tensor {quote(whole)} must be quantized like the other experts, got {left[whole]!r}: "
            "transformers merges them; or pass only_dequantize (--only-dequantize)"
        )
    if expert is not None and (layout == "nvfp4-pack-quantized" or not getattr(specs[expert], "symmetric", True)):
        parts = "global scales" if layout == "nvfp4-pack-quantized" else "zero points"
        raise OptionError(
            f"tensor {quote(expert)} must have no {parts}: transformers merges experts without them; take another "
            "format or scheme, or pass only_dequantize (--only-dequantize)"
        )
