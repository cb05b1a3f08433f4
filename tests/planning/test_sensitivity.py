"""Which weights get more bits than asked for: by how far off they are, and as far as loaders can read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import write
from modelopt_rs.layouts import row_quantizer
from modelopt_rs.planning.sensitivity import LAYER_ERRORS
from modelopt_rs.quant.search import Scales


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized(folder: Path, tensors: dict[str, Any], config: dict[str, Any] | None = None, **options: Any) -> Any:
    folder.mkdir(exist_ok=True)
    source = folder / "model"
    source.mkdir(exist_ok=True)
    write(source / "model.safetensors", {name: ("F32", array) for name, array in tensors.items()})
    if config is not None:
        (source / "config.json").write_text(json.dumps(config))
    return mo.quantize_file(source, folder / "out", overwrite=True, durable=False, **options)


def reasons(report: Any) -> dict[str, str]:
    return {tensor.name: tensor.reason for tensor in report.tensors}


def test_two_bits_that_are_asked_for_stay_where_nothing_is_wrong(tmp_path: Path) -> None:
    report = quantized(tmp_path, {"fc.weight": normal(64, 64)}, bits=2, scheme="asymmetric")
    assert reasons(report) == {"fc.weight": "weight of a linear layer"}
    assert report.options["max_layer_error"] == LAYER_ERRORS[2] == 0.5
    assert report.warnings[0].startswith("1 layer keeps its bits and is more than 0.15 off (the most: 'fc.weight' 0.")


def test_two_bits_without_zero_points_become_four_and_it_is_said_why(tmp_path: Path) -> None:
    report = quantized(tmp_path, {"fc.weight": normal(64, 64)}, bits=2, scheme="symmetric", search=None)
    assert reasons(report)["fc.weight"].startswith("4 bits (its error at 2 bits is 0.")
    assert report.warnings == ("1 weight at 4 bits: their error at 2 bits is over 0.5",)


def test_a_weight_that_was_measured_counts_once(tmp_path: Path) -> None:
    tensors = {"a.weight": normal(64, 64), "b.weight": 9 * normal(64, 64, seed=1)}
    # That of b is not measured: a glob says its bits.
    some = quantized(tmp_path, tensors, bits=4, bits_of={"b.*": 4})
    none = quantized(tmp_path, tensors, bits=4, uniform=True)
    assert some.totals.sqnr_db == none.totals.sqnr_db
    assert [t.sqnr_db for t in some.tensors] == [t.sqnr_db for t in none.tensors]


def test_a_move_that_no_loader_reads_is_not_made(tmp_path: Path) -> None:
    """compressed-tensors can't unpack the 4-bit zero points of 8 rows or less."""
    options = {"bits": 2, "scheme": "asymmetric", "max_layer_error": 0.1}
    report = quantized(tmp_path, {"fc.weight": normal(8, 64)}, {"model_type": "llama"}, **options)
    assert reasons(report)["fc.weight"].startswith("8 bits (its error at 2 bits is 0.")


def test_attention_values_of_encoders_have_half_of_the_limit(tmp_path: Path) -> None:
    names = [f"encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key", "value")]
    tensors = {name: normal(64, 64) for name in [*names, "model.layers.0.self_attn.v_proj.weight"]}
    report = quantized(tmp_path, tensors, bits=4)
    moved = [name for name, reason in reasons(report).items() if reason.startswith("8 bits (its error at 4 bits is 0.")]
    # Language models have theirs in one matrix with queries and keys in some runtimes.
    assert moved == names[2:]
    why = "1 weight at 8 bits: their error at 4 bits is over 0.075, the limit of attention values"
    assert report.warnings == (why,)


