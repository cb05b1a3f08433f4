"""GPTQ of Hugging Face directories: what the array function gives, of the inputs that transformers gives to layers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import modelopt_rs as mo  # noqa: E402

SIZES = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertModel, {}),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"num_key_value_heads": 2}),
}


def saved(path: Path, family: str) -> Any:
    config, kind, more = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**SIZES, **more)).eval()
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim == 2:
                each.mul_(8.0)
    model.save_pretrained(path)
    return model


def samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"input_ids": rng.integers(0, 60, (2, 60))} for _ in range(6)]


def inputs_of(model: Any, layer: Any) -> np.ndarray:
    """See what goes into a layer by a hook of its own."""
    rows: list[np.ndarray] = []
    hook = layer.register_forward_pre_hook(lambda _, x: rows.append(x[0].detach().reshape(-1, x[0].shape[-1]).numpy()))
    with torch.no_grad():
        for each in samples():
            model(**{name: torch.from_numpy(ids) for name, ids in each.items()})
    hook.remove()
    return np.concatenate(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_loads_is_what_gptq_gives(family: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model = saved(tmp_path / "model", family)
    options: dict[str, Any] = {"bits": 4, "scheme": "symmetric", "uniform": True, "max_memory": 1 << 20}
    report = mo.quantize_file(
        tmp_path / "model", tmp_path / "out", **options, method="gptq", calibrate=iter(samples()), durable=False
    )
    done = {each.name: each for each in report.tensors if each.decision == "quantize"}
    assert len(done) == (13 if family == "bert" else 14)
    assert all(each.reason.endswith("; GPTQ") for each in done.values())
    assert (report.options["method"], report.options["calibrate"]) == ("gptq", "list")

    again = type(model).from_pretrained(tmp_path / "out").eval()
    name, layer = [(k, m) for k, m in model.named_modules() if "layer" in k and type(m) is torch.nn.Linear][-1]
    rows, w = inputs_of(model, layer), layer.weight.detach().numpy()
    hessian = mo.prune.Hessian()
    hessian.update(rows)
    want = mo.quant.gptq(
        w, hessian, group_size=32, act_order="groups", search="mse", scale_dtype="float16"
    ).dequantize()
    # The loader makes numbers in the dtype of scales.
    got = dict(again.named_modules())[name].weight.detach().float().numpy()
    assert (np.abs(got - want) <= 2**-7 * np.abs(want) + 1e-6).mean() > 0.99
    plain = mo.fake_quantize(w, bits=4, group_size=32, search="mse", scale_dtype="float16")
    losses = [float(np.square(rows @ (w - each).T).sum()) for each in (got, plain)]
    assert losses[0] < 0.9 * losses[1]


def test_what_can_not_be_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", "bert")
    options: dict[str, Any] = {"bits": 4, "method": "gptq", "calibrate": samples()}
    with pytest.raises(
        mo.OptionError, match=r"^method must be left out for a model that is tensors alone, got 'gptq'; "
    ):
        mo.quantize_file(tmp_path / "model" / "model.safetensors", tmp_path / "out.safetensors", **options)
    (tmp_path / "texts.txt").write_text("one\n")
    with pytest.raises(mo.OptionError, match=r"^calibrate: texts need a tokenizer in "):
        mo.quantize_file(tmp_path / "model", tmp_path / "out", **(options | {"calibrate": tmp_path / "texts.txt"}))
    with pytest.raises(mo.OptionError, match=r"^method must be 'gptq' for this model, got 'awq': only of llama"):
        mo.quantize_file(tmp_path / "model", tmp_path / "out", **(options | {"method": "awq"}))
    then = mo.QuantizeOptions(bits=4, method="gptq")
    for call in (mo.prune_file, mo.crop_file):
        how = {"sparsity": 0.5} if call is mo.prune_file else {"keep": 0.5, "what": "ffn"}
        with pytest.raises(mo.OptionError, match=r"^then must have no method, got 'gptq': quantize what comes out$"):
            call(tmp_path / "model", tmp_path / "out", then=then, **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["mymodel", "bert"])
def test_code_of_a_directory_is_never_executed_nor_asked_for(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto_map` names it; where transformers has a class for the type, that one runs."""
    saved(tmp_path / "model", "bert")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "my.MyConfig", "AutoModel": "my.MyModel"}, "model_type": model_type}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "my.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass MyConfig: pass")
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked"))
    options: dict[str, Any] = {"bits": 4, "method": "gptq", "calibrate": samples()}
    if model_type == "bert":
        assert mo.quantize_file(tmp_path / "model", tmp_path / "out", **options).totals.changed
    else:
        with pytest.raises(mo.OptionError, match=r"^calibrate: .* must be a model that transformers has a class for"):
            mo.quantize_file(tmp_path / "model", tmp_path / "out", **options)
    assert mo.quantize_file(tmp_path / "model", tmp_path / "plain", bits=8).totals.changed
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"^calibrate must have one or more samples, got none$"),
        ({"input_ids": np.zeros((0, 8), np.int64)}, r"^calibrate must have one or more samples, got none$"),
        ({"pixels": np.zeros((1, 8))}, r"^calibrate must have arrays by name of .*, as 'input_ids', got 'pixels'$"),
        ({"input_ids": np.full((1, 8), 60)}, r"calibrate: the model can't be run on a sample: index out of range"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit_are_refused(tmp_path: Path, given: Any, message: str) -> None:
    saved(tmp_path / "model", "llama")
    with pytest.raises(ValueError, match=message):
        mo.quantize_file(tmp_path / "model", tmp_path / "out", bits=4, method="gptq", calibrate=given)
    assert not (tmp_path / "out").exists()


def test_what_conv1d_is_is_said(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=60, n_embd=64, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    with pytest.raises(mo.OptionError, match=r"c_attn.weight': a Conv1D layer: stored as \[in, out\], so scales lie"):
        mo.quantize_file(tmp_path / "model", tmp_path / "out", bits=4, method="gptq", calibrate=samples())


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_would_be_run_for_nothing_is_refused_with_the_way_out(tied: bool, tmp_path: Path) -> None:
    """By both commands, with exit 2: whether there is a linear layer (a head that is left alone) or none."""
    sizes = {"vocab_size": 60, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    both: dict[str, Any] = {"calibrate": samples()}
    ways = [
        (
            mo.quantize_file,
            {"method": "gptq"},
            r"can round no weight, .*; leave it out, or quantize it as an ONNX model$",
        ),
        (mo.quantize_file, {"method": "gptq", "exclude": ["*.c_*"]}, r"no weight is quantized, .*; leave it out, or "),
        (
            mo.prune_file,
            {"method": "wanda", "sparsity": 0.5},
            r"or prune it as an ONNX m|; use 'magnitude', or include",
        ),
    ]
    for call, options, message in ways:
        with pytest.raises(mo.OptionError, match=message):
            call(tmp_path / "model", tmp_path / "out", **both, **options)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_no_linear_layer_has_is_searched_and_says_so(tmp_path: Path) -> None:
    saved(tmp_path / "model", "bert")
    report = mo.quantize_file(
        tmp_path / "model",
        tmp_path / "out",
        bits=4,
        scheme="symmetric",
        uniform=True,
        method="gptq",
        calibrate=samples(),
        include=["embeddings.word*"],
        only_dequantize=True,
        durable=False,
    )
    reasons = {each.name: each.reason for each in report.tensors}
    assert "; not GPTQ: no linear layer that transformers runs" in reasons["embeddings.word_embeddings.weight"]
    assert any(each.startswith("1 weight is rounded without GPTQ: no linear layer") for each in report.warnings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", [2, 4])
def test_awq_leaves_a_model_what_it_was_and_weighs_what_goes_in(heads: int, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=heads, attention_bias=True, mlp_bias=True)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, each in model.named_parameters():
            if each.ndim == 2:
                each.mul_(8.0)
            elif "norm" in name:
                each.copy_(torch.rand(each.shape) ** 6 * 8 + 0.1)  # some channels are far larger
            else:
                each.normal_()
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "model")
    options: dict[str, Any] = {"scheme": "symmetric", "uniform": True, "calibrate": samples(), "durable": False}

    def logits(place: Path) -> np.ndarray:
        loaded = transformers.LlamaForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        with torch.no_grad():
            return np.concatenate([loaded(torch.from_numpy(each["input_ids"])).logits.numpy() for each in samples()])

    want = logits(tmp_path / "model")
    losses = {}
    for bits, method in ((8, "awq"), (4, "awq"), (4, None)):
        how = options | ({"method": method} if method else {"calibrate": None})
        report = mo.quantize_file(tmp_path / "model", tmp_path / f"{bits}{method}", bits=bits, **how)
        losses[bits, method] = float(np.linalg.norm(logits(tmp_path / f"{bits}{method}") - want) / np.linalg.norm(want))
        reasons = {each.name: each.reason for each in report.tensors}
        if method:
            layer = "model.layers.0."
            assert reasons[layer + "input_layernorm.weight"] == "divided by the factors of AWQ"
            assert reasons[layer + "self_attn.q_proj.weight"].endswith("; AWQ")
            # Where heads share their values, what goes into the projection can't be divided.
            assert reasons[layer + "self_attn.o_proj.weight"].endswith("; AWQ") == (heads == 4)
    assert losses[8, "awq"] < 0.06
    assert losses[4, "awq"] < 0.9 * losses[4, None]


@pytest.fixture
def mamba(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A model whose own code takes the weight of `dt_proj` and never calls the layer."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=1, state_size=8, time_step_rank=32
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model", {"calibrate": samples(), "durable": False}


UNREACHED = "backbone.layers.0.mixer.dt_proj.weight"


@pytest.mark.parametrize("memory", [1 << 22, 1 << 19])
def test_a_layer_that_no_sample_reaches_is_searched_and_says_so(mamba: Any, memory: int, tmp_path: Path) -> None:
    model, options = mamba
    how: dict[str, Any] = {"bits": 4, "uniform": True, "scheme": "symmetric", "include": [UNREACHED]}
    report = mo.quantize_file(model, tmp_path / "out", **how, **options, max_memory=memory, method="gptq")
    reasons = {each.name: each.reason for each in report.tensors if each.decision == "quantize"}
    assert {name for name, each in reasons.items() if not each.endswith("; GPTQ")} == {UNREACHED}
    assert reasons[UNREACHED].endswith("; not GPTQ: no sample reaches its layer")
    assert "1 weight is rounded without GPTQ: no sample reaches its layer" in report.warnings
    mo.quantize_file(model, tmp_path / "plain", **how, durable=False)
    with mo.files.open(tmp_path / "out") as ours, mo.files.open(tmp_path / "plain") as plain:
        got, want = (each.read(UNREACHED.replace("weight", "weight_packed")) for each in (ours, plain))
    np.testing.assert_array_equal(got, want)


def test_statistics_have_no_rows_of_a_layer_that_no_sample_reaches(mamba: Any, tmp_path: Path) -> None:
    """And what adds up with others' rows."""
    model, options = mamba
    for kind in ("hessian", "norms"):
        report = mo.calibrate_file(model, tmp_path / kind, kind=kind, **options)
        assert (UNREACHED, "no sample reaches its layer") in report.left
        assert UNREACHED not in {each.name for each in report.weights}
        merged = mo.merge_statistics([tmp_path / kind] * 2, tmp_path / f"{kind}2", durable=False)
        assert {each.rows for each in merged.weights if each.name != UNREACHED} == {2 * 720}
    done = mo.quantize_file(
        model, tmp_path / "out", bits=4, method="gptq", statistics=tmp_path / "hessian2", durable=False
    )
    reasons = {each.name: each.reason for each in done.tensors if each.decision == "quantize"}
    assert reasons[UNREACHED].endswith("; not GPTQ: no sample reaches its layer")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_layer_that_no_sample_reaches_is_not_pruned(mamba: Any, method: str, tmp_path: Path) -> None:
    model, options = mamba
    report = mo.prune_file(model, tmp_path / "out", sparsity=0.5, method=method, **options)
    rows = {each.name: each for each in report.tensors}
    assert (rows[UNREACHED].decision, rows[UNREACHED].reason) == ("copy", "no sample reaches its layer")
    assert rows[UNREACHED].zeros_after == rows[UNREACHED].zeros_before
    assert rows[UNREACHED.replace("dt_proj", "x_proj")].sparsity_after == pytest.approx(0.5, abs=0.01)
    assert "1 weight is not pruned: no sample reaches its layer" in report.warnings


def test_samples_that_reach_no_layer_are_refused(mamba: Any, tmp_path: Path) -> None:
    model, options = mamba
    layers = [f"*.{each}.weight" for each in ("in_proj", "x_proj", "out_proj")]
    with pytest.raises(ValueError, match=r"calibrate: no sample reaches a layer, as that of .*; give other samples$"):
        mo.quantize_file(model, tmp_path / "out", bits=4, method="gptq", exclude=layers, **options)
    assert not (tmp_path / "out").exists()
