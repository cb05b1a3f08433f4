"""dequantize_file: back to plain floats."""

import json
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import (
    LINEAR,
    bert,
    dense,
    directory,
    files_of,
    from_bf16,
    metadata,
    read,
    sharded,
    weights,
    write,
)
from modelopt_rs import UnsupportedError
from modelopt_rs.errors import OptionError


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 32), (2, 16), (4, 0)])
@pytest.mark.parametrize("memory", [1 << 28, 1 << 13])
def test_values_are_those_of_the_layout(tmp_path: Path, scheme: str, bits: int, group: int, memory: int) -> None:
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    write(a, bert(), {"format": "pt"})
    mo.quantize_file(a, b, bits=bits, scheme=scheme, group_size=group, durable=False)
    report = mo.dequantize_file(b, c, max_memory=memory, durable=False)
    packed, out = read(b), read(c)
    assert set(out) == set(bert())
    for name, (dtype, array) in bert().items():
        assert out[name][0] == dtype
        expected = dense(packed, name, bits) if name in LINEAR else array
        np.testing.assert_array_equal(out[name][1], expected)
    assert metadata(c) == {"format": "pt"}
    assert (report.command, report.totals.changed, report.totals.left) == ("dequantize", 2, 5)
    assert report.totals.bytes_before == sum(array.nbytes for _, array in packed.values())
    assert report.totals.bytes_after == sum(array.nbytes for _, array in out.values())


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_dtype(tmp_path: Path, dtype: str, stored: str) -> None:
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    write(a, {"fc.weight": ("F32", weights((8, 64))), "norm.weight": ("F32", weights((64,)))})
    mo.quantize_file(a, b, bits=8, durable=False)
    mo.dequantize_file(b, c, dtype=dtype, durable=False)
    out = read(c)
    assert (out["fc.weight"][0], out["norm.weight"][0]) == (stored, "F32")
    y = from_bf16(out["fc.weight"][1]) if stored == "BF16" else out["fc.weight"][1].astype(np.float32)
    np.testing.assert_allclose(y, dense(read(b), "fc.weight", 8), rtol=2**-8 if stored == "BF16" else 2**-11)


@pytest.mark.parametrize("form", [directory, sharded])
def test_a_directory_loses_its_quantization_config(tmp_path: Path, form) -> None:
    source = form(tmp_path / "a", bert())
    mo.quantize_file(source, tmp_path / "b", bits=4, durable=False)
    mo.dequantize_file(tmp_path / "b", tmp_path / "c", durable=False)
    before, after = files_of(source), files_of(tmp_path / "c")
    assert set(before) == set(after)
    assert json.loads(before["config.json"]) == json.loads(after["config.json"])
    assert mo.compare_files(tmp_path / "b", tmp_path / "c").max_error == 0.0


def test_dtype_must_be_known(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    with pytest.raises(OptionError, match="dtype must be 'float32', 'float16' or 'bfloat16', got 'int8'"):
        mo.dequantize_file(source, tmp_path / "b.safetensors", dtype="int8")


WAYS = {
    "quantize": {},
    "prune": {"sparsity": 0.5},
    "crop": {"keep": 0.5, "what": "ffn"},
    "optimize": {"target_bpw": 6.0},
    "dequantize": {},
}


@pytest.mark.parametrize("operation", WAYS)
@pytest.mark.parametrize(
    ("said", "by"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
        ({"quantization_config": {"quant_method": 3}}, "a method that it does not name"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "MLX"),
    ],
)
def test_nobody_is_sent_to_dequantize_what_it_does_not_read(
    tmp_path: Path, operation: str, said: dict[str, object], by: str
) -> None:
    config = {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 4, **said}
    source = directory(tmp_path / "a", bert(), config)
    way = "not read here: take the model that it was made of; if its weights are plain floats, remove"
    with pytest.raises(UnsupportedError, match=f"is quantized already by {by} .* {way}"):
        getattr(mo, f"{operation}_file")(source, tmp_path / "b", **WAYS[operation])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_plain_model_is_copied(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    report = mo.dequantize_file(source, tmp_path / "b.safetensors", durable=False)
    assert report.totals.changed == 0
    assert mo.compare_files(source, tmp_path / "b.safetensors").max_error == 0.0


def test_overwrite(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    (tmp_path / "b.safetensors").write_text("precious")
    with pytest.raises(FileExistsError):
        mo.dequantize_file(source, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_text() == "precious"
    mo.dequantize_file(source, tmp_path / "b.safetensors", overwrite=True, durable=False)
