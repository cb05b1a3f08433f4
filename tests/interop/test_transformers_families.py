"""What is written is read back by transformers as the same numbers: a table of small models of its families (H1)."""

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modelopt_rs as mo

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")
tf = pytest.importorskip("transformers", reason="the extra `interop` is not installed: transformers")
if importlib.util.find_spec("compressed_tensors") is None:  # transformers imports it when it loads a model: seconds
    pytest.skip("the extra `interop` is not installed: compressed-tensors", allow_module_level=True)

# What other packages warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

HEADS = {"num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**HEADS, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 64}
DECODER = {**ENCODER, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16}
SEQ2SEQ = {
    f"{part}_{key}": value
    for part in ("encoder", "decoder")
    for key, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 128}.items()
}
SEQ2SEQ |= {
    "vocab_size": 100,
    "d_model": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
VISION = {**HEADS, "hidden_size": 64, "intermediate_size": 128, "image_size": 32, "patch_size": 8}
T5 = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
SPEECH = {
    **HEADS,
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 128,
    "conv_dim": [16, 16],
    "conv_stride": [4, 4],
    "conv_kernel": [8, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
IDS = torch.arange(24).reshape(2, 12) * 7 % 90 + 5


def tokens() -> dict[str, Any]:
    return {"input_ids": IDS}


def pairs() -> dict[str, Any]:
    return {"input_ids": IDS, "decoder_input_ids": IDS % 50}


def pixels(side: int = 32) -> dict[str, Any]:
    return {"pixel_values": torch.linspace(-1, 1, 6 * side * side).reshape(2, 3, side, side)}


def captions() -> dict[str, Any]:
    return {"input_ids": IDS, **pixels()}


def picture() -> dict[str, Any]:
    """A picture of 16 tokens, then words."""
    return {"input_ids": torch.cat([torch.full((2, 16), 98), IDS[:, :6]], 1), **pixels()}


def sound() -> dict[str, Any]:
    return {"input_values": torch.sin(torch.arange(3200).reshape(2, 1600) * 0.1)}


def mel() -> dict[str, Any]:
    return {"input_features": torch.linspace(-1, 1, 640).reshape(2, 8, 40), "decoder_input_ids": IDS % 50}


def clip() -> Any:
    text = {**ENCODER, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    return tf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=32)


def llava() -> Any:
    text, vision = tf.LlamaConfig(**DECODER), tf.CLIPVisionConfig(**VISION)
    return tf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=98, image_token_id=98)


def vit_gpt2() -> Any:
    decoder = {
        "vocab_size": 100,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "add_cross_attention": True,
    }
    parts = tf.ViTConfig(**VISION), tf.GPT2Config(**decoder, bos_token_id=1, eos_token_id=2)
    return tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts)


def rt_detr() -> Any:
    """With a backbone whose norms are frozen."""
    backbone = tf.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    sizes = {"encoder_hidden_dim": 32, "encoder_in_channels": [16, 32, 32], "encoder_ffn_dim": 64, "encoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_in_channels": [32, 32, 32]}
    decoder = {"d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 1, "num_queries": 5, "num_denoising": 0}
    return tf.RTDetrConfig(backbone_config=backbone, **sizes, **heads, **decoder)


def config(name: str, *options: dict[str, Any], **more: Any) -> Callable[[], Any]:
    merged = {key: value for each in (*options, more) for key, value in each.items()}
    return lambda: getattr(tf, f"{name}Config")(**merged)


MOE = {"num_experts_per_tok": 2}
# By the class with its head: the config, and what the model reads.
FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "BertForMaskedLM": (config("Bert", ENCODER), tokens),
    "RobertaForSequenceClassification": (config("Roberta", ENCODER), tokens),
    "DistilBertForSequenceClassification": (
        config("DistilBert", vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=64),
        tokens,
    ),
    "ElectraForPreTraining": (config("Electra", ENCODER, embedding_size=64), tokens),
    "AlbertForMaskedLM": (config("Albert", ENCODER, embedding_size=32), tokens),
    "ModernBertForMaskedLM": (config("ModernBert", ENCODER, pad_token_id=0, cls_token_id=1, sep_token_id=2), tokens),
    "LlamaForCausalLM": (config("Llama", DECODER), tokens),
    "Qwen2ForCausalLM": (config("Qwen2", DECODER, tie_word_embeddings=True), tokens),
    "Qwen3ForCausalLM": (config("Qwen3", DECODER), tokens),
    "GemmaForCausalLM": (config("Gemma", DECODER), tokens),
    "MistralForCausalLM": (config("Mistral", DECODER), tokens),
    "PhiForCausalLM": (config("Phi", DECODER), tokens),
    "FalconForCausalLM": (config("Falcon", HEADS, vocab_size=100, hidden_size=64), tokens),
    "T5ForConditionalGeneration": (config("T5", T5), pairs),
    "BartForConditionalGeneration": (config("Bart", SEQ2SEQ), pairs),
    "MarianMTModel": (config("Marian", SEQ2SEQ), pairs),
    "MixtralForCausalLM": (config("Mixtral", DECODER, MOE, num_local_experts=4), tokens),
    "Qwen3MoeForCausalLM": (config("Qwen3Moe", DECODER, MOE, num_experts=4, moe_intermediate_size=32), tokens),
    "GraniteMoeForCausalLM": (config("GraniteMoe", DECODER, MOE, num_local_experts=4), tokens),
    "ViTForImageClassification": (config("ViT", VISION), pixels),
    "SwinForImageClassification": (
        config("Swin", image_size=32, patch_size=4, embed_dim=32, depths=[1, 1], num_heads=[2, 4], window_size=4),
        pixels,
    ),
    "CLIPModel": (clip, captions),
    "LlavaForConditionalGeneration": (llava, picture),
    "VisionEncoderDecoderModel": (vit_gpt2, lambda: {**pixels(), "decoder_input_ids": IDS}),
    "WhisperForConditionalGeneration": (
        config("Whisper", SEQ2SEQ, num_mel_bins=8, max_source_positions=20, max_target_positions=40),
        mel,
    ),
    "Wav2Vec2ForCTC": (config("Wav2Vec2", SPEECH), sound),
    "HubertForCTC": (config("Hubert", SPEECH), sound),
}
GPT = {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
NOMIC = {"num_key_value_heads": 4}
# Tried at 4 bits alone, where weights may get zero points or more bits: names, structures and roads of their own.
OTHERS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "GPT2LMHeadModel": (config("GPT2", GPT), tokens),
    "OPTForCausalLM": (config("OPT", DECODER, ffn_dim=128, word_embed_proj_dim=64), tokens),
    "BloomForCausalLM": (config("Bloom", vocab_size=100, hidden_size=64, n_layer=2, n_head=4), tokens),
    "GPTNeoXForCausalLM": (config("GPTNeoX", ENCODER), tokens),
    "Phi3ForCausalLM": (config("Phi3", DECODER), tokens),
    "Olmo2ForCausalLM": (config("Olmo2", DECODER), tokens),
    "CohereForCausalLM": (config("Cohere", DECODER), tokens),
    "StableLmForCausalLM": (config("StableLm", DECODER), tokens),
    "Starcoder2ForCausalLM": (config("Starcoder2", DECODER), tokens),
    "Glm4ForCausalLM": (config("Glm4", DECODER), tokens),
    # Shared experts beside those that are merged.
    "Glm4MoeForCausalLM": (
        config("Glm4Moe", DECODER, MOE, n_routed_experts=4, moe_intermediate_size=32, first_k_dense_replace=1),
        tokens,
    ),
    "Ernie4_5_MoeForCausalLM": (
        config("Ernie4_5_Moe", DECODER, moe_num_experts=4, moe_k=2, moe_intermediate_size=32),
        tokens,
    ),
    # One weight becomes three as they are loaded.
    "NomicBertModel": (config("NomicBert", ENCODER, NOMIC), tokens),
    "GteModel": (config("Gte", ENCODER, NOMIC), tokens),
    "JinaEmbeddingsV3Model": (config("JinaEmbeddingsV3", ENCODER, NOMIC), tokens),
    # Its quantized model has other modules than its float one.
    "Llama4ForCausalLM": (
        config("Llama4Text", DECODER, MOE, num_local_experts=4, intermediate_size_mlp=128, interleave_moe_layer_step=1),
        tokens,
    ),
    "RwkvForCausalLM": (
        config("Rwkv", vocab_size=100, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64),
        tokens,
    ),
    "IJepaForImageClassification": (config("IJepa", VISION), pixels),
    "XLNetLMHeadModel": (config("XLNet", vocab_size=100, d_model=64, n_layer=2, n_head=4, d_inner=128), tokens),
    "DebertaV2ForMaskedLM": (config("DebertaV2", ENCODER), tokens),
    "XLMRobertaForMaskedLM": (config("XLMRoberta", ENCODER), tokens),
    # Tables of other names: HashBucketCodepointEmbedder_3, tokens_embed, w.
    "CanineForSequenceClassification": (
        config(
            "Canine", ENCODER, num_hash_buckets=512, downsampling_rate=4, local_transformer_stride=8, bos_token_id=1
        ),
        tokens,
    ),
    # A constant of its loss is called `empty_weight`.
    "EomtForUniversalSegmentation": (
        config("Eomt", {**VISION, "num_attention_heads": 4}, num_queries=5, num_blocks=1, num_upscale_blocks=1),
        pixels,
    ),
    # Norms whose weights are no parameters.
    "RTDetrForObjectDetection": (rt_detr, pixels),
    # Initialized by name; shared experts coded as those that are merged, for their rows are as long.
    "Wav2Vec2BertForCTC": (
        config("Wav2Vec2Bert", SPEECH, feature_projection_input_dim=24, layerdrop=0.0, add_adapter=False),
        lambda: {"input_features": torch.randn(2, 12, 24)},
    ),
    "Glm4MoeModel": (
        config("Glm4Moe", DECODER, MOE, n_routed_experts=4, moe_intermediate_size=48, first_k_dense_replace=1),
        tokens,
    ),
    "OpenAIGPTLMHeadModel": (config("OpenAIGPT", GPT), tokens),
    "CTRLForSequenceClassification": (
        config("CTRL", vocab_size=100, n_embd=64, dff=128, n_layer=2, n_head=4, n_positions=64, pad_token_id=0),
        tokens,
    ),
}
FLOAT = ("Llama4ForCausalLM", "EomtForUniversalSegmentation", "RTDetrForObjectDetection")  # left as they are
# The lowest SQNR of logits against float at 8 bits, with random weights.
FORMATS: dict[str, dict[str, Any]] = {
    "8": {"bits": 8},
    "4": {"bits": 4},
    "fp8": {"format": "fp8_e4m3"},
}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Any:
    tf.utils.logging.set_verbosity_error()
    tf.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the float directory of a class, once."""
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            torch.manual_seed(1)
            getattr(tf, name)({**FAMILIES, **OTHERS}[name][0]()).save_pretrained(path)
        return path

    return make


def load(name: str, path: Path, **options: Any) -> tuple[Any, dict[str, set[str]]]:
    torch.manual_seed(2)  # for what a head of another task makes up
    model, info = getattr(tf, name).from_pretrained(path, output_loading_info=True, **options)
    return model.eval(), {key: {PARTS.sub("", str(each)) for each in info[key]} for key in KEYS}


PARTS = re.compile("_(packed|scale|shape)$")  # of what a head that is not loaded has
KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def logits(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        out = model(**inputs)
    names = ("logits", "logits_per_image", "last_hidden_state")
    return next(getattr(out, name) for name in names if getattr(out, name, None) is not None).double()


def sqnr(x: Any, y: Any) -> float:
    noise = ((x - y) ** 2).sum()
    return float("inf") if noise == 0 else float(10 * torch.log10((x**2).sum() / noise))


def assert_read_back(source: Path, out: Path, name: str, inputs: dict[str, Any], least: float = 90.0) -> float:
    """The keys of the float model, and the numbers that we say; return the SQNR against float."""
    mo.dequantize_file(out, out.with_name("plain"), durable=False)
    (whole, known), (theirs, found) = load(name, source), load(name, out)
    ours, _ = load(name, out.with_name("plain"))
    assert found == known
    for key, weight in theirs.named_parameters():
        if ".experts." in key:  # merged, they stay in the dtype of the scales, and would compute in it
            weight.data = weight.data.float()
    assert sqnr(logits(ours, inputs), logits(theirs, inputs)) > least
    return sqnr(logits(whole, inputs), logits(theirs, inputs))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_read_back(source: Callable[[str], Path], tmp_path: Path, name: str, form: str) -> None:
    """H1: heads that are tied, renamed branches, merged experts, weights that a model initializes by name."""
    report = mo.quantize_file(source(name), tmp_path / "q", durable=False, **FORMATS[form])
    assert report.totals.changed >= 4
    # Experts are added up in another order once they are merged.
    db = assert_read_back(source(name), tmp_path / "q", name, FAMILIES[name][1]())
    print(f"\n{name}, {form}: {report.totals.changed} weights, {db:.1f} dB")
    assert db > (15.0 if form != "4" else -5.0)


@pytest.mark.parametrize("name", OTHERS)
def test_another_family_is_read_back(source: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """H1: what a loader splits or replaces stays float, and said so; Conv1D has codes by default (H2)."""
    report = mo.quantize_file(source(name), tmp_path / "q", bits=4, durable=False)
    assert (report.totals.changed == 0) == (name in FLOAT)
    for tensor in report.tensors:
        if tensor.name.endswith("Wqkv.weight") or (name == "GteModel" and tensor.name.endswith("qkv_proj.weight")):
            assert (tensor.decision, tensor.reason[:26]) == ("copy", "transformers splits it as ")
    if name == "IJepaForImageClassification":  # it would initialize modules that hold codes
        with pytest.raises(mo.OptionError, match="transformers reads it only where all weights are coded alike"):
            mo.quantize_file(source(name), tmp_path / "m", bits=8, bits_of={"*query*": 4}, scheme="symmetric")
    db = assert_read_back(source(name), tmp_path / "q", name, OTHERS[name][1]())
    print(f"\n{name}: {report.totals.changed} weights, {db:.1f} dB")


@pytest.mark.parametrize("name", ["Glm4MoeForCausalLM", "NomicBertModel", "GPT2LMHeadModel"])
def test_mixed_bits_of_another_family(source: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """H1: by the modules' names, where not all are coded alike; or refused, where these are not those of the file."""
    glob = {"Glm4MoeForCausalLM": "*q_proj*", "NomicBertModel": "*fc11*", "GPT2LMHeadModel": "*c_attn*"}[name]
    options: dict[str, Any] = {"bits": 8, "bits_of": {glob: 4}, "scheme": "symmetric", "durable": False}
    if name != "Glm4MoeForCausalLM":
        with pytest.raises(mo.OptionError, match="transformers reads it only where all weights are coded alike"):
            mo.quantize_file(source(name), tmp_path / "q", **options)
        return
    mo.quantize_file(source(name), tmp_path / "q", **options)
    assert_read_back(source(name), tmp_path / "q", name, tokens())


@pytest.mark.parametrize("form", FORMATS)
def test_a_second_pass_is_read_back(source: Callable[[str], Path], tmp_path: Path, form: str) -> None:
    """H56: feed-forward layers by one command, attention by another; and float8 to fewer bits."""
    name = "LlamaForCausalLM"
    mo.quantize_file(source(name), tmp_path / "1", exclude=["*self_attn*"], durable=False, **FORMATS["8"])
    second = {"8": FORMATS["8"], "4": FORMATS["4"], "fp8": FORMATS["4"]}[form]
    if form == "fp8":
        mo.quantize_file(source(name), tmp_path / "1", overwrite=True, durable=False, **FORMATS["fp8"])
    report = mo.quantize_file(tmp_path / "1", tmp_path / "q", durable=False, **second)
    assert report.totals.changed == (14 if form == "fp8" else 8)
    assert_read_back(source(name), tmp_path / "q", name, tokens())


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ("BertModel", "BertForSequenceClassification"),
        ("BertForMaskedLM", "BertModel"),
        ("BertForMaskedLM", "BertForTokenClassification"),
        ("DistilBertModel", "DistilBertForSequenceClassification"),
        ("AlbertForMaskedLM", "AlbertModel"),
        ("LlamaModel", "LlamaForCausalLM"),
        ("LlamaForCausalLM", "LlamaForSequenceClassification"),
        ("ViTModel", "ViTForImageClassification"),
        ("ViTForImageClassification", "ViTModel"),
        ("T5ForConditionalGeneration", "T5EncoderModel"),
    ],
)
@pytest.mark.parametrize("dequantize", [True, False])
def test_heads_come_and_go(tmp_path: Path, saved: str, loaded: str, dequantize: bool) -> None:
    """H1: with a base model's prefix and without; by the targets alone too, where the model loads so at all."""
    of_family, inputs = next(value for name, value in FAMILIES.items() if name[:3] == saved[:3])
    torch.manual_seed(1)
    getattr(tf, saved)(of_family()).save_pretrained(tmp_path / "a")
    mo.quantize_file(tmp_path / "a", tmp_path / "q", bits=8, durable=False)
    if not dequantize:
        if saved.startswith("T5"):
            pytest.skip("transformers initializes its weights by name")
        forget_dequantize(tmp_path / "q")
    read = {key: value for key, value in inputs().items() if "decoder" not in key}
    assert_read_back(tmp_path / "a", tmp_path / "q", loaded, read)


