"""Transformers of which config.json says how wide the feed-forward networks are: cropped, loaded, saying the same."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")
transformers = pytest.importorskip("transformers", reason="the extra `interop` is not installed: transformers")
pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

from modelopt_rs.errors import OptionError  # noqa: E402
from modelopt_rs.planning.found_groups import find_feed_forward  # noqa: E402
from saved_models import randomized, save, write  # noqa: E402

# What other packages warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

RNG = np.random.default_rng(0)
IDS = torch.from_numpy(RNG.integers(3, 50, (2, 11)))
PIXELS = torch.from_numpy(RNG.standard_normal((2, 3, 32, 32)).astype(np.float32))
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 6, "hidden_size": 48}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = HEADS | TOKENS | {"vocab_size": 50, "intermediate_size": 40, "max_position_embeddings": 64}
SHARED = PLAIN | {"num_key_value_heads": 2}
EXPERTS = SHARED | {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GPT2 = TOKENS | {"vocab_size": 50, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 64, "n_ctx": 64}
T5 = {"vocab_size": 50, "d_model": 48, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 6}
SIDES = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("layers", 2), ("attention_heads", 6))}
SIDES |= TOKENS | {"vocab_size": 50, "d_model": 48, "encoder_ffn_dim": 40, "decoder_ffn_dim": 56}
SIDES |= {"decoder_start_token_id": 1, "forced_eos_token_id": 2, "max_position_embeddings": 64}
SOUND = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 40, "input_feat_per_channel": 8}
VISION = HEADS | {"intermediate_size": 40, "image_size": 32, "patch_size": 8, "num_channels": 3}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
AUDIO = {"patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16}
SPEECH = HEADS | TOKENS | {"vocab_size": 32, "intermediate_size": 40, "conv_dim": [16, 16], "conv_stride": [4, 4]}
SPEECH |= {"conv_kernel": [8, 4], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8}
SPEECH |= {"num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0, "layerdrop": 0.0}
TOWERS = {"text_config": PLAIN | {"intermediate_size": 32}, "vision_config": VISION, "projection_dim": 16}


def words() -> dict[str, Any]:
    return {"input_ids": IDS}


def pairs() -> dict[str, Any]:
    return {"input_ids": IDS, "decoder_input_ids": IDS.flip(0)}


def pixels() -> dict[str, Any]:
    return {"pixel_values": PIXELS}


def frames() -> dict[str, Any]:
    return {"input_features": PIXELS.reshape(2, -1)[:, :320].reshape(2, 40, 8), "decoder_input_ids": IDS[:, :6]}


def clips() -> dict[str, Any]:
    return {"pixel_values": PIXELS[:, None].repeat(1, 4, 1, 1, 1)}


def both() -> dict[str, Any]:
    return {"input_ids": IDS, "pixel_values": PIXELS}


def sound() -> dict[str, Any]:
    return {"input_values": PIXELS.reshape(2, -1)[:, :1600]}


def mel() -> dict[str, Any]:
    return {"input_features": PIXELS.reshape(2, -1)[:, :320].reshape(2, 8, 40), "decoder_input_ids": IDS[:, :6]}


def waves() -> dict[str, Any]:
    return {"input_values": PIXELS.reshape(2, -1)[:, :512].reshape(2, 32, 16)}


LM, BASE, PAIR = "AutoModelForCausalLM", "AutoModel", "AutoModelForSeq2SeqLM"
# The type, its options, the class of the model, what it reads, and the numbers that count the units.
XGLM = TOKENS | {"vocab_size": 50, "d_model": 48, "ffn_dim": 40, "num_layers": 2, "attention_heads": 6}
ROUTED = EXPERTS | {"shared_expert_intermediate_size": 32, "mlp_only_layers": [1]}
EACH = {"text_config.intermediate_size": 16, "vision_config.intermediate_size": 20}
BARTS = ("bart", "mbart", "marian", "pegasus", "blenderbot", "blenderbot-small", "m2m_100", "plbart")
BARTS += ("led", "pegasus_x", "bigbird_pegasus")
BERTS = (
    *("deberta", "ernie", "esm", "roformer", "data2vec-text", "layoutlm", "longformer", "big_bird"),
    *("roberta-prelayernorm", "xlm-roberta-xl", "megatron-bert", "rembert"),
    *("nystromformer", "luke", "mra", "yoso", "tapas", "fnet", "roc_bert"),
)
SPEECHES = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "sew")
SMALL = ("helium", "diffllama", "hunyuan_v1_dense", "vaultgemma", "apertus")
DINOS = ("dinov2", "dinov2_with_registers")
Case = tuple[str, dict[str, Any], str, Callable[[], dict[str, Any]], dict[str, int | float]]
HALF = {"intermediate_size": 20}
BOTH = {"encoder_ffn_dim": 20, "decoder_ffn_dim": 28}
INNER = {"n_inner": 96}
CASES: list[Case] = [
    ("gpt2", GPT2, LM, words, INNER),
    ("gpt_bigcode", GPT2, LM, words, INNER),
    ("gptj", GPT2 | {"rotary_dim": 4}, LM, words, INNER),
    ("codegen", GPT2 | {"rotary_dim": 4, "n_head": 4}, LM, words, INNER),
    ("gpt_neo", PLAIN | {"num_layers": 2, "attention_types": [[["global"], 2]]}, LM, words, HALF),
    ("gpt_neox", PLAIN, LM, words, HALF),
    ("persimmon", PLAIN, LM, words, HALF),
    ("falcon", PLAIN, LM, words, {"ffn_hidden_size": 96}),
    ("opt", PLAIN | {"ffn_dim": 40, "word_embed_proj_dim": 48}, LM, words, {"ffn_dim": 20}),
    ("xglm", XGLM, LM, words, {"ffn_dim": 20}),
    ("biogpt", PLAIN, LM, words, HALF),
    ("mixtral", EXPERTS, LM, words, HALF),
    ("phimoe", EXPERTS, LM, words, HALF),
    ("qwen2_moe", ROUTED, LM, words, HALF | {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 16}),
    ("qwen3_moe", EXPERTS | {"head_dim": 8}, LM, words, {"moe_intermediate_size": 12}),
    ("olmoe", EXPERTS, LM, words, HALF),
    ("t5", T5, PAIR, pairs, {"d_ff": 20}),
    ("t5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, PAIR, pairs, {"d_ff": 20}),
    ("mt5", T5, PAIR, pairs, {"d_ff": 20}),
    ("umt5", T5, PAIR, pairs, {"d_ff": 20}),
    *((kind, SIDES, PAIR, pairs, BOTH) for kind in BARTS),
    ("whisper", SIDES | SOUND, "AutoModelForSpeechSeq2Seq", mel, BOTH),
    ("speech_to_text", SIDES | SOUND, "AutoModelForSpeechSeq2Seq", frames, BOTH),
    ("albert", PLAIN | {"embedding_size": 16}, "AutoModelForMaskedLM", words, HALF),
    ("albert", PLAIN | {"num_hidden_groups": 2, "inner_group_num": 2}, BASE, words, HALF),
    ("deberta-v2", PLAIN | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, BASE, words, HALF),
    *((kind, PLAIN, "AutoModelForMaskedLM", words, HALF) for kind in BERTS),
    *((kind, PLAIN, BASE, words, HALF) for kind in ("splinter", "markuplm", "visual_bert", "bert-generation")),
    ("xmod", PLAIN | {"languages": ["en_XX"], "default_language": "en_XX"}, BASE, words, HALF),
    ("vilt", PLAIN | VISION, BASE, both, HALF),
    ("videomae", VISION | {"num_frames": 4}, BASE, clips, HALF),
    ("timesformer", VISION | {"num_frames": 4}, BASE, clips, HALF),
    ("dpt", VISION | {"backbone_out_indices": [0, 0, 1, 1]}, BASE, pixels, HALF),
    *((kind, SHARED | {"head_dim": 8}, LM, words, HALF) for kind in SMALL),
    ("longt5", T5, PAIR, pairs, {"d_ff": 20}),
    ("layoutlmv3", PLAIN | {"visual_embed": False, "coordinate_size": 8, "shape_size": 8}, BASE, words, HALF),
    ("mobilebert", PLAIN | {"intra_bottleneck_size": 24, "embedding_size": 16}, BASE, words, HALF),
    ("modernbert", PLAIN | {"cls_token_id": 1, "sep_token_id": 2}, BASE, words, HALF),
    *((kind, VISION, BASE, pixels, HALF) for kind in ("vit", "deit", "vit_msn", "ijepa", "beit", "data2vec-vision")),
    ("vit_mae", VISION | {"mask_ratio": 0.0}, BASE, pixels, HALF),
    ("audio-spectrogram-transformer", VISION | AUDIO, BASE, waves, HALF),
    ("yolos", VISION | {"image_size": [32, 32], "num_detection_tokens": 5}, BASE, pixels, HALF),
    *((kind, VISION | {"mlp_ratio": 4}, BASE, pixels, {"mlp_ratio": 2}) for kind in DINOS),
    *((kind, SWIN, BASE, pixels, {"mlp_ratio": 2.0}) for kind in ("swin", "swinv2", "donut-swin")),
    *((kind, TOWERS, BASE, both, EACH) for kind in ("clip", "siglip", "clipseg", "metaclip_2")),
    ("clip_text_model", PLAIN, BASE, words, HALF),
    ("siglip_text_model", PLAIN, "SiglipTextModel", words, HALF),
    *((kind, VISION, BASE, pixels, HALF) for kind in ("clip_vision_model", "siglip_vision_model")),
    *((kind, SPEECH, "AutoModelForCTC", sound, HALF) for kind in SPEECHES),
]  # fmt: skip
NAMES = [f"{i}-{case[0]}" for i, case in enumerate(CASES)]


def saved(kind: str, options: dict[str, Any], auto: str, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Save a small model of random weights; return its tensors and its config.json."""
    config = transformers.AutoConfig.for_model(kind, **options)
    torch.manual_seed(0)
    of = getattr(transformers, auto)
    model = of.from_config(config) if auto.startswith("Auto") else of(config)
    return save(randomized(model), folder)


