"""Float8 tensors as others store them: with scales of blocks (DeepSeek), one scale, or none (H4)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import Tensors, directory, from_bf16, read, write
from families import BERT, bert
from modelopt_rs import FormatError, UnsupportedError
from modelopt_rs.layouts.float_quantized import FOREIGN_FLOAT8
from modelopt_rs.layouts.format_codec import FormatWeight
from modelopt_rs.layouts.format_spec import FormatSpec
from modelopt_rs.layouts.view import Dequantized

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


EXPONENTS = np.random.default_rng(2).integers(120, 130, (200, 9)).astype(np.uint8)


@pytest.mark.parametrize("key", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("kind", ["row", "flat row", "group", "F8_E8M0", "U8", "BF16"])
def test_scales_of_other_tools(tmp_path: Path, key: str, kind: str) -> None:
    """H4: a scale for each row or group, powers of two (MXFP8), half precision; what is said of activations goes."""
    codes = W.astype(DTYPES["F8_E4M3"])
    scale, dtype = (BLOCKS[0, 0] * (1 + np.arange(200)[:, None] % 3)).astype(np.float32), "F32"
    wide = np.repeat(scale, 288, 1)
    if kind == "flat row":
        scale = scale.reshape(-1)
    elif kind == "group":
        scale = np.random.default_rng(3).uniform(0.5, 2, (200, 9)).astype(np.float32)
        wide = np.repeat(scale, 32, 1)
    elif kind in ("F8_E8M0", "U8"):
        scale, dtype = EXPONENTS, kind
        wide = np.repeat(np.ldexp(np.float32(1), EXPONENTS.astype(int) - 127), 32, 1)
    elif kind == "BF16":
        scale, dtype = np.array([[0x4020]], np.uint16), "BF16"  # 2.5: no product of it is rounded
        wide = np.float32(2.5)
    tensors: Tensors = {
        "fc.weight": ("F8_E4M3", codes.view(np.uint8)),
        f"fc.{key}": (dtype, scale),
        "fc.input_scale": ("F32", np.ones(1, np.float32)),
    }
    a = write(tmp_path / "a.safetensors", tensors)
    mo.dequantize_file(a, tmp_path / "b.safetensors", max_memory=2**17, durable=False)
    with mo.files.open(tmp_path / "b.safetensors") as source:
        assert list(source.tensors) == ["fc.weight"]
        np.testing.assert_array_equal(source.read("fc.weight"), codes.astype(np.float32) * wide)


def float8(path: Path, key: str, **config: Any) -> tuple[Path, np.ndarray]:
    """A directory of BERT whose layers are float8 with a scale for each row, and one of its weights."""
    tensors, plain = {}, {}
    for name, (dtype, array) in bert().items():
        if array.ndim < 2 or not name.startswith("bert.encoder"):
            tensors[name] = (dtype, array)
            continue
        codes = (array * 100).astype(DTYPES["F8_E4M3"])
        tensors[name] = ("F8_E4M3", codes.view(np.uint8))
        tensors[f"{name}{key}"] = ("F32", np.full((len(array), 1), 0.01, np.float32))
        plain[name] = codes.astype(np.float32) * np.float32(0.01)
    return directory(path, tensors, {**BERT, **config}), plain


@pytest.mark.parametrize("key", ["_scale", "_scale_inv"])
def test_it_is_pruned_and_cropped_like_the_floats_it_stands_for(tmp_path: Path, key: str) -> None:
    """H4: DeepSeek's and compressed-tensors' float8; said in the report, and stored sizes counted."""
    config = {"quantization_config": {"quant_method": "fp8" if key == "_scale_inv" else "compressed-tensors"}}
    a, _ = float8(tmp_path / "a", key, **config)
    mo.dequantize_file(a, tmp_path / "plain", durable=False)
    for name, run in {
        "prune": lambda path, out: mo.prune_file(path, out, sparsity=0.5, durable=False),
        "crop": lambda path, out: mo.crop_file(path, out, keep=0.5, what=["ffn", "heads"], durable=False),
        "both": lambda path, out: mo.prune_file(path, out, n=2, m=4, then=mo.QuantizeOptions(bits=8), durable=False),
        "bits": lambda path, out: mo.quantize_file(path, out, bits=4, durable=False),
    }.items():
        report = run(a, tmp_path / f"{name}_a")
        run(tmp_path / "plain", tmp_path / f"{name}_b")
        assert "stored as float8, and read as float32" in str(report.warnings)
        assert report.totals.bytes_before == sum(array.nbytes for _, array in read(a / "model.safetensors").values())
        one, two = (read(tmp_path / f"{name}_{x}" / "model.safetensors") for x in "ab")
        assert one.keys() == two.keys()
        assert all(one[each][1].tobytes() == two[each][1].tobytes() for each in one)
        said = json.loads((tmp_path / f"{name}_a" / "config.json").read_text()).get("quantization_config")
        assert said == json.loads((tmp_path / f"{name}_b" / "config.json").read_text()).get("quantization_config")


@pytest.mark.parametrize("word", ["dtype", "torch_dtype"])
def test_it_becomes_what_the_model_computes_in(tmp_path: Path, word: str) -> None:
    """H4: half of the bytes of float32 where config.json says so, in either spelling."""
    a, plain = float8(tmp_path / "a", "_scale_inv", **{word: "bfloat16"})
    mo.prune_file(a, tmp_path / "b", sparsity=0.0, durable=False)
    found = read(tmp_path / "b" / "model.safetensors")
    for name, array in plain.items():
        assert found[name][0] == "BF16"
        np.testing.assert_allclose(from_bf16(found[name][1]), array, rtol=2**-8)
    b = write(
        tmp_path / "c.safetensors",
        {"fc.weight": ("F8_E4M3", np.full((4, 4), 56, np.uint8)), "n": ("F16", W[0].astype("f2"))},
    )
    mo.prune_file(b, tmp_path / "d.safetensors", sparsity=0.0, durable=False)
    assert read(tmp_path / "d.safetensors")["fc.weight"][0] == "F16"


class ByRow:
    """A layout of float8 that nobody has, with scales of rows."""

    name, state = "by-row", "quantized"

    def mark(self, tensors: Any) -> None:
        return None

    def find(self, source: Any) -> Any:
        spec = FormatSpec("fp8_e5m2", axis=0)
        yield FormatWeight(source, "fc.weight", W.shape, spec, ("fc.weight", "fc.weight_absmax"))


def test_a_weight_that_two_layouts_find_is_that_of_the_first(tmp_path: Path) -> None:
    tensors, plain = sample("F8_E5M2", "none")
    tensors["fc.weight_absmax"] = ("F32", np.full((200, 1), 3, np.float32))
    path = write(tmp_path / "a.safetensors", tensors)
    for layouts, factor in (((ByRow(), FOREIGN_FLOAT8), 3), ((FOREIGN_FLOAT8, ByRow()), 1)):
        with Dequantized(mo.files.open(path), layouts=layouts) as view:
            np.testing.assert_array_equal(view.read("fc.weight"), factor * plain)
            assert ("fc.weight_absmax" in view.tensors) == (factor == 1)
