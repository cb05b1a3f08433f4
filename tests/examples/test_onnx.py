"""The real models of the ONNX examples are what they are said to be, and what measures them measures it."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")
import onnx

import digits_onnx
import magika_onnx
import minilm_onnx
import onnx_table
from digits import accuracy, digits, new_params
from modelopt_rs.onnx.run.pair import run_pair
from modelopt_rs.planning.run import RunOptions

ARGS = argparse.Namespace(rounds=2, threads=1)
TEXTS = ["A man is eating food.", "The train to Vienna leaves at nine.", "It rained all night, and the river rose."]


def disturbed(source: Path, target: Path, size: float, least: int = 1000) -> Path:
    """The same model with normal noise on its large weights, of `size` times their deviation."""
    model, rng = onnx.load(source), np.random.default_rng(1)
    for weight in model.graph.initializer:
        x = onnx.numpy_helper.to_array(weight)
        if x.dtype == np.float32 and x.size >= least:
            noise = rng.standard_normal(x.shape).astype(np.float32) * np.float32(size * x.std())
            weight.CopyFrom(onnx.numpy_helper.from_array(x + noise, weight.name))
    onnx.save(model, target)
    return target


# ---- digits


def test_digits_in_onnxruntime_are_those_of_numpy(tmp_path: Path) -> None:
    data, params = digits(), new_params()
    path = digits_onnx.write(tmp_path / "digits.onnx", params)
    onnx.checker.check_model(str(path), full_check=True)
    assert digits_onnx.accuracy(path, data.held_out_x, data.held_out_y) == accuracy(
        params, data.held_out_x, data.held_out_y
    )


def test_trained_digits_are_recognized_and_measured(tmp_path: Path) -> None:
    data = digits()
    path = digits_onnx.write(tmp_path / "digits.onnx", digits_onnx.trained(data, epochs=8))
    work = digits_onnx.task(data)
    row = onnx_table.measure("itself", path, path, work, ARGS)
    assert row.score > 0.93
    assert (row.share, row.cosine) == (1.0, 1.0)
    assert min(row.ms, row.speedup) > 0
    worse = onnx_table.measure("noise", path, disturbed(path, tmp_path / "b.onnx", 3.0, least=500), work, ARGS)
    assert worse.score < row.score - 0.1
    assert worse.sqnr_db < 10


def test_the_example_measures_models_and_writes_a_report(tmp_path: Path) -> None:
    given = disturbed(digits_onnx.write(tmp_path / "a.onnx", new_params()), tmp_path / "b.onnx", 0.1)
    example = Path(digits_onnx.__file__)
    command = [sys.executable, example, given, "--rounds", "2", "--json", tmp_path / "rows.json", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["title"] for row in rows] == ["the original", "b.onnx"]
    assert rows[0]["score"] > 0.95 > rows[1]["score"]
    assert (tmp_path / "digits.npz").exists()


def test_bytes_outside_of_a_file_count(tmp_path: Path) -> None:
    path = digits_onnx.write(tmp_path / "digits.onnx", new_params())
    whole = onnx_table.stored(path)
    onnx.save(onnx.load(path), tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    assert onnx_table.stored(tmp_path / "b.onnx") > whole - 1000
    assert (tmp_path / "b.onnx").stat().st_size < whole / 10


def test_the_command_line_makes_the_models(tmp_path: Path) -> None:
    path = digits_onnx.write(tmp_path / "digits.onnx", new_params())
    np.savez(tmp_path / "digits.npz", pixels=digits().x)
    words = {title: digits_onnx.VARIANTS[title] for title in ("4 bits", "8 bits, activations too", "half cropped")}
    made = onnx_table.make(onnx_table.ours(words), path, tmp_path)
    shares = {title: onnx_table.stored(small) / onnx_table.stored(path) for title, small in made.items()}
    assert (shares["4 bits"] < 0.2, 0.45 < shares["half cropped"] < 0.55) == (True, True)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(made["8 bits, activations too"]).graph.node}


def test_a_model_of_ours_that_can_not_be_made_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = digits_onnx.write(tmp_path / "digits.onnx", new_params())
    with pytest.raises(subprocess.CalledProcessError):
        onnx_table.make(onnx_table.ours({"no": ("quantize", "--bits-of", "no.weight=4")}), path, tmp_path)
    assert "bits_of 'no.weight' matches no tensor" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("complain", "score", "cosine", "nbytes", "message"),
    [
        (magika_onnx.complain, 0.98, 1.0, 150, ""),
        (magika_onnx.complain, 0.97, 1.0, 150, "4 bits must agree on 98.0% at 0.15 of the bytes, got 97.00% at 0.150"),
        (magika_onnx.complain, 0.99, 1.0, 151, "4 bits must agree on 98.0% at 0.15 of the bytes, got 99.00% at 0.151"),
        (minilm_onnx.complain, 0.5, 0.99, 16_099_999, ""),
        (minilm_onnx.complain, 1.0, 0.989, 13, "a cosine of 0.99 in less than 16,100,000 bytes, got 0.9890 in 13"),
        (minilm_onnx.complain, 1.0, 0.99, 16_100_000, "got 0.9900 in 16,100,000"),
    ],
)  # fmt: skip
def test_an_example_fails_where_a_target_is_missed(
    complain: Any, score: float, cosine: float, nbytes: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = onnx_table.Row("4 bits", nbytes, nbytes / 1000, score, cosine, 20.0, ms=9.0, speedup=0.5)
    assert complain([row]) == bool(message)
    assert message in capsys.readouterr().err


# ---- magika


@pytest.fixture(scope="module")
def rows() -> tuple[list[Path], np.ndarray]:
    pytest.importorskip("magika", reason="the package magika is not installed")
    found = magika_onnx.find_files(per_kind=2)
    if len(found) < 20:
        pytest.skip("no files of known kinds on this machine")
    return magika_onnx.features(found)


def test_magika_knows_files_by_their_kinds(rows: tuple[list[Path], np.ndarray]) -> None:
    paths, features = rows
    assert features.shape == (len(paths), 2048)
    known = magika_onnx.find_files(per_kind=2)
    found = magika_onnx.labels(magika_onnx.package_model() / "model.onnx", features)
    assert np.mean([label in known[path] for path, label in zip(paths, found, strict=True)]) > 0.75


def test_the_features_are_those_of_the_client(rows: tuple[list[Path], np.ndarray], tmp_path: Path) -> None:
    paths, features = rows
    model = magika_onnx.package_model() / "model.onnx"
    from magika import Magika

    theirs = [str(result.dl.label) for result in Magika().identify_paths(paths)]
    assert magika_onnx.labels(model, features) == theirs
    assert len(magika_onnx.client_labels(model, paths, tmp_path / "model")) == len(paths)


def test_agreement_falls_with_the_noise(rows: tuple[list[Path], np.ndarray], tmp_path: Path) -> None:
    features = rows[1][:24]
    model = magika_onnx.package_model() / "model.onnx"
    work = magika_onnx.task(model, features)
    assert work.score(model) == 1.0
    assert work.score(disturbed(model, tmp_path / "little.onnx", 0.001)) > 0.9
    assert work.score(disturbed(model, tmp_path / "much.onnx", 3.0)) < 0.6


# ---- MiniLM


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    try:
        return minilm_onnx.write(tmp_path_factory.mktemp("minilm") / "minilm.onnx")
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_minilm_is_a_valid_model_of_its_size(minilm: Path) -> None:
    onnx.checker.check_model(str(minilm), full_check=True)
    assert 90_000_000 < minilm.stat().st_size < 91_000_000


def test_minilm_embeds_meaning(minilm: Path) -> None:
    feed = minilm_onnx.tokenize(["A man is eating food.", "A man eats a meal.", "Stock markets fell sharply."])
    a, b, c = minilm_onnx.embed(minilm, feed)
    np.testing.assert_allclose([a @ a, b @ b, c @ c], 1, rtol=1e-5)
    assert a @ b > 0.6 > 0.3 > a @ c


def test_padding_changes_no_embedding(minilm: Path) -> None:
    together = minilm_onnx.embed(minilm, minilm_onnx.tokenize(TEXTS))
    alone = np.concatenate([minilm_onnx.embed(minilm, minilm_onnx.tokenize([text])) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.filterwarnings("default")
def test_minilm_is_that_of_transformers(minilm: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra `interop` is not installed: torch")
    transformers = pytest.importorskip("transformers", reason="the extra `interop` is not installed: transformers")
    feed = minilm_onnx.tokenize(TEXTS)
    model: Any = transformers.AutoModel.from_pretrained(minilm_onnx.find_model()).eval()
    with torch.no_grad():
        hidden = model(**{name: torch.from_numpy(x) for name, x in feed.items()}).last_hidden_state
    mask = torch.from_numpy(feed["attention_mask"])[..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    assert (minilm_onnx.embed(minilm, feed) * expected).sum(axis=1).min() > 0.99999


def test_generated_inputs_run_a_real_model(minilm: Path) -> None:
    report = run_pair(minilm, minilm, RunOptions(rounds=0, dims={"sequence": 12}, max_error=0.0))
    assert {x.name: x.shape for x in report.inputs}["input_ids"] == (1, 12)
    assert [output.name for output in report.outputs] == ["last_hidden_state", "sentence_embedding"]


def test_sentences_are_many_and_all_different() -> None:
    found = minilm_onnx.sentences(50)
    assert len(found) == len(set(found)) == 50
    assert min(map(len, found)) >= 40
