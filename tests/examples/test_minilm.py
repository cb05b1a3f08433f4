"""The examples of a Hugging Face directory and of one layer, on a BERT of two layers: all variants are compared."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("click", reason="the extra `cli` is not installed")
import checkpoints
import minilm
import minilm_layer
import minilm_onnx

HIDDEN, INNER, WORDS, POSITIONS = 128, 256, 300, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model `minilm` of random weights."""
    rng, tensors = np.random.default_rng(0), {}

    def dense(name: str, outputs: int, inputs: int) -> None:
        tensors[f"{name}.weight"] = rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        tensors[f"{name}.bias"] = rng.standard_normal(outputs) / 10

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(HIDDEN), np.zeros(HIDDEN)

    for kind, n in (("word", WORDS), ("token_type", 2), ("position", POSITIONS)):
        tensors[f"embeddings.{kind}_embeddings.weight"] = rng.standard_normal((n, HIDDEN))
    norm("embeddings.LayerNorm")
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
        dense(f"{layer}.intermediate.dense", INNER, HIDDEN)
        dense(f"{layer}.output.dense", HIDDEN, INNER)
        norm(f"{layer}.attention.output.LayerNorm")
        norm(f"{layer}.output.LayerNorm")
    config = {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": POSITIONS,
        "layer_norm_eps": 1e-12,
    }
    place = tmp_path_factory.mktemp("minilm")
    floats = {name: ("F32", array.astype(np.float32)) for name, array in tensors.items()}
    checkpoints.directory(place / "minilm", floats, config)
    return place


def test_every_variant_is_made_and_what_it_is_worth_falls_with_its_size(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.random.default_rng(1).integers(0, WORDS, (9, 12))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    whole = minilm.stored(folder / "minilm")
    words = minilm.VARIANTS["11 MB, --prior"]
    variants = {
        "8 bits": minilm.VARIANTS["8 bits"],
        "a fifth": tuple(str(whole // 5) if word == "11MB" else word for word in words),
    }
    original, eight, fifth = minilm.measured(folder, feed, variants)
    assert (original.nbytes, original.mean) == (whole, 1.0)
    assert 0.25 < eight.nbytes / whole < 0.35
    assert fifth.nbytes <= whole // 5
    assert 0.999 < eight.mean <= 1.0001
    assert 0.8 < fifth.lowest < fifth.mean < eight.mean
    assert "modelopt-rs optimize minilm -o minilm-a-fifth" in capsys.readouterr().out
    assert json.loads((folder / "losses.json").read_text())


def test_quantized_weights_are_floats_again_in_the_graph(folder: Path) -> None:
    if not (folder / "minilm-8-bits").exists():
        minilm.run("quantize", "minilm", "-o", "minilm-8-bits", "--overwrite", cwd=folder)
    built = minilm_onnx.build(folder / "minilm-8-bits").graph
    plain = minilm_onnx.build(folder / "minilm").graph
    assert [(each.name, each.dims) for each in built.initializer] == [(e.name, e.dims) for e in plain.initializer]


def test_a_layer_in_numpy_is_that_of_onnxruntime_and_codes_stay_near(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, config = minilm_layer.weights(folder / "minilm")
    x = np.random.default_rng(2).standard_normal((POSITIONS, HIDDEN)).astype(np.float32)
    ways = {}
    for bits in (None, 8, 4):
        made = minilm_layer.model(tensors, config, bits)
        ways[str(bits)] = (made.nbytes, lambda x, made=made: minilm_layer.layer(made, x))
    ways |= minilm_layer.sessions(tensors, config, tmp_path)
    want = ways["onnxruntime, float32"][1](x)
    np.testing.assert_allclose(ways["None"][1](x), want, rtol=1e-4, atol=1e-4)
    rows = minilm_layer.measure(ways, {1: x[:1], POSITIONS: x}, rounds=2, calls=1)
    assert [row.nbytes for row in rows[:3]] == sorted((row.nbytes for row in rows[:3]), reverse=True)
    assert 0.98 < rows[2].cosine < rows[1].cosine < 1 - 1e-6
    minilm_layer.show(rows, [1, POSITIONS])
    assert "| onnxruntime, 4 bits   |" in capsys.readouterr().out