def answer(auto: str, folder: Path, inputs: Callable[[], dict[str, Any]]) -> np.ndarray:
    """Load a directory, every tensor of which is known and wanted, and return what the model says."""
    model, told = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True, dtype="float32")
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    torch.manual_seed(0)  # some hide patches by chance
    with torch.no_grad():
        out = model.eval()(**inputs())
    names = ("logits", "logits_per_image", "last_hidden_state")
    return next(found for name in names if (found := getattr(out, name, None)) is not None).numpy()


def clear(tensors: dict[str, np.ndarray], groups: tuple[mo.prune.Group, ...]) -> None:
    """Make half of the units of each group zero."""
    rng = np.random.default_rng(0)
    for group in groups:
        gone = rng.permutation(group.units)[: group.units // 2]
        for member in group.members:
            for unit in gone if member.scored else ():
                first = member.offset + unit * member.size
                tensors[member.name][(slice(None),) * member.axis + (slice(first, first + member.size),)] = 0


def at(config: dict[str, Any], name: str) -> Any:
    for key in name.split("."):
        config = config[key]
    return config


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.isfinite(want).all()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("kind", "options", "auto", "inputs", "numbers"), CASES, ids=NAMES)
def test_a_directory_without_dead_ffn_units_says_the_same(kind, options, auto, inputs, numbers, tmp_path):
    """H35."""
    tensors, config = saved(kind, options, auto, tmp_path / "whole")
    groups = mo.prune.transformer_groups(tensors, config, "ffn")
    clear(tensors, groups)
    zeros = write(tmp_path / "zeros", tensors, config)
    report = mo.crop_file(zeros, tmp_path / "small", keep=0.5, what="ffn", round_to=1, durable=False)
    assert all(2 * group.kept == group.units for group in report.groups)
    new = json.loads((tmp_path / "small" / "config.json").read_text())
    assert {name: at(new, name) for name in numbers} == numbers
    close(answer(auto, tmp_path / "small", inputs), answer(auto, zeros, inputs))


