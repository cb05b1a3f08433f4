"""H3: what is known of a source stands in the summary and in the JSON of every command, once, and never on stderr."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints import bert, sharded

COMMANDS: dict[str, list[str]] = {
    "quantize": ["{model}", "-o", "{out}", "--bits", "8"],
    "prune": ["{model}", "-o", "{out}", "--sparsity", "0.5"],
    "prune --then": ["{model}", "-o", "{out}", "--sparsity", "0.5", "--then", "quantize", "--bits", "8"],
    "crop": ["{model}", "-o", "{out}", "--keep", "0.5", "--what", "heads"],
    "dequantize": ["{model}", "-o", "{out}"],
    "inspect": ["{model}"],
    "compare": ["{model}", "{model}"],
}
CONFIG = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1,
          "intermediate_size": 64, "max_position_embeddings": 16}  # fmt: skip


def model_with_wrong_index(path: Path, problem: str) -> Path:
    """Write a checkpoint whose index is out of step with its shards in a way that loses nothing."""
    tensors = bert()
    inner = "encoder.layer.0."
    query, dense = tensors[f"{inner}attention.self.query.weight"], tensors[f"{inner}output.dense.weight"]
    for name in ("key", "value"):
        tensors[f"{inner}attention.self.{name}.weight"] = query
    tensors[f"{inner}attention.output.dense.weight"] = query
    tensors[f"{inner}intermediate.dense.weight"] = ("F32", dense[1].T.copy())
    sharded(path, tensors)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    if problem == "total_size":
        index["metadata"]["total_size"] += 1
    else:
        index["weight_map"]["cls.predictions.decoder.weight"] = "model-00002-of-00002.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("total_size", "model.safetensors.index.json: total_size is "),
        ("tied", "model.safetensors.index.json: tensor 'cls.predictions.decoder.weight' is not in shard "),
    ],
)
def test_h3_no_warning_of_a_source_is_lost(
    command: str, problem: str, words: str, tmp_path: Path, run: Callable[..., str]
) -> None:
    model = model_with_wrong_index(tmp_path / "model", problem)
    given = [each.format(model=model, out=tmp_path / "out") for each in COMMANDS[command]]
    before = given.index("--then") if "--then" in given else len(given)
    given[before:before] = ["--json", str(tmp_path / "report.json")]
    said = run(command.split()[0], *given).replace("\n", " ")
    times = 2 if command == "compare" else 1  # of either file
    assert said.count(words) == times, said
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert sum(words in warning for warning in report["warnings"]) == times


def test_then_says_what_quantize_says(tmp_path: Path, run: Callable[..., str]) -> None:
    """What `quantize` notes of its result is noted after `--then` as well."""
    model = model_with_wrong_index(tmp_path / "model", "total_size")
    options = ("--bits", "2", "--scheme", "symmetric", "--search", "none")
    plain = run("quantize", model, "-o", tmp_path / "a", *options, "--uniform")
    then = run("prune", model, "-o", tmp_path / "b", "--sparsity", "0.5", "--then", "quantize", *options)
    crop = run("crop", model, "-o", tmp_path / "c", "--keep", "0.5", "--what", "heads", "--then", "quantize", *options)
    for said in (plain, then, crop):
        assert "of 2 bits without zero points" in said
