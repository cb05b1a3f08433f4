"""Named formats of files are loaded by transformers, as the numbers that `files.open(dequantize=True)` shows."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")
transformers = pytest.importorskip("transformers", reason="the extra `interop` is not installed: transformers")
pytest.importorskip("compressed_tensors", reason="the extra `interop` is not installed: compressed-tensors")

# What other packages warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

FORMATS = [("fp8_e4m3", None), ("fp8_e4m3", 128), ("mxfp4", None), ("nvfp4", None), ("nf4", None), ("fp4", None)]
each_format = pytest.mark.parametrize(("format", "group_size"), FORMATS)
IDS = torch.arange(16)[None]


def tiny(path: Path, dtype: Any) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(path)
    return path


def needs(format: str) -> None:
    if format in ("nf4", "fp4"):
        pytest.importorskip("bitsandbytes", reason="the extra `interop` is not installed: bitsandbytes")
        pytest.importorskip("accelerate", reason="the extra `interop` is not installed: accelerate")


def logits(path: Path, **options: Any) -> Any:
    # With gradients: without, bitsandbytes multiplies in bfloat16.
    return transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()(IDS).logits.float().detach()


@each_format
def test_a_float32_model_computes_with_our_numbers(tmp_path: Path, format: str, group_size: int | None) -> None:
    needs(format)
    source = tiny(tmp_path / "model", torch.float32)
    mo.quantize_file(source, tmp_path / "q", format=format, group_size=group_size, durable=False)
    mo.dequantize_file(tmp_path / "q", tmp_path / "plain", durable=False)
    # compressed-tensors makes bfloat16 of 4-bit floats; a model of float32 can't multiply by that, unless it is asked
    # to dequantize while it loads.
    options = {}
    if format in ("mxfp4", "nvfp4"):
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    theirs, ours, dense = logits(tmp_path / "q", **options), logits(tmp_path / "plain"), logits(source)
    if format == "nvfp4":  # the scales of blocks are divided by the global one in bfloat16 there
        assert (theirs - ours).abs().max() < 0.01 * ours.abs().max()
    else:
        assert torch.equal(theirs, ours)
    assert 10 * torch.log10((dense**2).sum() / ((theirs - dense) ** 2).sum()) > (25 if group_size else 12)


@each_format
def test_a_bfloat16_model_is_loaded_without_options(tmp_path: Path, format: str, group_size: int | None) -> None:
    needs(format)
    source = tiny(tmp_path / "model", torch.bfloat16)
    mo.quantize_file(source, tmp_path / "q", format=format, group_size=group_size, durable=False)
    theirs, dense = logits(tmp_path / "q", dtype=torch.bfloat16), logits(source, dtype=torch.bfloat16)
    assert torch.isfinite(theirs).all()
    assert 10 * torch.log10((dense**2).sum() / ((theirs - dense) ** 2).sum()) > 11


@pytest.mark.parametrize("format", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_what_bitsandbytes_writes_is_read(tmp_path: Path, format: str, nested: bool) -> None:
    needs(format)
    source = tiny(tmp_path / "model", torch.float32)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=format,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype="float32",
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "theirs")
    mo.dequantize_file(tmp_path / "theirs", tmp_path / "plain", durable=False)
    import bitsandbytes

    with mo.files.open(tmp_path / "plain") as plain:
        for name, module in model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                weight = module.weight
                want = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float().numpy()
                got = plain.read(f"{name}.weight")
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=name)
