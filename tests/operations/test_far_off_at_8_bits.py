"""At 8 bits nothing is measured before; what came out far off is said all the same."""

from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo
from checkpoints import write

RNG = np.random.default_rng(7)
GOOD = RNG.standard_normal((64, 128)).astype(np.float32)


def test_weights_that_8_bits_take_far_off_are_named(tmp_path: Path) -> None:
    """Rows of 4,096 numbers, each with one a hundred times as large: what is left of the others are a few codes."""
    wide = RNG.standard_normal((16, 4096)).astype(np.float32)
    spiked = wide.copy()
    spiked[np.arange(16), np.arange(16)] = 100
    write(tmp_path / "a.safetensors", {"good.weight": ("F32", wide), "bad.weight": ("F32", spiked)})
    report = mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    (said,) = report.warnings
    assert said.startswith("1 weight is more than 0.05 off at 8 bits (the most: 'bad.weight' 0.1")
    # What it says to do helps.
    assert not mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "c.safetensors", group_size=128).warnings
    assert not mo.quantize_file(tmp_path / "a.safetensors", tmp_path / "d.safetensors", exclude=["bad*"]).warnings
    assert not mo.quantize_file(tmp_path / "a.safetensors", "", dry_run=True).warnings


@pytest.mark.parametrize("given", [True, False])
def test_outputs_that_8_bits_take_far_off_are_told(tmp_path: Path, given: bool) -> None:
    """The difference of two products that are nearly alike: what is left of it is the error of both."""
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    near = GOOD.T + 1e-3 * RNG.standard_normal(GOOD.T.shape).astype(np.float32)
    nodes = [("MatMul", ["x", "a"], "p"), ("MatMul", ["x", "b"], "q"), ("Sub", ["p", "q"], "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [4, 128])],
        [onnx.helper.make_tensor_value_info("y", 1, [4, 64])],
        [onnx.numpy_helper.from_array(w, name) for name, w in (("a", GOOD.T.copy()), ("b", near))],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "a.onnx")
    inputs = {"x": RNG.standard_normal((4, 128)).astype(np.float32)} if given else None
    options = mo.RunOptions(inputs=inputs, rounds=0)
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", run=options)
    (said,) = report.warnings
    assert said.startswith("at 8 bits the outputs are ")
    assert said.endswith("off on the given inputs" if given else "--inputs DATA measures real ones")
