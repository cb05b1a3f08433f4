"""Layouts of named formats: what is written is read back as the numbers of the array functions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import LINEAR, bert, directory, files_of, read, to_bf16, weights, write
from modelopt_rs.errors import FormatError, OptionError

FORMATS: dict[str, dict[str, Any]] = {
    "fp8_e4m3": {},
    "fp8_e4m3 blocks": {"group_size": 128},
    "mxfp4": {},
    "nvfp4": {},
    "nf4": {},
    "fp4": {},
}
each_format = pytest.mark.parametrize("name", FORMATS)


def quantized(x: np.ndarray, name: str, dtype: str | None = None) -> np.ndarray:
    """What the array functions make of a weight."""
    format = name.split()[0]
    how: dict[str, Any] = {"axis": 0} if format == "fp8_e4m3" else {}
    if "blocks" in name:
        how = {"group_size": (128, 128)}
    if format in ("nf4", "fp4"):  # its blocks go over the ends of rows
        return np.asarray(mo.quantize(x.reshape(1, -1), format=format, dtype=dtype)).reshape(x.shape)
    return np.asarray(mo.quantize(x, format=format, dtype=dtype, **how))


@each_format
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("shape", [(256, 160), (96, 32), (130, 320)])
def test_a_file_holds_the_codes_of_the_array_functions(
    tmp_path: Path, name: str, dtype: str, shape: tuple[int, int]
) -> None:
    x = weights(shape, 5)
    stored = to_bf16(x) if dtype == "BF16" else x
    source = write(tmp_path / "a.safetensors", {"fc.weight": (dtype, stored), "fc.bias": ("F32", x[:, 0].copy())})
    report = mo.quantize_file(
        source, tmp_path / "b.safetensors", format=name.split()[0], durable=False, max_memory=2**20, **FORMATS[name]
    )
    assert report.totals.changed == 1
    want = quantized(stored, name, "bf16" if dtype == "BF16" else None)
    with mo.files.open(tmp_path / "b.safetensors", dequantize=True) as view:
        assert view.tensors["fc.weight"].shape == shape
        assert view.read("fc.weight").tobytes() == want.tobytes()
        assert view.read("fc.bias").tobytes() == x[:, 0].tobytes()
        for memory in (1, 4096, 2**20):
            rows = np.concatenate([tile.array.copy() for tile in view.tiles("fc.weight", memory)])
            assert rows.tobytes() == want.tobytes()
    back = mo.dequantize_file(tmp_path / "b.safetensors", tmp_path / "c.safetensors", durable=False)
    assert back.totals.changed == 1
    assert read(tmp_path / "c.safetensors")["fc.weight"][1].tobytes() == want.tobytes()


@each_format
def test_no_budget_and_no_number_of_threads_changes_a_byte(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", weights((300, 192), 6))})
    outputs = set()
    for i, (memory, threads) in enumerate([(2**28, 2), (2**18, 1), (2**19, 3)]):
        out = tmp_path / f"{i}.safetensors"
        options = FORMATS[name] | {"max_memory": memory, "threads": threads, "durable": False}
        mo.quantize_file(source, out, format=name.split()[0], **options)
        outputs.add(out.read_bytes())
    assert len(outputs) == 1


@each_format
def test_a_directory_says_how_it_is_quantized_and_comes_back(tmp_path: Path, name: str) -> None:
    source = directory(tmp_path / "model", bert())
    mo.quantize_file(source, tmp_path / "q", format=name.split()[0], durable=False, **FORMATS[name])
    config = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    if name in ("nf4", "fp4"):
        assert (config["quant_method"], config["bnb_4bit_quant_type"]) == ("bitsandbytes", name)
    else:
        assert config["quant_method"] == "compressed-tensors"
    mo.dequantize_file(tmp_path / "q", tmp_path / "back", durable=False)
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())
    before, after = read(source / "model.safetensors"), read(tmp_path / "back" / "model.safetensors")
    assert list(before) == list(after) or set(before) == set(after)
    for tensor in LINEAR:
        assert after[tensor][1].tobytes() == quantized(before[tensor][1], name).tobytes()
    report = mo.compare_files(source, tmp_path / "q")
    assert report.only_in_a == report.only_in_b == ()


@each_format
def test_what_is_quantized_already_is_refused(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", weights((128, 64), 7))})
    mo.quantize_file(source, tmp_path / "b.safetensors", format=name.split()[0], durable=False, **FORMATS[name])
    before = files_of(tmp_path)
    with pytest.raises(mo.UnsupportedError, match=r"the model is quantized already \(it has tensor 'fc.weight.*'\)"):
        mo.quantize_file(tmp_path / "b.safetensors", tmp_path / "c.safetensors", durable=False)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"format": "fp5"},
            "format must be one of fp8_e4m3, mxfp4, nvfp4, nf4, fp4, which files have a layout for, got",
        ),
        ({"format": "fp8_e5m2"}, "format must be one of .*, got 'fp8_e5m2'"),
        (
            {"format": "nf4", "bits": 4},
            "bits and scheme must be left out with format 'nf4', got bits=4, scheme=None",
        ),
        ({"format": "mxfp4", "scheme": "asymmetric"}, "bits and scheme must be left out with format 'mxfp4'"),
        ({"format": "nf4", "group_size": 32}, r"group_size must be 64 \(or left out\) for format 'nf4', got 32"),
        (
            {"format": "fp8_e4m3", "group_size": 64},
            r"group_size must be 0 or 128 \(or left out\) for format 'fp8_e4m3'",
        ),
    ],
)
def test_options_that_no_layout_has(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", weights((64, 64), 8))})
    with pytest.raises(OptionError, match=message):
        mo.quantize_file(source, tmp_path / "b.safetensors", durable=False, **options)
    assert not (tmp_path / "b.safetensors").exists()


def test_rows_that_blocks_do_not_divide_are_left_with_a_reason(tmp_path: Path) -> None:
    model = {"a.weight": ("F32", weights((8, 48), 1)), "b.weight": ("F32", weights((8, 64), 2))}
    source = write(tmp_path / "a.safetensors", model)
    report = mo.quantize_file(source, tmp_path / "b.safetensors", format="mxfp4", durable=False)
    assert {t.name: t.decision for t in report.tensors} == {"a.weight": "copy", "b.weight": "quantize"}
    assert report.tensors[0].reason == "rows of 48 are no multiple of the block of 32"


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "fp8_e4m3", "nf4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a2_what_is_not_finite_is_refused_or_saturates(tmp_path: Path, name: str, value: float) -> None:
    x = weights((64, 64), 9)
    x[5, 7] = value
    source = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", x)})
    with pytest.raises(ValueError, match=r"tensor 'fc.weight', rows from 0: quantize: x has"):
        mo.quantize_file(source, tmp_path / "b.safetensors", format=name, durable=False)
    assert not (tmp_path / "b.safetensors").exists()
    mo.quantize_file(source, tmp_path / "b.safetensors", format=name, nonfinite="saturate", durable=False)
    with mo.files.open(tmp_path / "b.safetensors", dequantize=True) as view:
        assert np.isfinite(view.read("fc.weight")).all()


def damaged(path: Path, change: dict[str, tuple[str, np.ndarray] | None]) -> Path:
    model = read(path)
    for name, tensor in change.items():
        if tensor is None:
            del model[name]
        else:
            model[name] = tensor
    return write(path.with_name("damaged.safetensors"), model)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fp8_e4m3", {"fc.weight_scale": ("F32", np.ones((3, 1), np.float32))}, "must fit a weight"),
        (
            "fp8_e4m3",
            {"fc.weight_scale": ("F32", np.full((64, 1), np.nan, np.float32))},
            "scale is not a finite number",
        ),
        ("mxfp4", {"fc.weight_scale": ("U8", np.full((64, 2), 255, np.uint8))}, "row 0: scale is not a finite number"),
        ("mxfp4", {"fc.weight_scale": ("U8", np.zeros((64, 3), np.uint8))}, "have no scales"),
        ("nvfp4", {"fc.weight_global_scale": None}, "'fc.weight_global_scale' must be there and be F32"),
        ("nf4", {"fc.weight.absmax": ("F32", np.ones(63, np.float32))}, "must be F32 of 256 bytes, got F32"),
        ("nf4", {"fc.weight.absmax": None}, "must be F32 of 256 bytes, got none"),
        ("nf4", {"fc.weight.quant_state.bitsandbytes__nf4": ("U8", np.frombuffer(b"{", np.uint8))}, "not valid JSON"),
        (
            "nf4",
            {
                "fc.weight.quant_state.bitsandbytes__nf4": (
                    "U8",
                    np.frombuffer(b'{"shape": [2], "blocksize": 3}', np.uint8),
                )
            },
            "shape must be integers, blocksize a power of two",
        ),
    ],
)
def test_a_damaged_weight_is_a_format_error(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    source = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", weights((64, 64), 10))})
    mo.quantize_file(source, tmp_path / "b.safetensors", format=name, durable=False)
    path = damaged(tmp_path / "b.safetensors", change)
    with pytest.raises(FormatError, match=message), mo.files.open(path, dequantize=True) as view:
        view.read("fc.weight")


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_shapes_that_bitsandbytes_runs_on_some_devices_only_are_said(tmp_path: Path, name: str) -> None:
    """It lays weights out anew for some CPUs, 32 rows and 64 columns at a time: an error where they don't fit."""
    shapes = {"a.weight": (64, 96), "b.weight": (48, 128), "c.weight": (64, 128)}
    tensors = {key: ("F32", weights(shape)) for key, shape in shapes.items()}
    for kept, count in ((tensors, 2), ({"c.weight": tensors["c.weight"]}, 0)):
        source = directory(tmp_path / f"{count}", kept)
        said = mo.quantize_file(source, tmp_path / f"q{count}", format=name, durable=False).warnings
        assert [text[:9] for text in said if "bitsandbytes can run on GPUs only" in text] == ["2 weights"] * (count > 0)