# Of which the shapes don't tell, or whose numbers are counted otherwise.
NOT_TOLD = {
    "gpt2",
    "gpt_bigcode",
    "gptj",
    "codegen",
    "opt",
    "whisper",
    "speech_to_text",
    "modernbert",
    "dinov2",
    "swin",
}
NOT_TOLD |= {"audio-spectrogram-transformer", "dinov2_with_registers", "swinv2", "donut-swin", "siglip_vision_model"}
NOT_TOLD |= {"clip", "siglip", "clipseg", "metaclip_2"}


@pytest.mark.parametrize(("kind", "options", "auto", "inputs", "numbers"), CASES, ids=NAMES)
def test_what_shapes_tell_of_a_family_is_what_is_known_of_it(kind, options, auto, inputs, numbers, tmp_path):
    tensors, config = saved(kind, options, auto, tmp_path / "whole")
    found = find_feed_forward(tensors, config)
    assert isinstance(found, str) == (kind in NOT_TOLD), found
    if not isinstance(found, str):
        assert set(found.numbers) == set(numbers)
        assert cuts(found.groups) == cuts(mo.prune.transformer_groups(tensors, config, "ffn"))


def cuts(groups: Sequence[mo.prune.Group]) -> set[tuple[int, frozenset[tuple[str, int, int, int]]]]:
    return {(g.units, frozenset((m.name, m.axis, m.offset, m.size) for m in g.members)) for g in groups}


