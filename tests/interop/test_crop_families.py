"""Transformers whose layers are BERT's or Llama's under other names: cropped, loaded, and saying the same."""

import os
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
from modelopt_rs.interop.transformers import from_pretrained  # noqa: E402
from saved_models import randomized, save, write  # noqa: E402

# What other packages warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

IDS = np.random.default_rng(0).integers(3, 50, (2, 11))
SMALL = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 40}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DISTIL = {"vocab_size": 50, "dim": 48, "n_layers": 2, "n_heads": 6, "hidden_dim": 40}
GROUPED = {"num_key_value_heads": 2}

# The type, its options, the class of the model; heads alone: loaded by transformers, by our loader, or refused.
ENCODERS: list[tuple[str, dict[str, Any], str, str]] = [
    ("bert", {}, "AutoModelForMaskedLM", "ours"),
    ("roberta", {}, "AutoModelForMaskedLM", "ours"),
    ("xlm-roberta", {}, "AutoModelForMaskedLM", "ours"),
    ("camembert", {}, "AutoModelForMaskedLM", "ours"),
    ("electra", {"embedding_size": 20}, "AutoModelForMaskedLM", "ours"),
    ("electra", {"embedding_size": 48}, "AutoModelForPreTraining", "ours"),
    ("electra", {"embedding_size": 48}, "AutoModelForMaskedLM", "ours"),
    ("mpnet", {}, "AutoModelForMaskedLM", "refused"),
    ("distilbert", {}, "AutoModelForMaskedLM", "refused"),
    ("distilbert", {}, "AutoModelForSequenceClassification", "refused"),
]
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("llama", GROUPED),
    ("mistral", GROUPED),
    ("qwen2", GROUPED),
    ("qwen3", GROUPED | {"head_dim": 12}),
    ("gemma", GROUPED | {"head_dim": 12}),
    ("gemma2", GROUPED | {"head_dim": 12}),
    ("gemma3_text", GROUPED | {"head_dim": 12}),
    ("phi", GROUPED),
    ("phi3", GROUPED),
    ("phi3", {"num_key_value_heads": 6}),
    ("smollm3", GROUPED),
    ("olmo", GROUPED),
    ("granite", GROUPED),
    ("seed_oss", GROUPED | {"head_dim": 12}),
    ("exaone4", GROUPED),
    ("ernie4_5", GROUPED | {"head_dim": 12}),
    ("cohere", GROUPED),
    ("cohere2", GROUPED),
    ("glm", GROUPED | {"head_dim": 8}),
    ("glm4", GROUPED | {"head_dim": 8}),
    ("nemotron", GROUPED),
    ("arcee", GROUPED),
    ("starcoder2", GROUPED),
]
# Whose config.json or norms don't allow heads to go alone.
WITHOUT_HEADS: list[tuple[str, dict[str, Any]]] = [
    ("olmo2", GROUPED),
    ("olmo3", GROUPED),
    ("stablelm", GROUPED),
    ("stablelm", {"qk_layernorm": True, "num_key_value_heads": 6}),
    ("phi", {"qk_layernorm": True, "num_key_value_heads": 6}),
]


