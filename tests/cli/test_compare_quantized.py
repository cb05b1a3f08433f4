"""`compare MODEL QUANTIZED`: each weight with what its codes stand for, whatever their form."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click", reason="the extra `cli` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
import onnx

import modelopt_rs as mo
from checkpoints import bert, write
from graph_nets import Net, net
from modelopt_rs.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return call


def forms() -> onnx.ModelProto:
    """A table, a square product, a Gemm with a turned square weight, a Conv."""
    it = Net({"ids": ["n"], "x": ["n", 64]})
    it.input_types["ids"] = onnx.TensorProto.INT64
    rows = it.add("Gather", it.w("table", 100, 64), "ids")
    one = it.add("MatMul", "x", it.w("square", 64, 64))
    two = it.add("Gemm", one, it.w("turned", 64, 64), transB=1)
    three = it.add("Gemm", two, it.w("wide", 64, 96))
    four = it.add("MatMul", three, it.w("narrow", 96, 64))
    it.add("Add", rows, four, out="y")
    it.outputs = ["y"]
    return it.proto()


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("source", [forms, net], ids=["products", "convolutions"])
def test_h28_every_form_of_a_quantized_weight_is_compared(
    tmp_path: Path, bits: int, scheme: str, target: str, source: Callable[[], onnx.ModelProto]
) -> None:
    onnx.save(source(), tmp_path / "a.onnx")
    options = mo.OnnxOptions(target=target)
    made = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", bits=bits, scheme=scheme, onnx=options, run=None)
    report = mo.compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx", run=None)
    want = {each.name: each.sqnr_db for each in made.tensors if each.decision == "quantize"}
    got = {each.name: each.sqnr_db for each in report.tensors if each.name in want}
    assert got.keys() == want.keys()
    assert report.only_in_a == report.only_in_b == ()
    for name, db in want.items():
        assert got[name] == pytest.approx(db, abs=0.01), name
    assert report.sqnr_db == pytest.approx(made.totals.sqnr_db, abs=0.01)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_weights_that_do_not_fit_the_memory_are_compared_in_blocks(tmp_path: Path, bits: int, scheme: str) -> None:
    """They were called 'only in A', and what is left exact."""
    onnx.save(forms(), tmp_path / "a.onnx")
    mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", bits=bits, scheme=scheme, run=None)
    whole = mo.compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx", run=None)
    parts = mo.compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx", run=None, max_memory=30_000)
    fits = {each.name for each in parts.tensors}
    assert fits | set(parts.not_compared) == {each.name for each in whole.tensors}
    assert parts.only_in_a == parts.only_in_b == ()
    if bits < 8:  # rows of blocks
        assert fits >= {"square", "wide", "narrow", "turned"}
    for each in parts.tensors:
        same = next(other for other in whole.tensors if other.name == each.name)
        assert (each.sqnr_db, each.max_error) == (pytest.approx(same.sqnr_db, abs=1e-6), same.max_error), each.name


def test_weights_that_are_not_compared_for_their_size_are_said(run: Run, tmp_path: Path) -> None:
    onnx.save(forms(), tmp_path / "a.onnx")
    mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", bits=4, onnx=mo.OnnxOptions(target="portable"), run=None)
    code, out, err = run("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--no-run", "--max-memory", "30000B")
    assert code == 0
    assert (
        "'square' is not compared: its codes as numbers take 65,536 bytes; give max_memory (--max-memory)" in out + err
    )
    assert "only in A" not in out


def test_h28_the_codes_of_dynamic_layers_are_compared(tmp_path: Path) -> None:
    onnx.save(forms(), tmp_path / "a.onnx")
    options = mo.OnnxOptions(activations="dynamic")
    made = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", onnx=options, run=None)
    report = mo.compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx", run=None)
    want = {each.name for each in made.tensors if each.decision == "quantize"}
    assert want == {each.name for each in report.tensors if each.sqnr_db < 100}
    assert report.sqnr_db == pytest.approx(made.totals.sqnr_db, abs=0.01)


def test_h28_the_total_is_over_what_changed(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", bert())
    made = mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", bits=4)
    report = mo.compare_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert report.changed == made.totals.changed
    assert report.sqnr_db == pytest.approx(made.totals.sqnr_db, abs=0.01)
    _, said, _ = run("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    whole = len(made.tensors)
    assert f"\n{whole} of {whole} tensors of A were compared, {whole - made.totals.changed} equal; the " in said


def test_h55_a_summary_says_what_was_not_compared(run: Run, tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "a.onnx")
    mo.crop_file(tmp_path / "a.onnx", tmp_path / "b.onnx", what="all", keep=0.5, run=None)
    _, said, _ = run("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--no-run")
    assert "exact" not in said.splitlines()[-2]
    assert "shapes differ: " in said
    _, said, _ = run("compare", tmp_path / "a.onnx", tmp_path / "a.onnx", "--no-run")
    assert " were compared, all equal" in said
    assert np.isinf(mo.compare_files(tmp_path / "a.onnx", tmp_path / "a.onnx", run=None).sqnr_db)


def test_h55_integers_that_differ_are_not_exact(run: Run, tmp_path: Path) -> None:
    for name, code in (("a", 1), ("b", 3)):
        w = np.full((32, 32), code, np.int8)
        node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
        x, y = (onnx.helper.make_tensor_value_info(n, t, [2, 32]) for n, t in (("x", 3), ("y", 6)))
        graph = onnx.helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(w, "w")])
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
            tmp_path / f"{name}.onnx",
        )
    _, said, _ = run("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--no-run")
    assert "the one that differs: SQNR -6.02 dB, largest error 2, " in said


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_h28_codes_may_be_the_reference(run: Run, tmp_path: Path, bits: int, target: str) -> None:
    """`compare QUANTIZED MODEL`: as many weights, as far apart, as in the other order."""
    onnx.save(forms(), tmp_path / "a.onnx")
    mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", bits=bits, onnx=mo.OnnxOptions(target=target), run=None)
    one = mo.compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx", run=None)
    other = mo.compare_files(tmp_path / "b.onnx", tmp_path / "a.onnx", run=None)
    assert {each.name: each.max_error for each in one.tensors} == {each.name: each.max_error for each in other.tensors}
    assert other.changed == one.changed >= 5
    assert other.only_in_a == other.only_in_b == other.not_compared == ()
    assert other.sqnr_db == pytest.approx(one.sqnr_db, abs=1)
    assert "SQNR exact" not in run("compare", tmp_path / "b.onnx", tmp_path / "a.onnx", "--no-run")[1]


def test_h28_codes_of_both_are_no_numbers_to_compare(run: Run, tmp_path: Path) -> None:
    """What codes of other scales are apart says nothing; of the same all is equal."""
    onnx.save(forms(), tmp_path / "a.onnx")
    ways = {"8": {}, "4": {"bits": 4}, "dynamic": {"onnx": mo.OnnxOptions(activations="dynamic")}}
    for name, options in ways.items():
        mo.quantize_file(tmp_path / "a.onnx", tmp_path / f"{name}.onnx", run=None, **options)
    for one in ways:
        for other in ways:
            report = mo.compare_files(tmp_path / f"{one}.onnx", tmp_path / f"{other}.onnx", run=None)
            assert report.changed == 0
            if one == other:
                assert report.sqnr_db == np.inf
                assert not report.warnings
                continue
            (said,) = report.warnings
            assert "weights (as '" in said
            assert "have other codes in both, which can't be compared" in said
            if not report.tensors:  # nothing is known: neither near nor far
                assert np.isnan([report.sqnr_db, report.max_error, report.cosine]).all()
    said = run("compare", tmp_path / "8.onnx", tmp_path / "4.onnx", "--no-run")[1]
    assert "nothing is known of how far they are apart" in said


def test_models_without_a_name_in_common_are_refused_with_what_to_compare(run: Run, tmp_path: Path) -> None:
    onnx.save(forms(), tmp_path / "a.onnx")
    infos = [mo.files.TensorInfo(name, "F32", (4, 4), 64) for name in ("fc.weight", "model.fc.weight")]
    for info in infos:
        with mo.files.SafetensorsSink(tmp_path / f"{info.name}.safetensors", [info]) as sink:
            sink.write(info.name, np.ones((4, 4), np.float32))
            sink.commit()
    one, other = (tmp_path / f"{info.name}.safetensors" for info in infos)
    code, out, err = run("compare", one, tmp_path / "a.onnx")
    assert (code, out) == (2, "")
    assert "b must have a tensor of a name that a has, got '" in err
    assert "an export has names of its own; compare two ONNX models, or two checkpoints" in err
    code, _, err = run("compare", one, other)
    assert code == 2
    assert "an export" not in err
    assert run("compare", one, one)[0] == 0