@pytest.mark.parametrize(("limit", "searches"), [(0.15, 1), (0.09, 2)])
def test_who_is_near_enough_by_the_plain_formula_is_searched_once(
    tmp_path: Path, limit: float, searches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 bits symmetric are 0.10 off by the plain formula, 0.085 with searched scales."""
    seen: list[str] = []

    class Counted(Scales):
        def find(self, *args: Any) -> None:
            seen.extend(["mse"] if self.search == "mse" else [])
            super().find(*args)

    monkeypatch.setattr(row_quantizer, "Scales", Counted)
    report = quantized(
        tmp_path, {"fc.weight": normal(64, 64)}, bits=4, scheme="symmetric", max_layer_error=limit, threads=1
    )
    assert reasons(report) == {"fc.weight": "weight of a linear layer"}
    assert len(seen) == searches


def heavy(*shape: int) -> Any:
    """Weights that 4 bits take too far off: two large ones in each group."""
    made = normal(*shape)
    made[:, ::32] = 15 * np.abs(made[:, ::32])
    made[:, 16::32] = -15 * np.abs(made[:, 16::32])
    return made


def test_weights_that_are_read_only_alike_are_coded_alike(tmp_path: Path) -> None:
    """H4: a checkpoint that nothing loads is never the default."""
    tensors = {"a.weight": normal(64, 96), "b.weight": normal(64, 48), "c.weight": heavy(32, 64)}
    alone = quantized(tmp_path, tensors, {"model_type": "bert"}, bits=4)
    assert reasons(alone)["c.weight"].startswith("8 bits (its error at 4 bits is 0.")
    alike = quantized(tmp_path, tensors, {"model_type": "t5"}, bits=4, scheme="symmetric")
    assert set(reasons(alike).values()) == {"weight of a linear layer"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["dequantize"] is True
    assert [group["weights"]["group_size"] for group in config["config_groups"].values()] == [16]
    assert alike.warnings[0] == (
        "2 weights are coded like the others, not as would be best: transformers reads tensor 'a.weight' only where "
        "all are coded alike"
    ) or alike.warnings[0].startswith("3 weights are")
    assert "'c.weight' 0." in alike.warnings[1]


def test_what_can_not_be_coded_like_the_others_stays_float(tmp_path: Path) -> None:
    tensors = {"a.weight": normal(256, 256), "b.weight": normal(8, 20)}
    options = {"bits": 4, "scheme": "symmetric"}
    report = quantized(tmp_path, tensors, {"model_type": "t5"}, **options)
    left = "it can't be coded like the others, and transformers reads this model only where all are"
    assert reasons(report) == {"a.weight": "weight of a linear layer", "b.weight": left}
    most = {"a.weight": normal(8, 32), "b.weight": normal(256, 250)}
    report = quantized(tmp_path, most, {"model_type": "t5"}, **options)
    assert {t.decision for t in report.tensors} == {"quantize"}
    assert reasons(report)["a.weight"].startswith("8 bits (it must be coded like the others)")


def test_two_ways_by_hand_are_refused_where_one_is_read(tmp_path: Path) -> None:
    tensors = {"a.weight": normal(64, 64), "b.weight": normal(64, 64)}
    with pytest.raises(mo.OptionError, match="transformers reads it only where all weights are coded alike, got 2"):
        quantized(tmp_path, tensors, {"model_type": "t5"}, bits=4, bits_of={"a.*": 8})


def test_numbers_that_are_none_say_nothing_of_how_far_off_a_weight_is(tmp_path: Path) -> None:
    for number in (np.nan, np.inf):
        weight = normal(64, 64)
        weight[3, 5] = number
        report = quantized(tmp_path, {"fc.weight": weight}, bits=4, nonfinite="saturate")
        assert reasons(report) == {"fc.weight": "weight of a linear layer"}


def schemes(folder: Path) -> dict[int, bool]:
    """Whether weights have no zero points, by their bits."""
    config = json.loads((folder / "out" / "config.json").read_text())["quantization_config"]
    return {each["weights"]["num_bits"]: each["weights"]["symmetric"] for each in config["config_groups"].values()}


@pytest.mark.parametrize("bits", [4, 2])
def test_h29_below_8_bits_weights_have_zero_points_where_they_are_read(tmp_path: Path, bits: int) -> None:
    config, tensors = {"model_type": "llama"}, {"a.weight": normal(64, 64), "b.weight": normal(96, 64)}
    quantized(tmp_path, tensors, config, bits=bits)
    assert schemes(tmp_path) == {bits: False}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["dequantize"] is True
    quantized(tmp_path, tensors, config, bits=8)
    assert schemes(tmp_path) == {8: True}
    # transformers reads two ways of coding with zero points no more than a layer that needs other bits.
    quantized(tmp_path, tensors, config, bits=bits, bits_of={"b.*": 8})
    assert schemes(tmp_path) == {bits: True, 8: True}
    quantized(tmp_path, tensors | {"c.weight": heavy(32, 64)}, config, bits=bits, max_layer_error=LAYER_ERRORS[bits])
    assert all(schemes(tmp_path).values()) == (len(schemes(tmp_path)) > 1)


def test_h29_weights_that_can_have_none_are_left_or_all_go_without(tmp_path: Path) -> None:
    config, tensors = {"model_type": "llama"}, {"a.weight": normal(64, 64), "b.weight": normal(8, 64)}
    report = quantized(tmp_path, tensors, config, bits=4)
    assert reasons(report)["b.weight"] == "compressed-tensors can't unpack 4-bit zero points of 8 rows or less"
    assert schemes(tmp_path) == {4: False}
    report = quantized(tmp_path, tensors, config, bits=4, include=["b.*"])
    assert {t.decision for t in report.tensors} == {"quantize"}
    assert schemes(tmp_path) == {4: True}
    # Where no loader reads a file, nothing keeps bits from being mixed.
    report = quantized(tmp_path / "alone", tensors, bits=4, bits_of={"a.*": 2})
    assert {t.decision for t in report.tensors} == {"quantize"}


def test_h29_experts_have_none(tmp_path: Path) -> None:
    names = [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in range(2)]
    tensors = {"model.layers.0.mlp.gate_proj.weight": normal(64, 64)} | {name: normal(64, 64) for name in names}
    (tmp_path / "out").mkdir(parents=True)
    quantized(tmp_path, tensors, {"model_type": "qwen3_moe"}, bits=4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    found = {
        "experts" in str(each["targets"]): each["weights"]["symmetric"] for each in config["config_groups"].values()
    }
    assert found == {True: True, False: False}


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("largest", [1e6, -1e6, float(np.finfo(np.float32).min)])
def test_numbers_too_large_for_scales_in_16_bits_have_8_bits(tmp_path: Path, bits: int, largest: float) -> None:
    """A mask, or one number that has run away: their scales are no numbers of float16, which scales are by default."""
    tensors = {"a.weight": normal(64, 64), "b.weight": normal(64, 64, seed=1)}
    tensors["b.weight"][3, 5] = largest
    report = quantized(tmp_path, tensors, bits=bits)
    said = "8 bits (its numbers are too large for scales in 16 bits at 4 bits)"
    assert reasons(report)["b.weight"].startswith(said)
    assert not reasons(report)["a.weight"].startswith("8 bits")
    assert "1 weight at 8 bits: their numbers are too large for scales in 16 bits at 4 bits" in report.warnings
    assert all(np.isfinite(each.sqnr_db) for each in report.tensors)


@pytest.mark.parametrize("options", [{"uniform": True}, {"bits_of": {"fc.*": 4}}])
def test_who_wants_them_in_few_bits_is_told_the_option(tmp_path: Path, options: dict[str, Any]) -> None:
    tensor = normal(64, 64)
    tensor[3, 5] = 1e6
    how = {"bits": 4, **options}
    message = r"'fc.weight', rows from 0: quantize: scale_dtype \(--scale-dtype\) must be 'float32' for numbers as "
    with pytest.raises(ValueError, match=message):
        quantized(tmp_path, {"fc.weight": tensor}, **how)
    report = quantized(tmp_path, {"fc.weight": tensor}, scale_dtype="float32", **how)
    assert report.totals.changed == 1
