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
    net = Net({"x": ["n", 64]})
    net.add(
        "Conv",
        net.add("Reshape", net.add("MatMul", "x", net.w("w", 64, 128)), net.ints("shape", -1, 8, 4, 4)),
        net.w("conv", 64, 8, 3, 3),
        out="y",
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
    assert "1 weight, 96 rows of inputs each" in capsys.readouterr().out
    parts = [str(tmp_path / f"{name}.safetensors") for name in ("left", "right")]
    report = tmp_path / "report.json"
    assert main(["calibrate", "--merge", *parts, "-o", str(tmp_path / "sum"), "--json", str(report)]) == 0
    assert (tmp_path / "sum").read_bytes() == (tmp_path / "all.safetensors").read_bytes()
    assert json.loads(report.read_text())["weights"] == [{"name": "w", "columns": 64, "rows": 96}]
    how = ["quantize", str(model), "--bits", "4", "--method", "gptq", "--uniform"]
    assert main([*how, "--statistics", str(tmp_path / "sum"), "-o", str(tmp_path / "b.onnx")]) == 0
    assert main([*how, "--calibrate", str(tmp_path / "all.npz"), "-o", str(tmp_path / "c.onnx")]) == 0
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert "1 weight is rounded without GPTQ: convolutions are rounded plainly" in capsys.readouterr().out


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