def saved(kind: str, options: dict[str, Any], auto: str, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Save a small model of random weights, biases and norms random too; return its tensors and its config.json."""
    config = transformers.AutoConfig.for_model(kind, **(DISTIL if kind == "distilbert" else SMALL), **options)
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config).eval()
    return save(randomized(model), folder)


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(IDS)).logits.numpy()


def clear(tensors: dict[str, np.ndarray], groups: tuple[mo.prune.Group, ...]) -> dict[str, int]:
    """Zero half of the units of each group; return how many are left."""
    rng, keep = np.random.default_rng(0), {}
    for group in groups:
        block = group.units // group.blocks  # each loses the same number
        order = [first + rng.permutation(block)[: block // 2] for first in range(0, group.units, block)]
        gone = np.concatenate(order)
        keep[group.name] = group.units - len(gone)
        for member in group.members:
            for unit in gone if member.scored else ():
                first = member.offset + unit * member.size
                index = [slice(None)] * member.axis + [slice(first, first + member.size)]
                tensors[member.name][tuple(index)] = 0
    return keep


def crop_and_compare(kind, options, auto, what, folder, load=None) -> None:
    tensors, config = saved(kind, options, auto, folder / "whole")
    groups = mo.prune.transformer_groups(tensors, config, what)
    keep = clear(tensors, groups)
    loader = getattr(transformers, auto)
    want = logits(loader.from_pretrained(write(folder / "zeros", tensors, config)))
    small, report = mo.prune.crop(tensors, groups, keep=keep)
    assert report.bytes_after < report.bytes_before
    path = write(folder / "small", small, mo.prune.cropped_config(config, report))
    got = logits(loader.from_pretrained(path) if load is None else load(loader, path))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("kind", "options", "auto", "heads"), ENCODERS, ids=str)
def test_an_encoder_without_dead_ffn_units_says_the_same(kind, options, auto, heads, tmp_path):
    """H35."""
    crop_and_compare(kind, options, auto, "ffn", tmp_path)


@pytest.mark.parametrize(("kind", "options", "auto", "heads"), ENCODERS, ids=str)
def test_an_encoder_without_dead_heads_says_the_same_or_is_refused(kind, options, auto, heads, tmp_path):
    """H35: a head is as wide as the model by their number; what config.json can't say is refused before anything."""
    if heads == "ours":
        crop_and_compare(kind, options, auto, ("heads", "ffn"), tmp_path, from_pretrained)
        return
    saved(kind, options, auto, tmp_path / "whole")
    with pytest.raises(OptionError, match=r"must be heads times their width .* keep the same"):
        mo.crop_file(tmp_path / "whole", tmp_path / "small", keep=0.5, what="heads")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("what", ["ffn", "heads", "query_heads"])
@pytest.mark.parametrize(("kind", "options"), DECODERS, ids=str)
def test_a_decoder_without_dead_units_says_the_same(kind, options, what, tmp_path):
    """H35."""
    options = options | ({"num_key_value_heads": 3} if what == "query_heads" else {})
    crop_and_compare(kind, options, "AutoModelForCausalLM", what, tmp_path)


@pytest.mark.parametrize(("kind", "options"), WITHOUT_HEADS, ids=str)
def test_heads_that_a_norm_or_a_config_holds_together_are_refused(kind, options, tmp_path):
    """H35: OLMo 2 and 3 divide by the size of all queries; StableLM's head is as wide as the model by their number."""
    crop_and_compare(kind, options, "AutoModelForCausalLM", "ffn", tmp_path)
    with pytest.raises(OptionError, match=r"over all of them, .* use 'ffn'$|'ffn' alone$"):
        mo.crop_file(tmp_path / "whole", tmp_path / "no", keep=0.5, what="heads")


@pytest.mark.parametrize(
    ("kind", "options", "auto"),
    [
        *((kind, options, auto) for kind, options, auto, _ in ENCODERS),
        *((kind, options, "AutoModelForCausalLM") for kind, options in DECODERS),
        ("stablelm", GROUPED, "AutoModelForCausalLM"),
        ("phi", {"qk_layernorm": True, "num_key_value_heads": 6}, "AutoModelForCausalLM"),
    ],
    ids=str,
)
def test_directories_in_one_proportion_load(kind, options, auto, tmp_path):
    """H35: heads, feed-forward and hidden width in one share, every tensor known, the configuration rewritten."""
    saved(kind, options, auto, tmp_path / "whole")
    mo.crop_file(tmp_path / "whole", tmp_path / "small", keep=0.5, what="all", durable=False)
    model, messages = getattr(transformers, auto).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not messages["missing_keys"]
    assert not messages["mismatched_keys"]
    assert np.isfinite(logits(model)).all()
