"""AWQ of ONNX models: factors leave what a model computes, and what is written is nearer to it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
import onnxruntime as ort

import modelopt_rs as mo
from graph_nets import Net
from modelopt_rs.files.onnx import OnnxSource
from modelopt_rs.onnx.awq import find_factors
from modelopt_rs.onnx.folding import Folding
from modelopt_rs.onnx.known_inputs import known_inputs
from modelopt_rs.planning.onnx import OnnxOptions
from modelopt_rs.planning.quantize import QuantizeOptions
from modelopt_rs.stream.execution import Execution

RNG = np.random.default_rng(0)
# Some channels are large: what factors are for.
X = RNG.normal(size=(256, 64)).astype(np.float32) * np.where(np.arange(64) % 16 == 3, 20, 1).astype(np.float32)
WAYS = ("norm", "mul", "mul and add", "relu", "gate", "gemm")


def net(way: str) -> Net:
    """Return a model in which something that can be divided makes the input of two products."""
    net = Net({"x": ["n", 64]})
    wide = np.where(np.arange(64) % 16 == 5, 20, 1).astype(np.float32)
    if way == "norm":
        h = net.add("LayerNormalization", "x", net.positive("scale", 64), net.w("shift", 64), axis=-1)
        net.weights["scale"] *= wide
    elif way == "mul":
        h = net.add("Mul", net.positive("scale", 64), "x")
    elif way == "mul and add":
        h = net.add("Add", net.add("Mul", "x", net.positive("scale", 1, 64)), net.w("shift", 64))
    elif way == "relu":
        h = net.add("Relu", net.add("Add", net.add("MatMul", "x", net.w("before", 64, 64)), net.w("shift", 64)))
        net.weights["before"] *= wide
    elif way == "gate":
        up = net.add("MatMul", "x", net.w("before", 64, 64))
        net.weights["before"] *= wide
        h = net.add("Mul", net.add("Sigmoid", net.add("MatMul", "x", net.w("gate", 64, 64))), up)
    else:
        h = net.add("Gemm", "x", net.w("before", 64, 64), net.w("shift", 64), transB=1)
        net.weights["before"] *= wide[:, None]
    both = [net.add("MatMul", h, net.w(name, 64, 128)) for name in ("left", "right")]
    net.add("Add", *both, out="y")
    return net


def run(path: Path) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


@pytest.mark.parametrize("way", WAYS)
def test_factors_leave_what_a_model_computes(way: str, tmp_path: Path) -> None:
    onnx.save(net(way).proto(), tmp_path / "a.onnx")
    execution = Execution(1 << 28, None, None, 0)
    with OnnxSource(tmp_path / "a.onnx") as source:
        folding = Folding(source, 1 << 20)
        known = known_inputs(folding, "awq", {"x": X}, execution)
        options = QuantizeOptions(bits=4, uniform=True, method="awq")
        found = find_factors(folding, known, options, OnnxOptions())
        assert found.weights.keys() >= {"left", "right"}
        s = found.weights["left"][0]
        assert s is found.weights["right"][0]
        assert s.max() > 1.5 * s.min()
        for name, factors in found.weights.items():
            value = source.graph.graph.initializers[name]
            w = value.const_value.numpy()
            for axis, factor in factors.items():
                w = w * factor.reshape([-1, 1] if axis == 0 else [1, -1])
            value.const_value = ir.tensor(w.astype(np.float32), name=name)
        ir.save(source.graph, tmp_path / "b.onnx")
    want = run(tmp_path / "a.onnx")
    np.testing.assert_allclose(run(tmp_path / "b.onnx"), want, atol=2e-6 * np.abs(want).max())


def error(path: Path, want: np.ndarray) -> float:
    return float(np.linalg.norm(run(path) - want) / np.linalg.norm(want))


@pytest.mark.parametrize("way", WAYS)
def test_less_is_lost_than_by_a_search_alone(way: str, tmp_path: Path) -> None:
    onnx.save(net(way).proto(), tmp_path / "a.onnx")
    want, errors = run(tmp_path / "a.onnx"), {}
    for name, more in {"search": {}, "awq": {"method": "awq", "calibrate": {"x": X}}}.items():
        options: dict[str, Any] = {"bits": 4, "scheme": "symmetric", "uniform": True, "run": None, "durable": False}
        # What is before loses the same in both.
        options |= {
            "exclude": ["before"] if way in ("relu", "gate", "gemm") else [],
            "onnx": OnnxOptions(accuracy_level=0),
        }
        report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / f"{name}.onnx", **options, **more)
        errors[name] = error(tmp_path / f"{name}.onnx", want)
    assert errors["awq"] < 0.95 * errors["search"]
    reasons = {each.name: each.reason for each in report.tensors}
    assert reasons["left"].endswith("; AWQ")
    if "scale" in reasons:
        assert reasons["scale"] == "divided by the factors of AWQ"
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in errors]
    assert abs(sizes[0] - sizes[1]) < 200  # names


def test_an_input_that_others_take_too_is_left_and_said(tmp_path: Path) -> None:
    model = Net({"x": ["n", 64]})
    h = model.add("Mul", "x", model.positive("scale", 64))
    y = model.add("MatMul", h, model.w("w", 64, 64))
    z = model.add("Add", y, h)
    model.add("MatMul", model.add("Mul", z, model.positive("other", 64)), model.w("v", 64, 64), out="y")
    onnx.save(model.proto(), tmp_path / "a.onnx")
    options: dict[str, Any] = {"bits": 4, "uniform": True, "durable": False, "run": None}
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **options, method="awq", calibrate={"x": X})
    reasons = {each.name: each.reason for each in report.tensors}
    assert reasons["w"].endswith(f"; not AWQ: what makes its input {h!r} can't be divided, or others take it too")
    assert reasons["v"].endswith("; AWQ")
    assert any(each.startswith("1 weight is rounded without AWQ: what makes its input") for each in report.warnings)
    # It has the very codes of a search alone.
    mo.quantize_file(tmp_path / "a.onnx", tmp_path / "c.onnx", **options)
    with mo.files.open(tmp_path / "b.onnx") as b, mo.files.open(tmp_path / "c.onnx") as c:
        codes = [each for each in b.tensors if each.startswith("w_quantized")]
        assert codes
        assert all((b.read(each) == c.read(each)).all() for each in codes)


def test_threads_change_no_byte_and_a_dry_run_looks_at_nothing(tmp_path: Path) -> None:
    onnx.save(net("norm").proto(), tmp_path / "a.onnx")
    options: dict[str, Any] = {"bits": 4, "method": "awq", "uniform": True, "durable": False, "run": None}
    options["overwrite"] = True
    made = []
    for threads in (1, 2):
        mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **options, calibrate={"x": X}, threads=threads)
        made.append((tmp_path / "b.onnx").read_bytes())
    assert made[0] == made[1]
    report = mo.quantize_file(tmp_path / "a.onnx", "", **options, calibrate=list, dry_run=True)
    assert sum(each.reason.endswith("; AWQ") for each in report.tensors) == 2
