"""Families of transformers that no table knows: feed-forward layers are found by shapes, or nothing is cropped."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")
transformers = pytest.importorskip("transformers", reason="the extra `interop` is not installed: transformers")

from modelopt_rs.planning.found_groups import find_feed_forward  # noqa: E402
from modelopt_rs.prune.families import is_known  # noqa: E402
from saved_models import randomized, save, write  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

IDS = torch.from_numpy(np.random.default_rng(0).integers(3, 50, (2, 11)))
PIXELS = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32))
PLAIN = {"num_hidden_layers": 2, "num_attention_heads": 6, "hidden_size": 48, "intermediate_size": 80, "vocab_size": 50}
PLAIN |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}
SHARED = PLAIN | {"num_key_value_heads": 2, "head_dim": 8}
VISION = {"num_hidden_layers": 2, "num_attention_heads": 6, "hidden_size": 48, "intermediate_size": 80}
VISION |= {"image_size": 32, "patch_size": 8, "num_channels": 3}
SIDES = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("layers", 2), ("attention_heads", 6))}
SIDES |= {"vocab_size": 50, "d_model": 48, "encoder_ffn_dim": 80, "decoder_ffn_dim": 88, "max_position_embeddings": 64}
SIDES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
DECODERS = ("ministral3", "internlm3", "cwm", "doge", "eurobert", "flint", "granite_swa", "hyperclovax", "iquestcoder")
DECODERS += ("jais2", "mellum", "nanochat")
ENCODERS = ("canine", "convbert", "dpr", "nomic_bert", "jina_embeddings_v3")
EYES = ("aimv2_vision_model", "dinov3_vit", "mlcd_vision_model", "idefics3_vision", "chinese_clip_vision_model")
CASES = [
    *((kind, SHARED, {"input_ids": IDS}) for kind in DECODERS),
    *((kind, PLAIN, {"input_ids": IDS}) for kind in ENCODERS),
    *((kind, VISION, {"pixel_values": PIXELS}) for kind in EYES),
    *((kind, SIDES, {"input_ids": IDS, "decoder_input_ids": IDS.flip(0)}) for kind in ("mvp", "nllb-moe")),
]


def saved(kind: str, options: dict[str, Any], folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        config = transformers.AutoConfig.for_model(kind, **options)
    except ValueError:
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    return save(randomized(transformers.AutoModel.from_config(config)), folder)


def answer(folder: Path, inputs: dict[str, Any]) -> np.ndarray:
    model, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, dtype="float32")
    assert not any(told[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.manual_seed(0)
    with torch.no_grad():
        return model.eval()(**inputs)[0].numpy()


@pytest.mark.parametrize(("kind", "options", "inputs"), CASES, ids=[case[0] for case in CASES])
def test_a_family_without_a_name_loses_dead_units_and_says_the_same(
    kind: str, options: dict[str, Any], inputs: dict[str, Any], tmp_path: Path
) -> None:
    tensors, config = saved(kind, options, tmp_path / "whole")
    assert not is_known(config)
    found = find_feed_forward(tensors, config)
    assert not isinstance(found, str), found
    for group in found.groups:
        gone = np.random.default_rng(0).permutation(group.units)[: group.units // 2]
        for member in group.members:
            if member.scored:
                tensors[member.name][(slice(None),) * member.axis + (gone,)] = 0
    zeros = write(tmp_path / "zeros", tensors, config)
    report = mo.crop_file(zeros, tmp_path / "small", keep=0.5, what="ffn", round_to=1, durable=False)
    assert all(2 * group.kept == group.units for group in report.groups)
    assert "no family that is known by name" in report.notes[0]
    new = json.loads((tmp_path / "small" / "config.json").read_text())
    assert {key for key in new if new[key] != config[key]} == set(found.numbers)
    want = answer(zeros, inputs)
    assert np.isfinite(want).all()
    np.testing.assert_allclose(answer(tmp_path / "small", inputs), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_a_width_that_others_follow_from_is_not_cropped(tmp_path: Path) -> None:
    """LiLT's second network is a fourth as wide as the first: no number of config.json says it."""
    options = PLAIN | {"channel_shrink_ratio": 4, "max_2d_position_embeddings": 64}
    saved("lilt", options, tmp_path / "whole")
    said = r"config\['model_type'\] must be one of .*: a tensor has an axis of 20, which may follow from"
    with pytest.raises(mo.OptionError, match=said):
        mo.crop_file(tmp_path / "whole", tmp_path / "small", keep=0.5, what="ffn", durable=False)
    with pytest.raises(
        mo.OptionError, match=r"or say its structure: groups \(--groups\); by shapes 'ffn' alone is looked"
    ):
        mo.crop_file(tmp_path / "whole", tmp_path / "small", keep=0.5, what=["ffn", "heads"], durable=False)
    assert not (tmp_path / "small").exists()
