"""Float8 tensors as others store them: with scales of blocks (DeepSeek), one scale, or none (H4)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import Tensors, write
from modelopt_rs import FormatError, UnsupportedError

ml_dtypes = pytest.importorskip("ml_dtypes")
W = np.random.default_rng(0).normal(size=(200, 288)).astype(np.float32)
DTYPES = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
BLOCKS = np.random.default_rng(1).uniform(0.5, 2, (2, 3)).astype(np.float32)


def sample(dtype: str, how: str) -> tuple[Tensors, np.ndarray]:
    """A file's tensors, and what they stand for."""
    codes = W.astype(DTYPES[dtype])
    plain = codes.astype(np.float32)
    tensors: Tensors = {"fc.weight": (dtype, codes.view(np.uint8)), "fc.bias": ("F32", W[0])}
    if how == "blocks":
        tensors["fc.weight_scale_inv"] = ("F32", BLOCKS)
        plain = plain * np.repeat(np.repeat(BLOCKS, 128, 0), 128, 1)[:200, :288]
    elif how == "one":
        tensors["fc.weight_scale_inv"] = ("F32", np.full(1, 2.5, np.float32))
        plain = plain * np.float32(2.5)
    elif how == "three axes":
        tensors["fc.weight"] = (dtype, codes.view(np.uint8).reshape(2, 100, 288))
        plain = plain.reshape(2, 100, 288)
    return tensors, plain


@pytest.mark.parametrize("how", ["blocks", "one", "none", "three axes"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_it_becomes_floats(tmp_path: Path, dtype: str, how: str) -> None:
    """H4. `dequantize`, `compare`, `inspect` and the view, whatever the tiles are."""
    tensors, plain = sample(dtype, how)
    a = write(tmp_path / "a.safetensors", tensors)
    for memory in (2**28, 2**19):
        mo.dequantize_file(a, tmp_path / "b.safetensors", max_memory=memory, overwrite=True)
        with mo.files.open(tmp_path / "b.safetensors") as source:
            assert list(source.tensors) == ["fc.weight", "fc.bias"]
            np.testing.assert_array_equal(source.read("fc.weight"), plain)
    assert mo.compare_files(a, tmp_path / "b.safetensors").max_error == 0.0
    assert mo.inspect_file(a).tensors
    with mo.files.open(a, dequantize=True) as source:
        tiles = [(tile.first_row, tile.array.copy()) for tile in source.tiles("fc.weight", 7 * 288 * 4)]
    assert max(len(array) for _, array in tiles) <= 7
    np.testing.assert_array_equal(np.concatenate([array for _, array in tiles]), plain.reshape(-1, 288))


@pytest.mark.parametrize("how", ["blocks", "one", "none"])
@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 8}, {"format": "fp8_e4m3"}])
def test_it_is_quantized_like_the_floats_it_stands_for(tmp_path: Path, how: str, options: dict[str, Any]) -> None:
    """H4. Byte for byte."""
    tensors, plain = sample("F8_E4M3", how)
    a = write(tmp_path / "a.safetensors", tensors)
    b = write(tmp_path / "b.safetensors", {"fc.weight": ("F32", plain), "fc.bias": tensors["fc.bias"]})
    for path in (a, b):
        report = mo.quantize_file(path, path.with_suffix(".q"), **options)
        assert report.totals.changed == 1
    assert a.with_suffix(".q").read_bytes() == b.with_suffix(".q").read_bytes()


def test_a_directory_forgets_how_it_was_stored(tmp_path: Path) -> None:
    """H4. DeepSeek's config.json names the blocks; the result has our own word, or none."""
    model = tmp_path / "model"
    model.mkdir()
    codes = W.astype(DTYPES["F8_E4M3"])
    scale = np.full((4, 5), 0.5, np.float32)
    write(
        model / "model.safetensors",
        {"fc.weight": ("F8_E4M3", codes.view(np.uint8)), "fc.weight_scale_inv": ("F32", scale)},
    )
    said: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    (model / "config.json").write_text(json.dumps({"model_type": "x", "quantization_config": said}))
    mo.dequantize_file(model, tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    mo.quantize_file(model, tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert mo.compare_files(tmp_path / "plain", tmp_path / "small").max_error < 0.1
    for block, error in (
        ([64, 128], UnsupportedError),
        ([0, 0], FormatError),
        ("64", FormatError),
        ([128, 128], FormatError),
    ):
        wrong = {"model_type": "x", "quantization_config": {**said, "weight_block_size": block}}
        (model / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(error, match=r"weight_block_size|must fit a weight"):
            mo.dequantize_file(model, tmp_path / "never")
    assert not (tmp_path / "never").exists()