EIGHT = VISION | {"num_attention_heads": 8, "mlp_ratio": 4}
# Of which config.json says how many heads there are, and how wide, and what else it says then.
WITH_HEADS: list[tuple[str, dict[str, Any], str, Callable[[], dict[str, Any]], dict[str, int]]] = [
    ("mixtral", EXPERTS, LM, words, {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8}),
    ("qwen3_moe", EXPERTS | {"head_dim": 8}, LM, words, {"num_attention_heads": 3, "num_key_value_heads": 1}),
    ("qwen2_moe", EXPERTS, LM, words, {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8}),
    ("t5", T5 | {"d_kv": 10}, PAIR, pairs, {"num_heads": 3, "d_kv": 10}),
    ("mt5", T5, PAIR, pairs, {"num_heads": 3, "d_kv": 8}),
    *(
        (kind, EIGHT, BASE, pixels, {"num_attention_heads": 4, "head_dim": 6})
        for kind in ("vit", "deit", "vit_mae", "vit_msn", "ijepa", *DINOS)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "auto", "inputs", "numbers"), WITH_HEADS, ids=[c[0] for c in WITH_HEADS])
def test_a_directory_without_dead_heads_says_the_same(kind, options, auto, inputs, numbers, tmp_path):
    """H35."""
    tensors, config = saved(kind, options, auto, tmp_path / "whole")
    clear(tensors, mo.prune.transformer_groups(tensors, config, "heads"))
    zeros = write(tmp_path / "zeros", tensors, config)
    report = mo.crop_file(zeros, tmp_path / "small", keep=0.5, what="heads", round_to=1, durable=False)
    assert all(2 * group.kept == group.units for group in report.groups)
    new = json.loads((tmp_path / "small" / "config.json").read_text())
    assert {name: at(new, name) for name in numbers} == numbers
    close(answer(auto, tmp_path / "small", inputs), answer(auto, zeros, inputs))


