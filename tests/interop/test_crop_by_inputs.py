"""H60: Hugging Face directories are cropped by what goes into their layers, as transformers runs them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import modelopt_rs as mo  # noqa: E402

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertModel, {}),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"num_key_value_heads": 2}),
    "mistral": (transformers.MistralConfig, transformers.MistralModel, {"num_key_value_heads": 4, "dtype": "bfloat16"}),
}


def saved(path: Path, family: str) -> Any:
    """A model whose feed-forward units and heads say things of very different sizes."""
    config, kind, more = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**SIZES, **more)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("intermediate.dense.weight", "up_proj.weight", "gate_proj.weight", "v_proj.weight")):
                parameter *= torch.logspace(0, 1.5, len(parameter))[:, None]
            if name.endswith(("output.dense.weight", "down_proj.weight", "o_proj.weight")):
                parameter *= torch.logspace(0, -1.5, parameter.shape[1]).to(parameter.dtype)
    model.to(getattr(torch, more.get("dtype", "float32"))).save_pretrained(path)
    return model


def samples(seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(0, 60, (4, 24))} for _ in range(4)]


def answers(path: Path, family: str) -> Any:
    model = FAMILIES[family][1].from_pretrained(path, dtype="float32").eval()
    with torch.no_grad():
        return torch.cat([model(**{k: torch.from_numpy(v) for k, v in each.items()})[0] for each in samples(9)])


@pytest.mark.parametrize("family", FAMILIES)
def test_calibration_makes_cropped_directories_err_less(family: str, tmp_path: Path) -> None:
    """On other samples, of the same sizes; in 16 bits too."""
    saved(tmp_path / "a", family)
    # transformers 5 reads no pruned_heads.
    what = ["ffn"] if family == "bert" else ["ffn", "heads"]
    options: dict[str, Any] = {"keep": 0.5, "what": what, "durable": False}
    plain = mo.crop_file(tmp_path / "a", tmp_path / "plain", **options)
    best = mo.crop_file(tmp_path / "a", tmp_path / "best", calibrate=iter(samples()), **options)
    assert best.groups == plain.groups
    assert best.options["calibrate"] is not None
    want = answers(tmp_path / "a", family)
    lost = [float(torch.linalg.norm(answers(tmp_path / name, family) - want)) for name in ("plain", "best")]
    assert lost[1] < 0.9 * lost[0]
    dtypes = [{info.dtype for info in mo.files.open(tmp_path / name).tensors.values()} for name in ("a", "best")]
    assert dtypes[0] == dtypes[1]


def test_units_are_chosen_and_repaired_as_the_array_functions_say(tmp_path: Path) -> None:
    """One layer by hand: norms of what goes in, and least squares on what stays."""
    model = saved(tmp_path / "a", "bert")
    name = "encoder.layer.0.output.dense"
    layer, seen = dict(model.named_modules())[name], []
    layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach().reshape(-1, 64).numpy()))
    with torch.no_grad():
        for each in samples():
            model(**{k: torch.from_numpy(v) for k, v in each.items()})
    x, w = np.concatenate(seen), layer.weight.detach().numpy()
    kept = np.sort(np.argsort(np.linalg.norm(x.astype(np.float64), axis=0) * np.linalg.norm(w, axis=0))[32:])
    stats = mo.prune.InputStats(64)
    stats.update(x)
    want, _ = mo.prune.least_squares(w, kept, stats, ridge=0.01)
    mo.crop_file(tmp_path / "a", tmp_path / "b", keep=0.5, what="ffn", calibrate=samples(), durable=False)
    with mo.files.open(tmp_path / "b") as source:
        np.testing.assert_allclose(source.read(f"{name}.weight"), want, rtol=1e-3, atol=1e-5)
        up = model.encoder.layer[0].intermediate.dense.weight.detach().numpy()
        np.testing.assert_array_equal(source.read("encoder.layer.0.intermediate.dense.weight"), up[kept])
    options = {"keep": 0.5, "what": "ffn", "calibrate": samples(), "durable": False}
    mo.crop_file(tmp_path / "a", tmp_path / "q", then=mo.QuantizeOptions(bits=8), **options)
    assert mo.compare_files(tmp_path / "b", tmp_path / "q").sqnr_db > 35


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "hidden"}, "what must be of 'ffn' or 'heads' with calibrate, got 'hidden'"),
        ({"what": "ffn", "calibrate": []}, "calibrate must have one or more samples, got none"),
        ({"what": "ffn", "calibrate": ["a text"]}, "calibrate: texts need a tokenizer"),
    ],
)
def test_what_can_not_be_run_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path / "a", "bert")
    with pytest.raises(mo.OptionError, match=message):
        mo.crop_file(tmp_path / "a", tmp_path / "b", **{"keep": 0.5, "calibrate": samples(), **options})
    alone = {"what": "ffn", "calibrate": samples(), "config": tmp_path / "a" / "config.json"}
    with pytest.raises(mo.OptionError, match="calibrate must be left out for a model of tensors alone"):
        mo.crop_file(tmp_path / "a" / "model.safetensors", tmp_path / "b", keep=0.5, **alone)
