"""Families of transformers, with configurations of some hundred thousand weights."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

from zoo.structures import Inputs, Structure

HEADS = {"num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {**HEADS, "vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 64}
DECODER = {**ENCODER, **IDS, "num_key_value_heads": 2, "head_dim": 16}
HALF = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
SEQ2SEQ = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in HALF.items()}
SEQ2SEQ |= {**IDS, "vocab_size": 200, "d_model": 64, "decoder_start_token_id": 1}
T5 = {"vocab_size": 200, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
VISION = {**HEADS, "hidden_size": 64, "intermediate_size": 128, "image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
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
GPT2 = {
    "vocab_size": 200,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts_per_tok": 2, "num_local_experts": 4}


def words(batch: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 200, (batch, 8 + 2 * batch))}


def masked(batch: int) -> dict[str, torch.Tensor]:
    ids = words(batch)["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pairs(batch: int) -> dict[str, torch.Tensor]:
    ids = words(batch)["input_ids"]
    return {"input_ids": ids, "decoder_input_ids": ids.flip(0) // 2 + 3}


def pixels(batch: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def sound(batch: int) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(batch, 1600)}


def mel(batch: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(batch, 8, 40), "decoder_input_ids": torch.randint(3, 200, (batch, 6))}


def captions(batch: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 200, (batch, 12)), **pixels(batch)}


class Answer(torch.nn.Module):
    """A model of transformers that takes its inputs in an order and returns one tensor."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return answer(self.model(**dict(zip(self.names, inputs, strict=True))))


def answer(output: Any) -> torch.Tensor:
    """The tensor of an output that says most."""
    names = ("logits", "logits_per_image", "last_hidden_state", "start_logits", "prediction_outputs")
    return next(found for name in names if (found := getattr(output, name, None)) is not None)


def family(head: str, config: Callable[[], Any], inputs: Inputs, **more: Any) -> Structure:
    def make() -> Any:
        chosen = config()
        chosen.use_cache = False
        return getattr(tf, head)(chosen)

    return Structure(head, "transformers", make, inputs, saved=True, words=inputs in (words, masked, pairs), **more)


def config(name: str, *options: dict[str, Any], **more: Any) -> Callable[[], Any]:
    merged = {key: value for each in (*options, more) for key, value in each.items()}
    return lambda: getattr(tf, f"{name}Config")(**merged)


def clip() -> Any:
    text = {**ENCODER, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    return tf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=32)


DISTIL = {"vocab_size": 200, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 64}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [32, 64],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 32,
}
CONVNEXT = {"hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2}
RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1]}
STRUCTURES = [
    family("BertForMaskedLM", config("Bert", ENCODER), masked),
    family("RobertaForSequenceClassification", config("Roberta", ENCODER), words),
    family("DistilBertForSequenceClassification", config("DistilBert", DISTIL), words),
    family("ElectraForPreTraining", config("Electra", ENCODER, embedding_size=64), words),
    family("AlbertForMaskedLM", config("Albert", ENCODER, embedding_size=32), words),
    family("MPNetForMaskedLM", config("MPNet", ENCODER), words),
    family("DebertaV2ForMaskedLM", config("DebertaV2", ENCODER, DEBERTA), masked),
    family(
        "ModernBertForMaskedLM", config("ModernBert", ENCODER, pad_token_id=0, cls_token_id=1, sep_token_id=2), words
    ),
    family("MobileBertForMaskedLM", config("MobileBert", ENCODER, embedding_size=32, intra_bottleneck_size=32), words),
    family("SqueezeBertForMaskedLM", config("SqueezeBert", ENCODER, embedding_size=64), words),
    family("GPT2LMHeadModel", config("GPT2", GPT2), masked),
    family(
        "OPTForCausalLM",
        config("OPT", HEADS, IDS, vocab_size=200, hidden_size=64, ffn_dim=128, word_embed_proj_dim=64),
        masked,
    ),
    family("BloomForCausalLM", config("Bloom", vocab_size=200, hidden_size=64, n_layer=2, n_head=4), masked),
    family("GPTNeoXForCausalLM", config("GPTNeoX", ENCODER), masked),
    family("LlamaForCausalLM", config("Llama", DECODER), masked),
    family("Qwen2ForCausalLM", config("Qwen2", DECODER, tie_word_embeddings=True), masked),
    family("Qwen3ForCausalLM", config("Qwen3", DECODER), masked),
    family("GemmaForCausalLM", config("Gemma", DECODER), masked),
    family("Gemma2ForCausalLM", config("Gemma2", DECODER), masked),
    family("MistralForCausalLM", config("Mistral", DECODER), masked),
    family("PhiForCausalLM", config("Phi", DECODER), masked),
    family("Phi3ForCausalLM", config("Phi3", DECODER), masked),
    family("FalconForCausalLM", config("Falcon", HEADS, vocab_size=200, hidden_size=64), masked),
    family("Olmo2ForCausalLM", config("Olmo2", DECODER), masked),
    family("MixtralForCausalLM", config("Mixtral", DECODER, MOE), masked),
    family("T5ForConditionalGeneration", config("T5", T5), pairs),
    family("BartForConditionalGeneration", config("Bart", SEQ2SEQ), pairs),
    family("MarianMTModel", config("Marian", SEQ2SEQ), pairs),
    family(
        "WhisperForConditionalGeneration",
        config("Whisper", SEQ2SEQ, num_mel_bins=8, max_source_positions=20, max_target_positions=40),
        mel,
    ),
    family("Wav2Vec2ForCTC", config("Wav2Vec2", SPEECH), sound),
    family("HubertForCTC", config("Hubert", SPEECH), sound),
    family("ViTForImageClassification", config("ViT", VISION), pixels),
    family("DeiTForImageClassification", config("DeiT", VISION), pixels),
    family("BeitForImageClassification", config("Beit", VISION), pixels),
    family("Dinov2ForImageClassification", config("Dinov2", VISION, mlp_ratio=2), pixels),
    family("SwinForImageClassification", config("Swin", SWIN), pixels),
    family("ConvNextV2ForImageClassification", config("ConvNextV2", CONVNEXT), pixels),
    family("ResNetForImageClassification", config("ResNet", RESNET), pixels),
    family("SegformerForSemanticSegmentation", config("Segformer", SEGFORMER), pixels),
    family(
        "YolosForObjectDetection", config("Yolos", {**VISION, "image_size": [32, 32]}, num_detection_tokens=5), pixels
    ),
    family("CLIPModel", clip, captions),
]
