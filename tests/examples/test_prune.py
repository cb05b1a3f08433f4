"""The examples that prune and crop: the sizes they print hold, the pictures are drawn, accuracy comes back."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo

pytest.importorskip("sklearn", reason="scikit-learn, which has the data, is not installed")
import digits
import fashion_mnist
import prune_digits
import prune_fashion_mnist

QUICK = prune_digits.Plan(epochs=8, tune_epochs=5, seeds=(0,))


@pytest.fixture(scope="module")
def data() -> digits.Data:
    return digits.digits()


@pytest.fixture(scope="module")
def models(data: digits.Data) -> list[prune_digits.Model]:
    return prune_digits.mean_of([prune_digits.measure(data, QUICK, 0)])


def test_sizes_are_those_of_bitmasks_and_of_narrower_layers(models):
    dense, half, four_fifths, nine_tenths, wide, narrow = models
    assert dense.stored == 4 * (64 * 128 + 128 + 128 * 10 + 10)
    rows = 64 + 1 + 128 + 1
    bitmask = 64 * 16 + 128 * 2 + 8 * rows + 4 * (128 + 10)
    for model in (half, four_fifths, nine_tenths):
        assert model.stored == bitmask + 4 * (9472 - round(model.share * 9472))
    for model, width in ((wide, 64), (narrow, 32)):
        assert model.stored == 4 * (64 * width + width + width * 10 + 10)


def test_fine_tuning_and_repair_bring_the_accuracy_back(models):
    """Measured with these few epochs: 96.0 % dense, 86.0 % with 90 % of zeros, the others above 94 %."""
    dense, *others = models
    assert dense.plain > 0.95
    for model in others:
        assert model.tuned >= model.plain
        assert model.repaired >= model.plain
    assert [model.tuned > 0.93 for model in others] == [True, True, False, True, True]
    assert others[2].tuned > others[2].plain + 0.1
    cropped = [model for model in others if model.kind == "cropped"]
    assert all(model.repaired > model.plain + 0.03 for model in cropped)
    assert prune_digits.lost(models) < 0.03


def test_what_is_fine_tuned_is_pruned_to_exactly_the_share(data):
    params = digits.new_params(seed=3)
    again = prune_digits.tuned(params, data, prune_digits.Plan(tune_epochs=1), 0.9)
    assert sum(np.count_nonzero(again[name] == 0) for name in ("w0", "w1")) == round(0.9 * 9472)


def test_repair_leaves_a_layer_as_it_was_that_reads_copies(data):
    """Of hidden units that come twice, half can go for nothing; also in two hidden layers."""
    params = digits.new_params((64, 32, 16, 10), seed=1)
    for i, n, larger in ((0, 16, 10), (1, 8, 1000)):
        params[f"w{i}"][:, n:], params[f"b{i}"][n:] = params[f"w{i}"][:, :n], params[f"b{i}"][:n]
        params[f"w{i + 1}"][:n] *= larger  # so that the first of each pair stays
    small, repaired = prune_digits.cropped(params, 0.5, data.x)
    assert [small[f"w{i}"].shape for i in range(3)] == [(64, 16), (16, 8), (8, 10)]
    want, got, plain = (digits.forward(p, data.held_out_x)[-1] for p in (params, repaired, small))
    close = 1e-4 * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=close)
    assert np.abs(plain - want).max() > 10 * close


def test_table_and_picture(models, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra `demo` is not installed")
    prune_digits.show(models)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(models)
    assert len({len(line) for line in lines}) == 1
    assert "pruned to 80% zeros" in lines[4]
    prune_digits.draw(models, "digits", tmp_path / "a.svg")
    for name in ("a.svg", "a-dark.svg"):
        assert "<svg" in (tmp_path / name).read_text()


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def test_fashion_mnist_runs_on_files_of_its_form(tmp_path, capsys, monkeypatch):
    """Images of noise: the table, the picture; what is lost by half says nothing."""
    pytest.importorskip("matplotlib", reason="the extra `demo` is not installed")
    rng = np.random.default_rng(0)
    for name, n in (("train", 512), ("t10k", 64)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28)))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", rng.integers(0, 10, n))
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--epochs", "1", "--picture", str(tmp_path / "a.png")])
    monkeypatch.setattr(prune_fashion_mnist, "MOST_LOST", 1.0)
    assert prune_fashion_mnist.main() == 0
    assert "cropped to 25% width" in capsys.readouterr().out
    assert (tmp_path / "a.png").is_file()


def test_fashion_mnist_without_data_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    for example in (fashion_mnist, prune_fashion_mnist):
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path)])
        assert example.main() == fashion_mnist.ABSENT
        assert capsys.readouterr().err == f"no data in {tmp_path}: apt-get install dataset-fashion-mnist\n"


def test_half_that_costs_too_much_is_an_error(capsys, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `demo` is not installed")
    monkeypatch.setattr(prune_digits, "Plan", lambda: QUICK)
    monkeypatch.setattr(prune_digits, "MOST_LOST", -1.0)
    monkeypatch.setattr(sys, "argv", ["x", "--picture", str(tmp_path / "a.png")])
    assert prune_digits.main() == 1
    assert "half must lose at most -100.0%" in capsys.readouterr().err


def test_pruned_is_what_global_magnitude_says():
    params = digits.new_params()
    zeroed = prune_digits.pruned(params, 0.8)
    want = mo.prune.global_magnitude([params["w0"], params["w1"]], 0.8)
    assert all((zeroed[name] == w).all() for name, w in zip(("w0", "w1"), want, strict=True))
    assert zeroed["b0"] is params["b0"]
