"""What `config.json` and arguments may be wrong in (H42, H43)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, directory
from modelopt_rs import prune

X = np.ones((8, 8), np.float32)
NAMES = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
MODEL = {f"encoder.layer.0.{name}.weight": X for name in NAMES}
CONFIG = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 6}


@pytest.mark.parametrize(
    "pruned", [{"0": [0, 1]}, {"0": [0]}, {"0": [7]}, {"0": [-1]}, {"0": [1e999]}, {"x": [0]}, [1], {"0": 3}]
)
def test_pruned_heads_fit_the_tensors(pruned: Any) -> None:
    """H42. All heads are there, whatever the list says."""
    groups = prune.transformer_groups(MODEL, CONFIG, "heads")
    _, report = prune.crop(MODEL, groups, keep=1)
    with pytest.raises(ValueError, match=r"cropped_config: config\['pruned_heads'\] must "):
        prune.cropped_config({**CONFIG, "pruned_heads": pruned}, report)


@pytest.mark.parametrize(
    "change", [{"num_key_value_heads": 3}, {"num_key_value_heads": 9}, {"hidden_size": None}, {"hidden_size": "8"}]
)
def test_numbers_are_checked_before_they_divide(change: dict[str, Any]) -> None:
    """H42."""
    model = {f"layers.0.self_attn.{n}_proj.weight": X for n in "qkvo"}
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
    }
    _, report = prune.crop(model, prune.transformer_groups(model, config, "heads"), keep=2)
    with pytest.raises(ValueError, match="cropped_config: config"):
        prune.cropped_config({**config, **change}, report)


@pytest.mark.parametrize("wrong", [[X], None, 5, "abc"])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: prune.crop(x, []), "tensors"),
        (lambda x: prune.plan_crop(x, []), "tensors"),
        (lambda x: prune.apply_crop(x, [], {}), "tensors"),
        (lambda x: prune.apply_crop(MODEL, [], x), "kept"),
        (lambda x: prune.mlp_groups(x, ["a", "b"]), "tensors"),
        (lambda x: prune.chain_groups(x, [prune.Layer("a"), prune.Layer("b")]), "tensors"),
        (lambda x: prune.transformer_groups(x, CONFIG), "tensors"),
        (lambda x: prune.transformer_groups(MODEL, x), "config"),
        (lambda x: prune.cropped_config(x, None), "config"),
    ],
)
def test_a_mapping_is_wanted(call: Callable[[Any], Any], name: str, wrong: Any) -> None:
    """H43."""
    with pytest.raises(TypeError, match=f"{name} must be a mapping of .*, got {type(wrong).__name__}"):
        call(wrong)


def test_groups_and_reports_are_what_they_are_called() -> None:
    """H43."""
    with pytest.raises(TypeError, match="crop: groups must be a list of Group, got 5"):
        prune.crop(MODEL, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="crop: scores must be a mapping of arrays by group, got list"):
        prune.crop(MODEL, [], scores=[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cropped_config: report must be a CropReport, got NoneType"):
        prune.cropped_config(CONFIG, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("note", ["\\ud800", "a\\udfffb", "\\ud83d\\ude00"])
def test_lone_surrogates_come_along(tmp_path: Path, note: str) -> None:
    """H42. JSON can escape what UTF-8 has not."""
    model = directory(tmp_path / "model", bert())
    text = f'{{"model_type": "bert", "note": "{note}"}}'
    (model / "config.json").write_text(text)
    mo.quantize_file(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["note"] == json.loads(text)["note"]


def test_a_glob_may_be_a_name(tmp_path: Path) -> None:
    """H5. A name with brackets, by itself and in a longer glob."""
    from modelopt_rs.planning.decide import matches
    from modelopt_rs.stream.model import TensorInfo

    name = "layers[0].weight"
    tensors = {name: TensorInfo(name, "F32", (2, 2), 16)}
    assert list(matches(tensors, [name], "include")) == [name]
    fix = r"include '\*\[0\].weight' matches no tensor; \[ begins a set of characters: write \[\[\] for it, as in"
    with pytest.raises(mo.OptionError, match=fix):
        matches(tensors, ["*[0].weight"], "include")
    assert list(matches(tensors, ["*[[]0].weight"], "include")) == [name]
    with pytest.raises(mo.OptionError, match=r"matches no tensor$"):
        matches(tensors, ["*[1].weight"], "include")
