"""`modelopt-rs calibrate`, and what `quantize` makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx

from graph_nets import Net
from modelopt_rs.cli import main

X = np.random.default_rng(0).integers(-8, 9, (96, 64)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    net = Net({"x": ["n", 64]}, ["y", "z"])
    net.add("MatMul", "x", net.w("w", 64, 128), out="y")
    net.add(
        "Conv", net.add("Reshape", "x", net.ints("shape", -1, 4, 4, 4)), net.w("conv", 64, 2, 3, 3), out="z", group=2
    )
    onnx.save(net.proto(), tmp_path / "a.onnx")
    for name, rows in {"all": X, "left": X[:30], "right": X[30:]}.items():
        np.savez(tmp_path / name, x=rows)
    return tmp_path / "a.onnx"


def test_two_machines_files_are_added_up_and_taken(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("all", "left", "right"):
        out = tmp_path / f"{name}.safetensors"
        assert main(["calibrate", str(model), "--calibrate", str(tmp_path / f"{name}.npz"), "-o", str(out)]) == 0
    assert "2 weights, 96 to 384 rows of inputs each" in capsys.readouterr().out
    parts = [str(tmp_path / f"{name}.safetensors") for name in ("left", "right")]
    report = tmp_path / "report.json"
    assert main(["calibrate", "--merge", *parts, "-o", str(tmp_path / "sum"), "--json", str(report)]) == 0
    assert (tmp_path / "sum").read_bytes() == (tmp_path / "all.safetensors").read_bytes()
    weights = [{"name": "w", "columns": 64, "rows": 96}, {"name": "conv", "columns": 18, "rows": 384}]
    assert json.loads(report.read_text())["weights"] == weights
    how = ["quantize", str(model), "--bits", "4", "--method", "gptq", "--uniform"]
    assert main([*how, "--statistics", str(tmp_path / "sum"), "-o", str(tmp_path / "b.onnx")]) == 0
    assert main([*how, "--calibrate", str(tmp_path / "all.npz"), "-o", str(tmp_path / "c.onnx")]) == 0
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert "rounded without GPTQ" not in capsys.readouterr().out
    how += ["--statistics", str(tmp_path / "sum"), "-o", str(tmp_path / "d.onnx")]
    assert main([*[word for word in how if word not in ("--method", "gptq")], "--json", str(report)]) == 0
    assert "searched whatever goes in: convolutions are rounded plainly" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["calibrate", "a", "b", "-o", "c"], "one MODEL, got 2; or pass --merge"),
        (["calibrate", "a", "-o", "c"], "Missing option '--calibrate' (or --merge); see modelopt-rs calibrate --help"),
        (["calibrate", "--merge", "a", "b", "--calibrate", "x", "-o", "c"], "--merge takes files of statistics alone"),
        (["calibrate", "--merge", "a", "-o", "c"], "paths must be two or more files of statistics, got 1"),
        (["quantize", "a", "-o", "b", "--method", "awq"], "--method awq needs --calibrate or --statistics"),
    ],
)
def test_wrong_use_is_said_in_a_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    assert text in capsys.readouterr().err
