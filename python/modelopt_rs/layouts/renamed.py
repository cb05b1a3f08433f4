"""Where transformers 5 names a module otherwise than the file names its weight.

From transformers 5.23, `conversion_mapping.py`: it renames what it loads, and renames it back where it saves. By the
`model_type` of config.json or of a part of it; each pattern is replaced in turn.
"""

import re
from collections.abc import Collection
from typing import Final

__all__ = ["renamed"]

_BLOCK: Final = (
    (r"attention\.(?:attention|self)\.(query|key|value)\b", lambda match: f"attention.{match[1][0]}_proj"),
    (r"attention\.output\.dense\b", "attention.o_proj"),
    (r"intermediate\.dense\b", "mlp.fc1"),
    (r"\boutput\.dense\b", "mlp.fc2"),
)
_ENCODER: Final = ((r"encoder\.layer\.", "layers."), *_BLOCK)
_SEGFORMER: Final = (
    (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
    (r"encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"mlp\.dense([12])\b", r"mlp.fc\1"),
    (r"decode_head\.linear_c\b", "decode_head.linear_projections"),
    *_BLOCK,
)
_DETR: Final = ((r"\bout_proj\b", "o_proj"), (r"layers\.(\d+)\.fc([12])\b", r"layers.\1.mlp.fc\2"))
_RULES: Final = {
    **dict.fromkeys(("vit", "deit", "beit", "ijepa", "vit_mae", "vit_msn", "vivit", "pixio"), _ENCODER),
    "audio-spectrogram-transformer": _ENCODER,
    **dict.fromkeys(("swin", "dinov2", "dinov2_with_registers", "lw_detr", "rf_detr"), _BLOCK),
    "segformer": _SEGFORMER,
    **dict.fromkeys(("detr", "rt_detr", "rt_detr_v2", "d_fine", "maskformer"), _DETR),
}
# Of all models that have a vision tower beside a language model.
_BRANCHES: Final = ((r"^language_model\.lm_head$", "lm_head"), (r"^((?:model\.)?language_model)\.model\.", r"\1."))


def renamed(module: str, kinds: Collection[str]) -> str:
    """Return the name that a module gets in transformers; of most the one that it has.

    Examples
    --------
    >>> from modelopt_rs.layouts.renamed import renamed
    >>> renamed("vit.encoder.layer.0.attention.attention.query", ["vit"])
    'vit.layers.0.attention.q_proj'
    >>> renamed("language_model.model.layers.0.mlp.up_proj", ["llava"])
    'language_model.layers.0.mlp.up_proj'
    """
    for rules in (_BRANCHES, *dict.fromkeys(_RULES[kind] for kind in kinds if kind in _RULES)):
        for pattern, replacement in rules:
            module = re.sub(pattern, replacement, module)
    return module
