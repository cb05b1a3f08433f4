"""`modelopt-rs quantize --bits-of`: some weights of an ONNX model with other bits than the rest."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import bert, weights, write
from modelopt_rs.cli import main

pytest.importorskip("click", reason="the extra `cli` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: onnx")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
from onnx_graphs import model, node, value  # noqa: E402

Run = Callable[..., tuple[int, str, str]]
ENDING = "is not a glob and 8, 4 or 2, such as '*.value.weight=8'"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = {f"layer{i}.weight": rng.standard_normal((256, 256)).astype(np.float32) for i in range(2)}
    nodes = [
        node("MatMul", ["x", "layer0.weight"], ["h"], name="first"),
        node("MatMul", ["h", "layer1.weight"], ["y"], name="second"),
    ]
    made = model(nodes, [value("x", ["batch", 256])], [value("y", ["batch", 256])], weights)
    onnx.save(made, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def bits(path: Path) -> list[int]:
    products = [n for n in onnx.load(path).graph.node if n.op_type == "MatMulNBits"]
    return [onnx.helper.get_node_attr_value(n, "bits") for n in products]


def test_each_weight_has_the_bits_of_the_first_glob_that_matches(run: Run, path: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "b.onnx", tmp_path / "report.json"
    chosen = ("--bits", 2, "--bits-of", "*1.weight=8", "--bits-of", "*.weight=4", "--bits-of", "*1.weight=2")
    code, said, err = run("quantize", path, "-o", out, *chosen, "--json", report, "--rounds", 0)
    assert (code, err) == (0, "")
    assert "quantized  2 tensors" in said
    assert bits(out) == [4, 8]
    written = json.loads(report.read_text())
    assert written["options"]["bits_of"] == {"*1.weight": 8, "*.weight": 4}
    reasons = ["4 bits: MatMulNBits, blocks of 32", "8 bits: MatMulNBits, blocks of 128"]
    assert [t["reason"] for t in written["tensors"]] == reasons


def test_h5_a_name_with_brackets_is_its_own_glob(tmp_path: Path) -> None:
    tensors = {f"layers[{i}].weight": ("F32", weights((64, 64), i)) for i in range(2)}
    path = write(tmp_path / "a.safetensors", tensors)
    report = mo.quantize_file(path, tmp_path / "b.safetensors", bits_of={"layers[0].weight": 4}, uniform=True)
    reasons = {each.name: each.reason for each in report.tensors}
    assert "4 bits" in reasons["layers[0].weight"]
    assert "4 bits" not in reasons["layers[1].weight"]


def test_a_second_pass_leaves_what_is_quantized_and_gives_the_same_tensors(
    run: Run, path: Path, tmp_path: Path
) -> None:
    one, half, two = tmp_path / "one.onnx", tmp_path / "half.onnx", tmp_path / "two.onnx"
    assert run("quantize", path, "-o", one, "--bits", 4, "--bits-of", "layer1*=8", "--no-run")[0] == 0
    assert run("quantize", path, "-o", half, "--bits", 4, "--exclude", "layer1*", "--no-run")[0] == 0
    assert run("quantize", half, "-o", two, "--bits", 8, "--no-run")[0] == 0
    made = [{t.name: t.raw_data for t in onnx.load(p).graph.initializer} for p in (one, two)]
    assert made[0] == made[1]
    assert bits(two) == [4, 8]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("layer1.weight", f"Invalid value for '--bits-of': 'layer1.weight' {ENDING}"),
        ("layer1.weight=3", f"Invalid value for '--bits-of': 'layer1.weight=3' {ENDING}"),
        ("=4", f"Invalid value for '--bits-of': '=4' {ENDING}"),
        ("layer2*=4", "bits_of 'layer2*' matches no tensor"),
    ],
)
def test_wrong_bits_are_refused(run: Run, path: Path, tmp_path: Path, given: str, message: str) -> None:
    code, _, err = run("quantize", path, "-o", tmp_path / "b.onnx", "--bits-of", given)
    assert (code, err) == (2, f"modelopt-rs: {message}\n")
    assert not (tmp_path / "b.onnx").exists()


def test_other_bits_are_for_every_format(run: Run, tmp_path: Path) -> None:
    where = write(tmp_path / "a.safetensors", bert())
    assert run("quantize", where, "-o", tmp_path / "b.safetensors", "--bits-of", "*=4")[0] == 0


@pytest.mark.parametrize(
    ("given", "scheme"), [((), "symmetric"), (("--bits", 4), "asymmetric"), (("--bits", 2), "asymmetric")]
)
def test_the_default_scheme_has_zero_points_below_8_bits(
    run: Run, path: Path, tmp_path: Path, given: tuple[str, ...], scheme: str
) -> None:
    made = []
    for name, more in (("default", ()), ("asked", ("--scheme", scheme))):
        out = tmp_path / f"{name}.onnx"
        assert run("quantize", path, "-o", out, *given, *more, "--no-run")[0] == 0
        made.append(out.read_bytes())
    assert made[0] == made[1]
