"""Cropped models of the BERT and Llama families are loaded by transformers and say the same."""

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
safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

from modelopt_rs.interop.embeddings import SENTENCES  # noqa: E402
from modelopt_rs.interop.transformers import from_pretrained  # noqa: E402
from saved_models import randomized, save, write  # noqa: E402

# What other packages warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

IDS = np.random.default_rng(0).integers(0, 50, (2, 11))
SMALL = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 40}


def model_of(kind: str, **options: Any) -> Any:
    """A small model of random weights; biases and norms random, too."""
    config = transformers.AutoConfig.for_model(kind, **SMALL, **options)
    torch.manual_seed(0)
    auto = (
        transformers.AutoModelForCausalLM if kind in ("llama", "mistral", "qwen2", "qwen3") else transformers.AutoModel
    )
    return randomized(auto.from_config(config).eval())


def outputs(model: Any) -> np.ndarray:
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(IDS))
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


def clear(tensors: dict[str, np.ndarray], groups: tuple[mo.prune.Group, ...], seed: int = 0) -> dict[str, int]:
    """Zero half of the units of each group; return how many are left."""
    rng, keep = np.random.default_rng(seed), {}
    for group in groups:
        gone = rng.permutation(group.units)[: group.units // 2]
        keep[group.name] = group.units - len(gone)
        for member in group.members:
            if member.scored:
                for u in gone:
                    index = [slice(None)] * tensors[member.name].ndim
                    index[member.axis] = slice(member.offset + u * member.size, member.offset + (u + 1) * member.size)
                    tensors[member.name][tuple(index)] = 0
    return keep


LLAMAS = [
    ("llama", {"num_key_value_heads": 2}),
    ("llama", {"num_key_value_heads": 6, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 2, "head_dim": 10}),
    ("mistral", {"num_key_value_heads": 2}),
    ("qwen2", {"num_key_value_heads": 2}),
    ("qwen3", {"num_key_value_heads": 2, "head_dim": 12}),
]


@pytest.mark.parametrize(("kind", "options"), LLAMAS, ids=str)
@pytest.mark.parametrize("what", [("ffn",), ("heads",), ("heads", "ffn")], ids="+".join)
def test_dead_units_are_not_missed_in_the_llama_family(kind, options, what, tmp_path):
    model = model_of(kind, **options)
    tensors, config = save(model, tmp_path / "whole")
    groups = mo.prune.transformer_groups(tensors, config, what)
    keep = clear(tensors, groups)
    want = outputs(transformers.AutoModelForCausalLM.from_pretrained(write(tmp_path / "zeros", tensors, config)))
    small, report = mo.prune.crop(tensors, groups, keep=keep)
    new = mo.prune.cropped_config(config, report)
    cropped = transformers.AutoModelForCausalLM.from_pretrained(write(tmp_path / "small", small, new))
    np.testing.assert_allclose(outputs(cropped), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert sum(p.numel() for p in cropped.parameters()) < sum(p.numel() for p in model.parameters())


def test_query_heads_go_evenly_from_each_key_value_head(tmp_path):
    tensors, config = save(model_of("llama", num_key_value_heads=2), tmp_path / "whole")
    for layer in range(2):
        for head in (1, 3):  # one of each three
            rows = slice(8 * head, 8 * head + 8)
            tensors[f"model.layers.{layer}.self_attn.q_proj.weight"][rows] = 0
            tensors[f"model.layers.{layer}.self_attn.o_proj.weight"][:, rows] = 0
    want = outputs(transformers.AutoModelForCausalLM.from_pretrained(write(tmp_path / "zeros", tensors, config)))
    groups = mo.prune.transformer_groups(tensors, config, "query_heads")
    small, report = mo.prune.crop(tensors, groups, keep=4)
    assert [group.removed.tolist() for group in report.groups] == [[1, 3]] * 2
    new = mo.prune.cropped_config(config, report)
    assert (new["num_attention_heads"], new["num_key_value_heads"], new["head_dim"]) == (4, 2, 8)
    cropped = transformers.AutoModelForCausalLM.from_pretrained(write(tmp_path / "small", small, new))
    np.testing.assert_allclose(outputs(cropped), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_that_is_zero_is_not_missed_but_by_the_norms(tied, tmp_path):
    """An RMS norm divides by the number of its inputs: its weights times sqrt(all / kept) make up for that."""
    options = {"num_key_value_heads": 2, "tie_word_embeddings": tied, "rms_norm_eps": 1e-12, "head_dim": 8}
    tensors, config = save(model_of("llama", **options), tmp_path / "whole")
    groups = mo.prune.transformer_groups(tensors, config, "hidden")
    keep = clear(tensors, groups)
    want = outputs(transformers.AutoModelForCausalLM.from_pretrained(write(tmp_path / "zeros", tensors, config)))
    small, report = mo.prune.crop(tensors, groups, keep=keep)
    for name in small:
        if name.endswith("norm.weight"):
            small[name] = small[name] * np.float32(np.sqrt(48 / keep["hidden"]))
    new = mo.prune.cropped_config(config, report)
    assert new["hidden_size"] == 24
    cropped = transformers.AutoModelForCausalLM.from_pretrained(write(tmp_path / "small", small, new))
    np.testing.assert_allclose(outputs(cropped), want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("what", [("ffn",), ("heads",), ("heads", "ffn")], ids="+".join)
def test_dead_units_are_not_missed_in_the_bert_family(kind, what, tmp_path):
    tensors, config = save(model_of(kind), tmp_path / "whole")
    groups = mo.prune.transformer_groups(tensors, config, what)
    keep = clear(tensors, groups)
    zeros = write(tmp_path / "zeros", tensors, config)
    want = outputs(transformers.AutoModel.from_pretrained(zeros))
    small, report = mo.prune.crop(tensors, groups, keep=keep)
    folder = write(tmp_path / "small", small, mo.prune.cropped_config(config, report))
    if what == ("ffn",):
        cropped = transformers.AutoModel.from_pretrained(folder)
        np.testing.assert_allclose(outputs(cropped), want, rtol=1e-4, atol=1e-4)
    cropped = from_pretrained(transformers.AutoModel, folder)
    np.testing.assert_allclose(outputs(cropped), want, rtol=1e-4, atol=1e-4)
    # what was saved again is loaded again
    cropped.save_pretrained(tmp_path / "again")
    np.testing.assert_allclose(outputs(from_pretrained(type(cropped).__base__, tmp_path / "again")), outputs(cropped))


def test_heads_may_be_cropped_twice(tmp_path):
    tensors, config = save(model_of("bert"), tmp_path / "whole")
    for keep in (4, 3):
        groups = mo.prune.transformer_groups(tensors, config, "heads")
        tensors, report = mo.prune.crop(tensors, groups, keep=keep)
        config = mo.prune.cropped_config(config, report)
    assert [len(gone) for gone in config["pruned_heads"].values()] == [3, 3]
    outputs(from_pretrained(transformers.BertModel, write(tmp_path / "small", tensors, config)))


def test_transformers_refuses_pruned_heads_and_we_say_which_are_wrong(tmp_path):
    tensors, config = save(model_of("bert"), tmp_path / "whole")
    small, report = mo.prune.crop(tensors, mo.prune.transformer_groups(tensors, config, "heads"))
    new = mo.prune.cropped_config(config, report)
    folder = write(tmp_path / "small", small, new)
    with pytest.raises(RuntimeError):  # sizes that don't match: nothing is loaded wrong in silence
        transformers.AutoModel.from_pretrained(folder)
    for wrong in ({"0": [6]}, {"0": list(range(6))}, {"7": [0]}):
        (folder / "config.json").write_text(json.dumps({**new, "pruned_heads": wrong}))
        with pytest.raises(ValueError, match="from_pretrained: pruned_heads must name some of the 6 heads of a layer"):
            from_pretrained(transformers.AutoModel, folder)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_all_in_one_proportion_loads_without_help(kind, tmp_path):
    tensors, config = save(model_of(kind), tmp_path / "whole")
    small, report = mo.prune.crop(tensors, mo.prune.transformer_groups(tensors, config), keep=0.5)
    new = mo.prune.cropped_config(config, report)
    assert "pruned_heads" not in new
    assert (new["hidden_size"], new["num_attention_heads"], new["intermediate_size"]) == (24, 3, 16)
    auto = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModel
    assert np.isfinite(outputs(auto.from_pretrained(write(tmp_path / "small", small, new)))).all()


@pytest.mark.parametrize(
    "head",
    ["BertForMaskedLM", "BertForSequenceClassification", "RobertaForSequenceClassification", "RobertaForMaskedLM"],
)
def test_hidden_knows_the_heads_of_tasks(head, tmp_path):
    kind = "bert" if head.startswith("Bert") else "roberta"
    config = transformers.AutoConfig.for_model(kind, **SMALL)
    tensors, config = save(getattr(transformers, head)(config), tmp_path / "whole")
    small, report = mo.prune.crop(tensors, mo.prune.transformer_groups(tensors, config), keep=0.5)
    folder = write(tmp_path / "small", small, mo.prune.cropped_config(config, report))
    assert np.isfinite(outputs(getattr(transformers, head).from_pretrained(folder))).all()


# -------------------------------------------------------------------------------------------------------- files

CROPS = [
    ("bert", {}, "ffn", 0.75),
    ("bert", {}, "all", 0.5),
    ("llama", {"num_key_value_heads": 2}, ("heads", "ffn"), 0.5),
    ("llama", {"num_key_value_heads": 2}, "query_heads", 4),
    ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}, "all", 0.5),
]


@pytest.mark.parametrize(("kind", "options", "what", "keep"), CROPS, ids=str)
def test_cropped_directories_load_and_mean_the_same(kind, options, what, keep, tmp_path):
    tensors, config = save(model_of(kind, **options), tmp_path / "whole")
    mo.crop_file(tmp_path / "whole", tmp_path / "small", keep=keep, what=what, durable=False)
    small, report = mo.prune.crop(tensors, mo.prune.transformer_groups(tensors, config, what), keep=keep)
    write(tmp_path / "arrays", small, mo.prune.cropped_config(config, report))
    auto = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    got, want = (outputs(auto.from_pretrained(tmp_path / name)) for name in ("small", "arrays"))
    np.testing.assert_array_equal(got, want)
    assert np.isfinite(got).all()


def test_a_directory_without_some_heads_loads_by_our_loader(tmp_path):
    save(model_of("bert"), tmp_path / "whole")
    report = mo.crop_file(tmp_path / "whole", tmp_path / "small", keep=0.5, what="heads", durable=False)
    assert any("from_pretrained" in note for note in report.notes)
    assert np.isfinite(outputs(from_pretrained(transformers.AutoModel, tmp_path / "small"))).all()


def test_cropped_and_quantized_in_one_pass_loads(tmp_path):
    pytest.importorskip("compressed_tensors", reason="the extra `interop` is not installed: compressed-tensors")
    save(model_of("llama", num_key_value_heads=2), tmp_path / "whole")
    options = {"keep": 0.75, "what": "ffn", "durable": False}
    mo.crop_file(tmp_path / "whole", tmp_path / "small", **options)
    mo.crop_file(tmp_path / "whole", tmp_path / "both", then=mo.QuantizeOptions(bits=8), **options)
    auto = transformers.AutoModelForCausalLM
    got, want = (outputs(auto.from_pretrained(tmp_path / name)) for name in ("both", "small"))
    assert (got * want).sum() / np.linalg.norm(got) / np.linalg.norm(want) > 0.99


# ------------------------------------------------------------------------------------------------ a real model


@pytest.fixture(scope="module")
def minilm() -> Path:
    pytest.importorskip("click", reason="the extra `cli` is not installed")
    from modelopt_rs.cli.demo import find_model

    try:
        return find_model()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_sentence_embeddings_of_a_cropped_minilm(minilm, tmp_path):
    tensors = safetensors_numpy.load_file(minilm / "model.safetensors")
    config = json.loads((minilm / "config.json").read_text())
    words = transformers.AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True, return_tensors="pt")

    def embed(model: Any) -> Any:
        with torch.no_grad():
            hidden = model.eval()(**words).last_hidden_state
        mask = words["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    expected = embed(transformers.AutoModel.from_pretrained(minilm))
    # The mean cosine as measured: 0.848, 0.773, 0.645.
    for what, keep, least in (
        ("ffn", {"*.ffn": 0.75}, 0.83),
        ("heads", {"*.heads": 0.5}, 0.75),
        ("both", {"*.ffn": 0.75, "*.heads": 0.5}, 0.62),
    ):
        groups = mo.prune.transformer_groups(tensors, config, ("heads", "ffn"))
        small, report = mo.prune.crop(tensors, groups, keep=keep, round_to=8)
        folder = write(tmp_path / what, small, mo.prune.cropped_config(config, report))
        cosine = (embed(from_pretrained(transformers.AutoModel, folder)) * expected).sum(1)
        mib = report.bytes_after / 2**20
        print(f"\n{what}: {mib:.1f} MiB, cosine lowest {cosine.min():.3f}, mean {cosine.mean():.3f}")
        assert cosine.mean() >= least
