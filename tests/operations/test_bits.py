"""Which weights of a checkpoint get other bits than those asked for, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import LINEAR, bert, directory, read, weights, write
from modelopt_rs.cli import main
from modelopt_rs.errors import OptionError

CONFIG = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 96, "vocab_size": 11}


def words_of(model: Path, name: str) -> int:
    """The 32-bit words of a row of packed codes."""
    return int(read(model)[f"{name}_packed"][1].shape[1])


def test_globs_give_weights_their_bits_and_config_names_both(tmp_path: Path) -> None:
    """H56, H32: mixed bits in a directory, and read back to the same numbers."""
    source = directory(tmp_path / "a", bert(), CONFIG)
    report = mo.quantize_file(source, tmp_path / "b", bits=4, bits_of={LINEAR[0]: 8}, durable=False)
    assert words_of(tmp_path / "b" / "model.safetensors", LINEAR[0]) * 32 // 64 == 8
    reasons = {tensor.name: tensor.reason for tensor in report.tensors}
    assert reasons[LINEAR[0]] == "8 bits: weight of a linear layer"
    assert reasons[LINEAR[1]] == "weight of a linear layer"
    groups = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert sorted(group["weights"]["num_bits"] for group in groups.values()) == [4, 8]
    mo.dequantize_file(tmp_path / "b", tmp_path / "c", durable=False)
    for tensor in mo.compare_files(source, tmp_path / "c").tensors:
        assert tensor.sqnr_db > (35 if tensor.name == LINEAR[0] else 15)
    assert report.options["bits_of"] == {LINEAR[0]: 8}


def test_bits_of_by_the_command(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    words = [
        "quantize",
        str(source),
        "-o",
        str(tmp_path / "b.safetensors"),
        "--bits",
        "4",
        "--bits-of",
        f"{LINEAR[1]}=8",
    ]
    assert main(words) == 0
    assert words_of(tmp_path / "b.safetensors", LINEAR[0]) * 32 // 64 == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits_of": {"nothing": 8}}, "bits_of 'nothing' matches no tensor"),
        ({"bits_of": {"*.bias": 8}}, r"bits_of '\*\.bias': tensor '.*' is not quantized: "),
        ({"bits_of": {"*": 3}}, r"bits_of '\*' must be 8, 4 or 2, got 3"),
        ({"max_layer_error": 0.0}, "max_layer_error must be above 0, got 0.0"),
        ({"max_layer_error": 0.1, "uniform": True}, "max_layer_error must be left out with uniform, got 0.1"),
        ({"bits": 8, "format": "nf4", "bits_of": {"*": 4}}, "bits_of must be left out with format 'nf4'"),
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    source = write(tmp_path / "a.safetensors", bert())
    with pytest.raises(OptionError, match=message):
        mo.quantize_file(source, tmp_path / "b.safetensors", **{"bits": 4, **options})
    assert not (tmp_path / "b.safetensors").exists()


def test_weights_that_are_too_far_off_get_more_bits(tmp_path: Path) -> None:
    """H22: 2 bits become 4, and 8 where these are not enough; and it is said."""
    source = write(tmp_path / "a.safetensors", {"near.weight": ("F32", weights((64, 128)))})
    report = mo.quantize_file(source, tmp_path / "b.safetensors", bits=2, max_layer_error=0.15, durable=False)
    assert words_of(tmp_path / "b.safetensors", "near.weight") == 128 * 4 // 32
    assert report.warnings == ("1 weight at 4 bits: their error at 2 bits is over 0.15",)
    assert report.tensors[0].reason.startswith("4 bits (its error at 2 bits is 0.")
    report = mo.quantize_file(source, tmp_path / "c.safetensors", bits=2, max_layer_error=0.01, durable=False)
    assert words_of(tmp_path / "c.safetensors", "near.weight") == 128 * 8 // 32
    assert report.warnings == ("1 weight at 8 bits: their error at 4 bits is over 0.01",)


def test_uniform_leaves_the_bits_and_warns_of_two_without_zero_points(tmp_path: Path) -> None:
    """H29."""
    source = write(tmp_path / "a.safetensors", {"near.weight": ("F32", weights((64, 128)))})
    report = mo.quantize_file(
        source, tmp_path / "b.safetensors", bits=2, scheme="symmetric", search=None, uniform=True, durable=False
    )
    assert words_of(tmp_path / "b.safetensors", "near.weight") == 128 * 2 // 32
    [warning] = report.warnings
    assert warning.startswith("1 weight of 2 bits without zero points")
    kinder = mo.quantize_file(
        source, tmp_path / "c.safetensors", bits=2, uniform=True, scheme="asymmetric", durable=False
    )
    assert kinder.warnings == ()
    assert kinder.totals.sqnr_db > report.totals.sqnr_db + 3


@pytest.mark.parametrize("columns", [20, 33, 48, 100, 129, 200])
@pytest.mark.parametrize("uniform", [False, True])
def test_fewer_bits_never_take_more_bytes(tmp_path: Path, columns: int, uniform: bool) -> None:
    """H20: where no group fits the rows, weights get 8 bits and do not stay floats."""
    source = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", weights((30, columns)))})
    sizes = []
    for bits in (8, 4, 2):
        out = tmp_path / f"{bits}.safetensors"
        report = mo.quantize_file(source, out, bits=bits, uniform=uniform, durable=False)
        assert report.totals.changed == 1
        sizes.append(report.totals.bytes_after)
    assert sizes == sorted(sizes, reverse=True)


def test_a_result_that_is_larger_than_its_source_says_so(tmp_path: Path) -> None:
    """H20."""
    source = write(tmp_path / "a.safetensors", {"fc.weight": ("F32", np.ones((2, 1), np.float32))})
    report = mo.quantize_file(source, tmp_path / "b.safetensors", include=["fc.*"], durable=False)
    assert report.warnings == ("the result is larger than its source: 32 bytes instead of 8",)
    report = mo.quantize_file(source, tmp_path / "c.safetensors", durable=False)  # nobody has asked for it
    assert (report.tensors[0].decision, report.tensors[0].reason) == ("copy", "the file would be no smaller")
    assert read(tmp_path / "c.safetensors").keys() == {"fc.weight"}


@pytest.mark.parametrize("columns", [1, 5, 8, 16, 33, 64])
@pytest.mark.parametrize(
    ("as_directory", "rows"), [*((False, rows) for rows in (1, 3, 8, 16, 40)), *((True, rows) for rows in (9, 16, 64))]
)
def test_fewer_bits_never_make_a_larger_file(tmp_path: Path, rows: int, columns: int, as_directory: bool) -> None:
    """H20: entries of headers, and what config.json says of codes, take more than small weights save."""
    rng = np.random.default_rng(0)
    tensors = {f"{i}.fc.weight": ("F32", rng.standard_normal((rows, columns), dtype=np.float32)) for i in range(4)}
    source = tmp_path / "a" if as_directory else write(tmp_path / "a.safetensors", tensors)
    if as_directory:
        directory(source, tensors, {"model_type": "bert"})
    sizes = [_nbytes(source)]
    for bits in (8, 4, 2):
        out = tmp_path / f"{bits}{source.suffix}"
        mo.quantize_file(source, out, bits=bits, durable=False)
        sizes.append(_nbytes(out))
    assert sizes == sorted(sizes, reverse=True)


def test_4_bits_have_no_zero_points_where_loaders_could_read_none(tmp_path: Path) -> None:
    """All have 8 rows or less: with zero points none would be quantized."""
    tensors = {
        f"{i}.fc.weight": ("F32", np.ones((8, 256), np.float32) * np.arange(256, dtype=np.float32)) for i in range(4)
    }
    report = mo.quantize_file(directory(tmp_path / "a", tensors), tmp_path / "b", bits=4, durable=False)
    assert report.totals.changed == 4
    assert b"zero_point" not in (tmp_path / "b" / "model.safetensors").read_bytes()


def _nbytes(path: Path) -> int:
    return sum(each.stat().st_size for each in path.iterdir()) if path.is_dir() else path.stat().st_size


def test_the_command_says_what_was_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.safetensors", {"near.weight": ("F32", weights((64, 128)))})
    options = ["--bits", "2", "--max-layer-error", "0.15"]
    assert main(["quantize", str(source), "-o", str(tmp_path / "b.safetensors"), *options]) == 0
    assert "note  1 weight at 4 bits: their error at 2 bits is over 0.15\n" in capsys.readouterr().out


def test_a_norm_is_that_of_the_array_function_and_only_of_a_search(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_t(3, (64, 128)).astype(np.float32)
    write(tmp_path / "a.safetensors", {"fc.weight": ("F32", w)})
    options: dict[str, Any] = {"bits": 4, "scheme": "symmetric", "uniform": True, "durable": False}
    report = mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", norm=0.7, **options)
    with mo.files.open(tmp_path / "b.safetensors", dequantize=True) as source:
        got = np.asarray(source.read("fc.weight"), np.float32)
    want = mo.fake_quantize(w, bits=4, group_size=32, search="mse", norm=0.7, scale_dtype="float16")
    np.testing.assert_array_equal(got, want)
    assert report.options["norm"] == 0.7
    for wrong in ({"norm": 5.0}, {"norm": 0.7, "search": None}, {"norm": 0.7, "format": "nf4"}):
        with pytest.raises(mo.OptionError, match=r"^norm must be from 0.5 to 4, of uniform codes with search 'mse'"):
            mo.QuantizeOptions(**wrong)
