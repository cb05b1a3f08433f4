"""H35: Hugging Face directories are pruned by what goes into their layers, as transformers runs them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import modelopt_rs as mo  # noqa: E402
from modelopt_rs.operations.module_inputs import linear_weights, run_modules  # noqa: E402

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertForSequenceClassification, {}),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"num_key_value_heads": 2}),
    "qwen": (transformers.Qwen2Config, transformers.Qwen2Model, {"num_key_value_heads": 2}),
}


def saved(path: Path, family: str) -> Any:
    config, kind, more = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**SIZES, **more)).eval()
    model.save_pretrained(path)
    return model


def samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"input_ids": rng.integers(0, 60, (2, 24))} for _ in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_h35_what_goes_is_what_the_array_functions_choose(family: str, method: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", family)
    # By hand: the inputs of one layer, seen by a hook of its own.
    linear = [(k, m) for k, m in model.named_modules() if "layer" in k and type(m) is torch.nn.Linear]
    name, layer = linear[-1]
    statistics = mo.prune.ColumnNorms() if method == "wanda" else mo.prune.Hessian()
    hook = layer.register_forward_pre_hook(
        lambda _, x: statistics.update(x[0].detach().reshape(-1, layer.in_features).numpy())
    )
    with torch.no_grad():
        for each in samples():
            model(**{k: torch.from_numpy(v) for k, v in each.items()})
    hook.remove()
    w = layer.weight.detach().numpy()
    given = statistics.norms if method == "wanda" else statistics
    want = getattr(mo.prune, method)(w, given, 0.5)
    report = mo.prune_file(
        tmp_path / "model", tmp_path / "out", sparsity=0.5, method=method, calibrate=samples(), max_memory=1 << 18
    )
    with mo.files.open(tmp_path / "out") as source:
        stored = next(k for k in source.tensors if k.removesuffix(".weight").endswith(name.split(".", 1)[1]))
        np.testing.assert_allclose(source.read(stored), want, rtol=1e-4, atol=1e-6)
        assert (source.read(stored) != 0).mean() == pytest.approx(0.5, abs=0.01)
    assert sum(t.decision == "prune" for t in report.tensors) >= 12
    again = type(model).from_pretrained(tmp_path / "out")
    assert sum((p == 0).float().mean() > 0.45 for p in again.parameters() if p.ndim == 2) >= 12


PICTURES = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "beit"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_h35_layers_that_files_call_otherwise_than_transformers_are_seen(
    kind: str, method: str, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.for_model(kind, **PICTURES, intermediate_size=48)
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(tmp_path / "model")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)
    report = mo.prune_file(
        tmp_path / "model", tmp_path / "out", sparsity=0.5, method=method, calibrate=[{"pixel_values": pixels}]
    )
    assert sum(t.decision == "prune" for t in report.tensors) >= 12
    again = transformers.AutoModel.from_pretrained(tmp_path / "out")
    layers = [module.weight for module in again.modules() if type(module) is torch.nn.Linear]
    assert sum((weight == 0).float().mean() > 0.45 for weight in layers) >= 12


def test_h35_a_model_without_a_layer_that_is_seen_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    none = "for a model that has no linear layer that transformers runs under the name of a tensor"
    with pytest.raises(
        mo.OptionError, match=rf"^method must be 'magnitude' {none}, got 'wanda'; or prune it as an ONNX"
    ):
        mo.prune_file(tmp_path / "model", tmp_path / "out", sparsity=0.5, method="wanda", calibrate=samples())
    assert not (tmp_path / "out").exists()


def test_h35_texts_need_a_tokenizer_and_plain_files_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", "bert")
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    options: dict[str, Any] = {"sparsity": 0.5, "method": "wanda", "calibrate": tmp_path / "texts.txt"}
    with pytest.raises(mo.OptionError, match=r"^calibrate: texts need a tokenizer in .*; give arrays by name"):
        mo.prune_file(tmp_path / "model", tmp_path / "out", **options)
    with pytest.raises(
        mo.OptionError,
        match=r"^method must be 'magnitude' for a model that is tensors alone, got 'wanda': nothing runs it",
    ):
        mo.prune_file(tmp_path / "model" / "model.safetensors", tmp_path / "out.safetensors", **options)
    assert not (tmp_path / "out").exists()


def test_h35_texts_are_read_line_by_line(tmp_path: Path) -> None:
    saved(tmp_path / "model", "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "eats"]
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(vocab=str(tmp_path / "model" / "vocab.txt")).save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("a man eats\n\na man\n")
    with mo.files.open(tmp_path / "model") as source:
        modules = linear_weights(tmp_path / "model", source.tensors)
    rows: dict[str, int] = {}

    def visit(name: str, x: np.ndarray) -> None:
        assert x.dtype == np.float32
        rows[name] = rows.get(name, 0) + len(x)

    run_modules(tmp_path / "model", modules, tmp_path / "texts.txt", visit)
    # [CLS] and [SEP] come with each; the heads read one row of each text.
    assert set(rows.values()) == {5 + 4, 2}
    assert set(rows) == set(modules)