def forget_dequantize(path: Path) -> None:
    said = json.loads((path / "config.json").read_text())
    del said["quantization_config"]["dequantize"]
    (path / "config.json").write_text(json.dumps(said))


def matched(model: Any, path: Path) -> set[str]:
    """The linear layers that a loader finds by the targets."""
    from compressed_tensors.utils.match import match_named_modules

    said = json.loads((path / "config.json").read_text())["quantization_config"]
    targets = [target for group in said["config_groups"].values() for target in group["targets"]]
    found = match_named_modules(model, targets, said["ignore"])
    return {name for name, module in found if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize(
    ("name", "exclude"),
    [
        ("LlavaForConditionalGeneration", "vision_tower"),
        ("LlavaForConditionalGeneration", "language_model"),
        ("CLIPModel", "vision_model"),
        ("CLIPModel", "text_model"),
        ("T5ForConditionalGeneration", "decoder"),
        ("BartForConditionalGeneration", "encoder"),
        ("ViTForImageClassification", "layer.0"),
        ("LlamaForCausalLM", "layers.1"),
    ],
)
def test_a_branch_that_is_excluded_stays_float(
    source: Callable[[str], Path], tmp_path: Path, name: str, exclude: str
) -> None:
    """H1: targets name exactly the modules that are packed, as transformers names them."""
    report = mo.quantize_file(source(name), tmp_path / "q", bits=8, exclude=[f"*{exclude}.*"], durable=False)
    model, _ = load(name, source(name))
    count = sum(tensor.decision == "quantize" for tensor in report.tensors)
    found = matched(model, tmp_path / "q")
    assert len(found) == count > 0
    renamed = {"layer.0": "layers.0"}.get(exclude, exclude)
    assert not any(f"{renamed}." in name for name in found)
    assert_read_back(source(name), tmp_path / "q", name, FAMILIES[name][1]())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("name", "glob"),
    [
        ("BertForMaskedLM", "*word_embeddings.weight"),
        ("LlamaForCausalLM", "*embed_tokens.weight"),
        ("LlamaForCausalLM", "lm_head.weight"),
        ("Qwen2ForCausalLM", "*embed_tokens.weight"),
        ("T5ForConditionalGeneration", "shared.weight"),
        ("VisionEncoderDecoderModel", "*c_fc.weight"),
    ],
)
def test_embeddings_and_conv1d(source: Callable[[str], Path], tmp_path: Path, name: str, glob: str, bits: int) -> None:
    """H2, H23, H24: embeddings, tied ones too, and Conv1D are read back where they are included."""
    mo.quantize_file(source(name), tmp_path / "q", bits=bits, include=[glob], durable=False)
    assert_read_back(source(name), tmp_path / "q", name, FAMILIES[name][1]())