@pytest.mark.parametrize(
    ("kind", "options", "auto", "inputs"),
    [
        ("t5", T5 | {"d_kv": 10}, PAIR, pairs),
        ("vit", VISION | {"num_attention_heads": 8}, BASE, pixels),
        ("mixtral", EXPERTS | {"num_attention_heads": 8, "num_key_value_heads": 8}, LM, words),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_heads_that_do_not_divide_the_width(kind, options, auto, inputs, tmp_path):
    """H35: five heads of a model that is 48 wide."""
    tensors, config = saved(kind, options, auto, tmp_path / "whole")
    for group in mo.prune.transformer_groups(tensors, config, "heads"):
        for member in group.members if group.units > 5 else ():
            if member.scored:
                first = member.offset + 5 * member.size
                end = member.offset + group.units * member.size
                tensors[member.name][(slice(None),) * member.axis + (slice(first, end),)] = 0
    zeros = write(tmp_path / "zeros", tensors, config)
    mo.crop_file(zeros, tmp_path / "small", keep=5, what="heads", durable=False)
    close(answer(auto, tmp_path / "small", inputs), answer(auto, zeros, inputs))


PASSES = "gpt2", "falcon", "t5", "bart", "mixtral", "albert", "modernbert", "vit", "dinov2", "swin", "clip", "wav2vec2"
THEN = {case[0]: case for case in CASES if case[0] in PASSES}


@pytest.mark.parametrize("kind", THEN)
def test_cropped_and_quantized_in_one_pass_is_both_one_after_the_other(kind, tmp_path):
    pytest.importorskip("compressed_tensors", reason="the extra `interop` is not installed: compressed-tensors")
    _, options, auto, inputs, _ = THEN[kind]
    saved(kind, options, auto, tmp_path / "whole")
    crop = {"keep": 0.5, "what": "ffn", "round_to": 1, "durable": False}
    mo.crop_file(tmp_path / "whole", tmp_path / "small", **crop)
    mo.quantize_file(tmp_path / "small", tmp_path / "after", bits=8, durable=False)
    mo.crop_file(tmp_path / "whole", tmp_path / "both", then=mo.QuantizeOptions(bits=8), **crop)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    got, want = (answer(auto, tmp_path / name, inputs) for name in ("both", "small"))
    assert (got * want).sum() / np.linalg.norm(got) / np.linalg.norm(want) > 0.99


@pytest.mark.parametrize("kind", ["mixtral", "phimoe", "qwen2_moe", "qwen3_moe"])
def test_experts_lose_everything_in_one_proportion(kind, tmp_path):
    """H35: every tensor known, the configuration rewritten."""
    options = ROUTED if kind == "qwen2_moe" else EXPERTS | {"head_dim": 8}
    saved(kind, options, LM, tmp_path / "whole")
    mo.crop_file(tmp_path / "whole", tmp_path / "small", keep=0.5, what="all", durable=False)
    assert np.isfinite(answer(LM, tmp_path / "small", words)).all()


def test_units_that_no_linear_layer_takes_are_not_chosen_by_samples(tmp_path):
    """GPT-2's layers are no `Linear`: chosen by weights alone they would be called calibrated."""
    saved("gpt2", GPT2, LM, tmp_path / "whole")
    samples = [{"input_ids": IDS.numpy()}]
    with pytest.raises(
        OptionError, match=r"calibrate needs a model with linear layers, .* got none; leave calibrate out"
    ):
        mo.crop_file(tmp_path / "whole", tmp_path / "small", keep=0.5, what="ffn", calibrate=samples)
    assert not (tmp_path / "small").exists()
    saved("opt", {**PLAIN, "ffn_dim": 40, "word_embed_proj_dim": 48}, LM, tmp_path / "opt")
    mo.crop_file(
        tmp_path / "opt", tmp_path / "small", keep=0.5, what="ffn", round_to=1, calibrate=samples, durable=False
    )
    assert np.isfinite(answer(LM, tmp_path / "small", words)).all()
