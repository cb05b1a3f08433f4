"""`modelopt-rs compare` of two ONNX models: by tensors, by outputs, in time."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, write
from modelopt_rs.cli import main

pytest.importorskip("click", reason="the extra `cli` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed: onnx")
import onnx
from onnx import TensorProto, helper, numpy_helper

Run = Callable[..., tuple[int, str, str]]
W = np.random.default_rng(3).standard_normal((64, 32)).astype(np.float32)
X = np.random.default_rng(4).standard_normal((6, 64)).astype(np.float32)


def model(path: Path, w: np.ndarray, output: str = "y") -> Path:
    node = helper.make_node("MatMul", ["x", "w"], [output], name="product")
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", len(w)])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", w.shape[1]])],
        [numpy_helper.from_array(w, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    noise = np.random.default_rng(5).standard_normal(W.shape).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=X)
    return model(tmp_path / "a.onnx", W), model(tmp_path / "b.onnx", W + np.float32(0.01) * noise)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return call


def test_two_onnx_models_are_compared_by_tensors_and_outputs(pair: tuple[Path, Path]) -> None:
    report = mo.compare_files(*pair, run=mo.RunOptions(inputs={"x": X}, rounds=0))
    a = X.astype(np.float64) @ W
    b = X.astype(np.float64) @ numpy_helper.to_array(onnx.load(pair[1]).graph.initializer[0])
    assert [t.name for t in report.tensors] == ["w"]
    np.testing.assert_allclose(report.sqnr_db, 40.0, atol=0.5)
    np.testing.assert_allclose(report.run.max_error, np.abs(a - b).max(), rtol=1e-3)
    assert report.file_bytes == (pair[0].stat().st_size, pair[1].stat().st_size)


def test_compare_prints_both_and_writes_a_report(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    data, report = tmp_path / "data.npz", tmp_path / "report.json"
    code, out, err = run(
        "compare", *pair, "--inputs", data, "--dim", "batch=2", "--rounds", 2, "--run-memory", "--json", report
    )
    assert (code, err) == (0, "")
    assert "1 of 1 tensor of A was compared, 0 equal; the one that differs: SQNR 40." in out
    assert re.search(r"\nfile  [\d,]+ -> [\d,]+ bytes \(ratio 1\.00\)\n", out)
    assert "outputs  SQNR " in out
    assert "(3 runs on given inputs)" in out
    assert "the median of 2 pairs" in out
    assert "peak memory of a run" in out
    found = json.loads(report.read_text())
    assert found["run"]["runs"] == 3
    assert found["run"]["inputs"][0]["shape"] == [2, 64]
    assert found["worst_tensor"] == "w"


def test_compare_fails_where_an_output_is_further_off_than_it_may_be(run: Run, pair: tuple[Path, Path]) -> None:
    code, out, err = run("compare", *pair, "--max-error", "1e-6", "--rounds", 0)
    assert code == 1
    assert "smoke test  SQNR" in out  # what it found is printed all the same
    assert err.startswith("modelopt-rs: max_error: output 'y' is off by ")
    assert run("compare", *pair, "--max-error", "10", "--rounds", 0)[0] == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--dim", "batch"), 2, "'batch' is not an axis and its length, such as batch=1"),
        (("--dim", "bach=1"), 2, "dims: no input has an axis 'bach'; open axes: 'batch'"),
        (("--inputs", "none.npz"), 1, "none.npz: No such file or directory"),
        (("--max-error", "-1"), 2, "max_error must be a finite number of 0 or more"),
    ],
)
def test_wrong_options_have_a_message(
    run: Run, pair: tuple[Path, Path], options: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = run("compare", *pair, "--rounds", 0, *options)
    assert found == code
    assert message in err


def test_a_model_that_onnxruntime_refuses_is_malformed_input(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    broken = onnx.load(pair[1])
    broken.graph.node[0].op_type = "Foo"
    onnx.save(broken, tmp_path / "c.onnx")
    code, _, err = run("compare", pair[0], tmp_path / "c.onnx", "--rounds", 0)
    assert code == 3
    assert "c.onnx: onnxruntime refuses it: node 'product' (Foo): 'No Op registered for Foo" in err


def test_a_missing_extra_is_named(run: Run, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run("compare", *pair, "--rounds", 0)
    message = 'open_session: running an ONNX model needs the extra onnx: pip install "modelopt_rs[onnx]"'
    assert (code, err) == (1, f"modelopt-rs: {message}\n")


def test_options_of_runs_are_for_two_onnx_models(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", bert())
    for others in ((a, a), (a, pair[0]), (pair[0], a)):
        code, out, err = run("compare", *others, "--dim", "batch=1")
        options = "run (--inputs, --dim, --max-error and others)"
        message = f"{options} must be left out for a model that is no ONNX model, got it for {a}"
        assert (code, out, err) == (2, "", f"modelopt-rs: {message}\n")


def test_models_that_are_not_run_are_compared_by_tensors(run: Run, pair: tuple[Path, Path]) -> None:
    code, out, err = run("compare", *pair, "--no-run")
    assert (code, err) == (0, "")
    assert "file  " in out
    assert "outputs" not in out
    assert mo.compare_files(*pair, run=None).run is None


def test_an_onnx_model_and_another_are_compared_by_the_names_of_tensors(
    run: Run, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = write(tmp_path / "w.safetensors", {"w": ("F32", W), "v": ("F32", W)})
    for a, b in ((pair[0], other), (other, pair[0])):
        report = mo.compare_files(a, b)
        assert [t.name for t in report.tensors] == ["w"]
        assert report.sqnr_db == np.inf
        assert (report.only_in_a, report.only_in_b) == (((), ("v",)) if a == pair[0] else (("v",), ()))
        assert report.run is None
        assert report.file_bytes == (a.stat().st_size, b.stat().st_size)
    assert run("compare", pair[0], other)[0] == 0


def test_names_that_only_one_has_are_not_listed_without_end(run: Run, tmp_path: Path) -> None:
    one = write(tmp_path / "a.safetensors", {"a": ("F32", W[:1])})
    many = write(tmp_path / "w.safetensors", dict.fromkeys(("a", *(f"w{i}" for i in range(25))), ("F32", W[:1])))
    code, out, _ = run("compare", one, many)
    assert code == 0
    assert out.count("only in B: w") == 20
    assert "only in B: 5 more, which --json lists" in out


def test_python_refuses_what_is_too_far_off(pair: tuple[Path, Path]) -> None:
    with pytest.raises(mo.MaxErrorExceeded, match="max_error: output 'y' is off by ") as caught:
        mo.compare_files(*pair, run=mo.RunOptions(max_error=1e-6, rounds=0))
    assert caught.value.report.max_error > 1e-6
