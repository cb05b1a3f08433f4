"""Layers that are each near enough may make the outputs of a model too far off: then some get more bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: onnx")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
from modelopt_rs.containers.onnx import OnnxSource  # noqa: E402
from modelopt_rs.onnx.measure.layer_inputs import Data  # noqa: E402
from modelopt_rs.onnx.measure.output_errors import coarse  # noqa: E402
from modelopt_rs.onnx.measure.summed_errors import SummedErrors  # noqa: E402
from modelopt_rs.onnx.weights import find_weights  # noqa: E402
from modelopt_rs.planning.quantize import QuantizeOptions  # noqa: E402
from modelopt_rs.planning.run import RunOptions  # noqa: E402
from modelopt_rs.stream.execution import Execution  # noqa: E402
from onnx_graphs import model, node, run, value  # noqa: E402

FEED = {"x": np.random.default_rng(9).standard_normal((16, 128)).astype(np.float32)}


def normal(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def deep(layers: int, *last: Any, size: int = 128, **weights: Any) -> Any:
    """Layers behind one another, whose errors add up."""
    nodes, at = [], "x"
    for i in range(layers):
        nodes += [node("MatMul", [at, f"w{i}"], [f"h{i}"]), node("Tanh", [f"h{i}"], [f"t{i}"])]
        at, weights[f"w{i}"] = f"t{i}", 2 * normal(size if i else 128, size, seed=i)
    nodes += last or [node("Identity", [at], ["y"])]
    return model(nodes, [value("x", ["n", 128])], [value("y", ["n", None])], weights, opset=21)


def quantized(path: Path, proto: Any, **options: Any) -> Any:
    onnx.save(proto, path / "a.onnx")
    given = {"bits": 4, "run": RunOptions(inputs=FEED), "durable": False, "overwrite": True, **options}
    return mo.quantize_file(path / "a.onnx", path / "b.onnx", **given)


def test_layers_that_add_up_to_too_much_get_more_bits(tmp_path: Path) -> None:
    assert quantized(tmp_path, deep(1)).warnings == ()
    report = quantized(tmp_path, deep(12))
    [words] = report.warnings
    assert words.endswith("with those asked for the model's outputs would be over 0.15 off on the given inputs")
    moved = [each for each in report.tensors if each.reason.startswith("8 bits (with those asked for the outputs")]
    assert 0 < len(moved) < 12
    assert words.startswith(f"{len(moved)} weights at 8 bits")
    assert report.run.sqnr_db > 15
    assert quantized(tmp_path, deep(12), uniform=True).run.sqnr_db < 12


def test_what_is_asked_for_a_weight_stays(tmp_path: Path) -> None:
    report = quantized(tmp_path, deep(12), bits_of={"*": 4})
    assert not [each for each in report.tensors if "8 bits" in each.reason]


def test_outputs_that_jump_say_nothing_of_bits(tmp_path: Path) -> None:
    """Sorted or rounded answers are off by whole steps with any number of bits."""
    last = [node("Mul", ["t11", "k"], ["m"]), node("Round", ["m"], ["r"]), node("Sin", ["r"], ["y"])]
    report = quantized(tmp_path, deep(12, *last, k=np.float32(1e4)))
    assert report.warnings == ()
    [noise] = [node("RandomNormalLike", ["t11"], ["n"])]
    report = quantized(tmp_path, deep(12, noise, node("Add", ["t11", "n"], ["y"])))
    assert report.warnings == ()


def test_a_weight_in_its_codes_is_as_far_off_as_its_bits_say() -> None:
    w = normal(64, 48)
    how: list[tuple[int, float, float, dict[str, int]]]
    how = [(4, 0.06, 0.11, {"group_size": 32}), (8, 0.003, 0.007, {"group_size": 32}), (8, 0.003, 0.011, {"axis": 0})]
    for bits, least, most, by in how:
        made = coarse(w, 1, bits=bits, **by)
        assert made.shape == w.shape
        assert least < np.linalg.norm(made - w) / np.linalg.norm(w) < most


def test_the_model_itself_is_not_changed(tmp_path: Path) -> None:
    proto = deep(3)
    quantized(tmp_path, proto, max_layer_error=0.01)
    assert [each.name for each in onnx.load(tmp_path / "b.onnx").graph.input] == ["x"]
    assert run(onnx.load(tmp_path / "a.onnx"), FEED)[0].shape == (16, 128)


@pytest.mark.parametrize("last", ["ArgMax", "SequenceConstruct"])
def test_a_model_whose_outputs_are_no_floats_is_quantized(tmp_path: Path, last: str) -> None:
    proto = deep(12)
    tensor = onnx.helper.make_tensor_type_proto(7 if last == "ArgMax" else 1, None)
    proto.graph.node[-1].CopyFrom(node(last, ["t11"], ["y"]))
    proto.graph.output[0].type.CopyFrom(tensor if last == "ArgMax" else onnx.helper.make_sequence_type_proto(tensor))
    assert quantized(tmp_path, proto).totals.changed == 12


def test_an_output_of_another_shape_or_that_is_not_finite_says_nothing_of_bits(tmp_path: Path) -> None:
    """What is over a threshold is of another number in every form, and so are the logarithms that are none."""
    over = [node("Greater", ["t11", "zero"], ["g"]), node("Reshape", ["g", "flat"], ["f"])]
    over += [node("Compress", ["t11", "f"], ["c"]), node("Unsqueeze", ["c", "one"], ["y"])]
    numbers = {"zero": np.float32(0), "flat": np.array([-1]), "one": np.array([1])}
    for last, more in ((over, numbers), ([node("Log", ["t11"], ["y"])], {})):
        assert quantized(tmp_path, deep(12, *last, **more)).warnings == ()


def test_weights_that_do_not_fit_groups_are_added_too(tmp_path: Path) -> None:
    """Their scales are by row."""
    proto = deep(12, size=100)
    assert quantized(tmp_path, proto, max_layer_error=0.3).totals.changed == 12


def test_a_small_weight_that_does_most_to_the_outputs_gets_more_bits_before_they_are_far_off(tmp_path: Path) -> None:
    """It costs next to nothing: what is asked for is few bytes, not few bits of what hardly takes bytes."""
    weights = {"a": normal(128, 32, seed=1), "b": normal(32, 16384, seed=2)}
    nodes = [node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "b"], ["y"])]
    proto = model(nodes, [value("x", ["n", 128])], [value("y", ["n", 16384])], weights, opset=21)
    report, plain = quantized(tmp_path, proto), quantized(tmp_path, proto, uniform=True)
    assert plain.run.sqnr_db > 16.5  # no further off than outputs may be
    [words] = report.warnings
    assert words.startswith("1 weight at 8 bits: their errors do over 16 times as much to the outputs for their bytes")
    [moved] = [each for each in report.tensors if each.reason.startswith("8 bits")]
    assert moved.name == "a"
    assert moved.reason.startswith("8 bits (its error does ")
    assert report.run.sqnr_db > plain.run.sqnr_db + 1
    assert report.totals.bytes_after < 1.01 * plain.totals.bytes_after


def test_weights_count_as_much_as_they_do_together(tmp_path: Path) -> None:
    """Two that are off alike do twice what the sum of their squares says."""
    x, w = FEED["x"], normal(128, 128)
    for other, times in ((w, 2.0), (normal(128, 128, seed=1), 1.0)):
        every = {"w0": w, "w1": other}
        nodes = [node("MatMul", ["x", f"w{i}"], [f"h{i}"]) for i in range(2)] + [node("Add", ["h0", "h1"], ["y"])]
        proto = model(nodes, [value("x", ["n", 128])], [value("y", ["n", 128])], every, opset=21)
        found = np.sum(list(errors(tmp_path, proto).values()))
        off = [x @ (coarse(each, 1, bits=4, group_size=32, search="mse") - each) for each in every.values()]
        power = np.linalg.norm(x @ sum(every.values())) ** 2
        assert found == pytest.approx(np.linalg.norm(sum(off)) ** 2 / power, rel=1e-3)
        assert found == pytest.approx(times * sum(np.linalg.norm(each) ** 2 for each in off) / power, rel=0.2)


def errors(path: Path, proto: Any) -> dict[str, Any]:
    onnx.save(proto, path / "a.onnx")
    with OnnxSource(path / "a.onnx") as source:
        weights = {weight.name: weight for weight in find_weights(source.graph)}
        data = Data([FEED], None)
        summed = SummedErrors(source.graph, source.path, source, Execution(2**28, 1, None, 0), data)
        return summed.of(weights, QuantizeOptions(bits=4), dict.fromkeys(weights, 4))