@pytest.mark.parametrize(
    ("name", "include"), [("T5ForConditionalGeneration", "shared.weight"), ("Qwen2ForCausalLM", "*embed_tokens.weight")]
)
def test_what_is_chosen_by_default_is_read_back(tmp_path: Path, name: str, include: str) -> None:
    """4 bits are too few for one weight, and 32 divides the rows of none of some: all are coded alike."""
    torch.manual_seed(1)
    options = {"d_ff": 80} if name[:2] == "T5" else {"intermediate_size": 80}
    of_family = config(name[:2], T5, options) if name[:2] == "T5" else config("Qwen2", DECODER, options)
    model = getattr(tf, name)(of_family())
    wide = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        wide.weight[:, ::32] *= 15
    model.save_pretrained(tmp_path / "a")
    report = mo.quantize_file(tmp_path / "a", tmp_path / "q", bits=4, include=[include], durable=False)
    assert any("coded alike" in warning for warning in report.warnings)
    assert_read_back(tmp_path / "a", tmp_path / "q", name, FAMILIES[name][1]())


def test_experts_are_coded_alike(source: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers makes one tensor of them; other layers may have other bits."""
    name = "MixtralForCausalLM"
    with pytest.raises(mo.OptionError, match=r"experts.0.w1.weight': transformers reads it only where all weights are"):
        mo.quantize_file(source(name), tmp_path / "q", bits=4, bits_of={"*experts.0.*": 8}, durable=False)
    mo.quantize_file(source(name), tmp_path / "q", bits=4, bits_of={"*q_proj*": 8}, durable=False)
    assert_read_back(source(name), tmp_path / "q", name, tokens())


@pytest.mark.parametrize("name", ["BertForMaskedLM", "ElectraForPreTraining", "T5ForConditionalGeneration"])
def test_zero_points(source: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """H1: a plain load reads asymmetric codes; what it can't, matrices of few rows, stays float."""
    mo.quantize_file(source(name), tmp_path / "q", bits=4, scheme="asymmetric", durable=False)
    assert_read_back(source(name), tmp_path / "q", name, FAMILIES[name][1]())


@pytest.mark.parametrize(("form", "least"), [("mxfp4", 60.0), ("nvfp4", 40.0), ("nf4", 35.0)])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlavaForConditionalGeneration", "ViTForImageClassification"])
def test_named_formats(source: Callable[[str], Path], tmp_path: Path, name: str, form: str, least: float) -> None:
    """H1: transformers computes these in fewer bits, so it is near and not equal."""
    if form == "nf4":
        pytest.importorskip("bitsandbytes")
    mo.quantize_file(source(name), tmp_path / "q", format=form, durable=False)
    assert_read_back(source(name), tmp_path / "q", name, FAMILIES[name][1](), least)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 4, "scheme": "asymmetric"}, "experts.0.w1.weight' must have no zero points"),
        ({"format": "nvfp4"}, "experts.0.w1.weight' must have no global scales"),
        (
            {"exclude": ["*layers.0*experts.1.w2.weight"]},
            "experts.1.w2.weight' must be quantized like the other experts",
        ),
    ],
)
def test_experts_that_can_not_be_merged(
    source: Callable[[str], Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """H1: transformers makes one tensor of experts, from codes without zero points, of all or of none."""
    with pytest.raises(ValueError, match=message):
        mo.quantize_file(source("MixtralForCausalLM"), tmp_path / "q", durable=False, **options)
    assert not (tmp_path / "q").exists()


def test_pruned_and_quantized(source: Callable[[str], Path], tmp_path: Path) -> None:
    """H1 through prune and crop."""
    bert = source("BertForMaskedLM")
    mo.prune_file(bert, tmp_path / "p", sparsity=0.5, then=mo.QuantizeOptions(bits=8), durable=False)
    model, found = load("BertForMaskedLM", tmp_path / "p")
    assert not any(found.values())
    llama = source("LlamaForCausalLM")
    mo.crop_file(llama, tmp_path / "c", keep=0.5, what=["ffn"], then=mo.QuantizeOptions(bits=8), durable=False)
    model, found = load("LlamaForCausalLM", tmp_path / "c")
    assert not any(found.values())
    mo.dequantize_file(tmp_path / "c", tmp_path / "plain", durable=False)
    ours, _ = load("LlamaForCausalLM", tmp_path / "plain")
    assert sqnr(logits(ours, tokens()), logits(model, tokens())) > 90
