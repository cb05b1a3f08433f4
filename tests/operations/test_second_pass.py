"""Quantizing a model of which some weights are quantized already: they stay, byte for byte (H56)."""

import json
from pathlib import Path
from typing import Any

import pytest

import modelopt_rs as mo
from checkpoints import LINEAR, bert, directory, files_of, read, sharded, write
from modelopt_rs.cli import main

TABLE = "embeddings.word_embeddings.weight"
FORMATS: dict[str, dict[str, Any]] = {
    "8": {"bits": 8},
    "fp8": {"format": "fp8_e4m3"},
    "mxfp4": {"format": "mxfp4"},
    "nvfp4": {"format": "nvfp4"},
}


def said(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())["quantization_config"]


def test_tables_of_8_bits_with_layers_of_4_by_two_commands(tmp_path: Path) -> None:
    """H56: what the first wrote is in the result as it is, and config.json names both ways."""
    source = directory(tmp_path / "a", bert())
    first = ["--include", TABLE, "--exclude", "encoder.*", "--only-dequantize"]
    assert main(["quantize", str(source), "-o", str(tmp_path / "b"), *first]) == 0
    assert main(["quantize", str(tmp_path / "b"), "-o", str(tmp_path / "c"), "--bits", "4", "--only-dequantize"]) == 0
    one, two = (read(tmp_path / name / "model.safetensors") for name in "bc")
    assert all(two[name][1].tobytes() == one[name][1].tobytes() for name in one if name.startswith(TABLE))
    bits = {group["weights"]["num_bits"] for group in said(tmp_path / "c")["config_groups"].values()}
    assert bits == {4, 8}
    mo.dequantize_file(tmp_path / "c", tmp_path / "d", durable=False)
    errors = {each.name: each.sqnr_db for each in mo.compare_files(source, tmp_path / "d").tensors}
    assert errors[TABLE] > 35 > errors[LINEAR[0]] > 15


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["directory", "file", "shards"])
def test_two_passes_make_what_one_makes(tmp_path: Path, form: str, kind: str) -> None:
    """H56: tensors and config.json; in every layout of compressed-tensors."""
    make = {"directory": directory, "file": lambda path, tensors: write(path, tensors), "shards": sharded}[kind]
    source = make(tmp_path / ("a.safetensors" if kind == "file" else "a"), bert())
    names = [tmp_path / f"{name}{source.suffix}" for name in ("one", "half", "two")]
    mo.quantize_file(source, names[0], durable=False, **FORMATS[form])
    mo.quantize_file(source, names[1], exclude=[LINEAR[1]], durable=False, **FORMATS[form])
    report = mo.quantize_file(names[1], names[2], durable=False, **FORMATS[form])
    reasons = {each.name: each.reason for each in report.tensors}
    assert reasons[LINEAR[0]].startswith("quantized already (")
    assert report.totals.changed == 1
    if kind == "file":
        assert {k: v[1].tobytes() for k, v in read(names[0]).items()} == {
            k: v[1].tobytes() for k, v in read(names[2]).items()
        }
    else:
        one, two = files_of(names[0]), files_of(names[2])
        groups = [next(iter(said(path)["config_groups"].values())) for path in (names[0], names[2])]
        assert set(groups[0].pop("targets")) == set(groups[1].pop("targets"))
        assert groups[0] == groups[1]
        assert one.keys() == two.keys()
    assert mo.compare_files(names[0], names[2]).max_error == 0.0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"bits": 4}, r"quantized already \(tensor '.*': 8 bits.*no other weight was chosen: dequantize it first"),
        ({}, {"include": [LINEAR[0]]}, r"include '.*': tensor '.*' can't be quantized: quantized already \(8 bits"),
        ({"exclude": [LINEAR[0]]}, {"format": "nvfp4"}, "quantized already .*: dequantize it first"),
        ({"exclude": [LINEAR[0]]}, {"bits": 4, "include": [TABLE], "scheme": "symmetric"}, "dequantize it first"),
        ({"format": "nf4", "exclude": [LINEAR[0]]}, {"format": "nf4"}, "quantized already .*: dequantize it first"),
    ],
)
def test_what_a_second_pass_can_not_do_is_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    """H56: with nothing left to do, other codes for the same weight, another layout, what no loader would read."""
    source = directory(tmp_path / "a", bert())
    mo.quantize_file(source, tmp_path / "b", durable=False, **first)
    with pytest.raises(ValueError, match=message):
        mo.quantize_file(tmp_path / "b", tmp_path / "c", durable=False, **second)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("kv_cache_scheme", {"num_bits": 8}), ("sparsity_config", {"format": "dense"})]
)
def test_a_config_that_says_more_than_of_weights_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    """H56: another tool's words about activations would be lost."""
    mo.quantize_file(directory(tmp_path / "a", bert()), tmp_path / "b", exclude=[LINEAR[0]], durable=False)
    path = tmp_path / "b" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(mo.UnsupportedError, match=rf"not in its weights alone \(config.json has {key}\): dequantize"):
        mo.quantize_file(tmp_path / "b", tmp_path / "c", durable=False)
    group = next(iter(config["quantization_config"]["config_groups"].values()))
    del config["quantization_config"][key]
    group["input_activations"] = {"num_bits": 8, "dynamic": True}
    path.write_text(json.dumps(config))
    with pytest.raises(mo.UnsupportedError, match="input_activations"):
        mo.quantize_file(tmp_path / "b", tmp_path / "c", durable=False)


def test_a_part_that_has_the_name_of_another_tensor_is_refused(tmp_path: Path) -> None:
    """Of the kind of a scale beside a weight that is float (another tool's)."""
    tensors = bert()
    tensors[f"{LINEAR[0]}_scale"] = tensors["classifier.weight"]
    source = directory(tmp_path / "a", tensors)
    with pytest.raises(mo.UnsupportedError, match=rf"tensor '{LINEAR[0]}_scale' would be made of .*; exclude one"):
        mo.quantize_file(source, tmp_path / "b", durable=False)
    mo.quantize_file(source, tmp_path / "b", exclude=[LINEAR[0]], durable=False)
