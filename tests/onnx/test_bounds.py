"""What a graph makes its readers compute is bounded, and what can abort is in a process of its own (H38, H39)."""

import itertools
import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")


import onnx
from onnx import helper, numpy_helper

import modelopt_rs as mo
from activation_graphs import node, normal
from modelopt_rs.errors import FormatError
from modelopt_rs.files.onnx import OnnxSource
from modelopt_rs.onnx.child_process import Failed, call_apart
from modelopt_rs.onnx.crop import shapes
from modelopt_rs.onnx.crop.coupling import find_groups
from modelopt_rs.onnx.crop.elements import Computed
from modelopt_rs.onnx.crop.integers import Integers
from modelopt_rs.onnx.folding import Folding

MEMORY = 32 << 20


def model(nodes: list, inputs: dict[str, list], outputs: dict[str, None], weights: dict[str, np.ndarray]):
    """Return a model that nobody has checked."""
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()]
    results = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
    graph = helper.make_graph(
        nodes, "g", values, results, [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def doubled(kind: str, start: str, count: int, **attributes) -> list:
    """Return a chain of nodes of which each takes what the one before makes, twice."""
    names = [start, *(f"chain{i}" for i in range(count))]
    return [node(kind, [a, a], [b], **attributes) for a, b in itertools.pairwise(names)]


def groups_of(nodes: list, weights: dict[str, np.ndarray], **shapes):
    shapes = shapes or {"x": ["n", 4, 8, 8]}
    graph = ir.from_proto(model(nodes, shapes, {"y": None}, weights))
    start = time.process_time()
    tracemalloc.start()
    found = find_groups(graph, max_memory=MEMORY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 10
    assert peak < 2 * MEMORY
    return found


@pytest.mark.parametrize("kind", ["Concat", "Add", "Mul"])
def test_numbers_that_double_in_a_chain_are_not_computed(kind):
    more = {"axis": 0} if kind == "Concat" else {}
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Shape", ["c"], ["s"]),
        *doubled(kind, "s", 200, **more),
        *doubled(kind, "k", 200, **more),
        node("Reshape", ["c", "chain199"], ["y"]),
    ]
    for i, each in enumerate(nodes[202:402]):
        each.output[0] = f"other{i}"
        each.input[:] = ["k" if i == 0 else f"other{i - 1}"] * 2
    nodes[-1].input[1] = "other199"
    _, refusals = groups_of(nodes, {"w": normal(8, 4, 3, 3), "k": np.array([3, 4], np.int64)})
    assert [refusal.name for refusal in refusals] == ["w"]


def test_a_number_beyond_64_bits_is_none():
    k = ir.val("k", const_value=ir.tensor(np.array([1 << 40], np.int64), name="k"))
    value = k
    for _ in range(300):
        value = ir.node("Mul", [value, value]).outputs[0]
    assert Integers().elements(value) == [Computed(frozenset())]


def test_labels_of_parts_that_double_are_bounded_by_memory():
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        *doubled("Concat", "c", 40, axis=1),
        node("Conv", ["chain39", "v"], ["y"]),
    ]
    groups, refusals = groups_of(nodes, {"w": normal(8, 4, 3, 3), "v": normal(4, 8, 1, 1)})
    assert groups == []
    assert {refusal.name for refusal in refusals} == {"w", "v"}


@pytest.mark.parametrize("axis", [1 << 31, (1 << 63) - 1, -(1 << 63), 9])
def test_an_axis_that_a_value_does_not_have_is_refused(axis):
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Flatten", ["c"], ["f"], axis=axis), node("Gemm", ["f", "v"], ["y"])]
    groups, refusals = groups_of(nodes, {"w": normal(8, 4, 3, 3), "v": normal(288, 8)})
    assert groups == []
    assert "w" in {refusal.name for refusal in refusals}


def test_an_axis_of_a_weight_without_elements_has_no_units():
    groups, _ = groups_of([node("MatMul", ["x", "w"], ["y"])], {"w": np.zeros((0, 1 << 40), np.float32)}, x=["n", 0])
    assert groups == []


def test_shapes_that_the_file_says_take_no_memory():
    proto = model(
        [node("Conv", ["x", "w"], ["c"]), node("Concat", ["c", "z"], ["d"], axis=1), node("Conv", ["d", "v"], ["y"])],
        {"x": ["n", 4, 8, 8], "z": ["n", (1 << 62), 6, 6]},
        {"y": None},
        {"w": normal(8, 4, 3, 3), "v": normal(4, 8, 1, 1)},
    )
    groups, _ = find_groups(ir.from_proto(proto), max_memory=MEMORY)
    assert groups == []


@pytest.mark.parametrize("count", [40, 5000])
@pytest.mark.parametrize("kind", ["Identity", "Add", "Concat"])
def test_a_weight_computed_in_a_long_chain_of_constants_is_left_alone(kind, count, tmp_path):
    chain = doubled(kind, "k", count, **({"axis": 0} if kind == "Concat" else {}))
    if kind == "Identity":
        for each in chain:
            del each.input[1]
    nodes = [*chain, node("MatMul", ["x", f"chain{count - 1}"], ["y"])]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, {"x": ["n", 4]}, {"y": None}, {"k": normal(4, 4)}).SerializeToString())
    start = time.process_time()
    with OnnxSource(path) as source:
        Folding(source, MEMORY // 4)
    assert time.process_time() - start < 10


def test_what_is_computed_on_the_way_to_a_weight_is_let_go(tmp_path):
    """40 results of 4 MiB: two or three of them are there at a time."""
    chain = doubled("Mul", "k", 40)
    path = tmp_path / "m.onnx"
    proto = model([*chain, node("MatMul", ["x", "chain39"], ["y"])], {"x": ["n", 1024]}, {"y": None},
                  {"k": np.ones((1024, 1024), np.float32)})  # fmt: skip
    path.write_bytes(proto.SerializeToString())
    with OnnxSource(path) as source:
        tracemalloc.start()
        folding = Folding(source, MEMORY)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "chain39_folded" in folding.tensors
    assert peak < 8 * 2**22


@pytest.mark.parametrize(("index", "shape"), [(1, (1, 128, 16, 1)), (2, (128, 32)), (1, (16,))])
def test_recurrent_weights_of_another_rank_are_refused_when_the_file_is_opened(index, shape, tmp_path):
    weights = {"w": normal(1, 128, 16), "r": normal(1, 128, 32)}
    weights["xwr"[index]] = normal(*shape)
    path = tmp_path / "m.onnx"
    proto = model([node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=32)], {"x": ["n", 1, 16]}, {"y": None}, weights)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(FormatError, match=rf"LSTM.*: its input {index} must have 3 axes, got {len(shape)}"):
        mo.files.open(path)


def test_recurrent_weights_of_another_rank_that_are_computed_stay(tmp_path):
    weights = {"a": normal(1, 128, 16), "r": normal(1, 128, 32), "four": np.array([1, 128, 16, 1])}
    nodes = [node("Reshape", ["a", "four"], ["w"]), node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=32)]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, {"x": ["n", 1, 16]}, {"y": None}, weights).SerializeToString())
    onnx_options = mo.OnnxOptions(activations="dynamic")
    report = mo.quantize_file(path, tmp_path / "out.onnx", onnx=onnx_options, run=None)
    found = {each.name: (each.decision, each.reason) for each in report.tensors}
    assert found["w_folded"] == ("copy", "4-dimensional")
    assert "its other weight is not quantized" in found["r"][1]


def test_a_machine_that_is_too_slow_to_infer_shapes_says_so_and_crops_nothing_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "MAX_SECONDS", 0.001)
    weights = {"w": normal(16, 64), "v": normal(64, 16)}
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    onnx.save(model(nodes, {"x": ["n", 16]}, {"y": ["n", 16]}, weights), tmp_path / "a.onnx")
    words = r"^infer_shapes: model must be one whose shapes onnx can infer, .*more than 0.001 seconds"
    with pytest.raises(mo.UnsupportedError, match=words):
        mo.crop_file(tmp_path / "a.onnx", tmp_path / "b.onnx", what="ffn", keep=0.5)
    assert not (tmp_path / "b.onnx").exists()


def test_what_the_library_does_to_its_process_is_an_error():
    with pytest.raises(Failed, match="1 seconds"):  # nothing ends in no time
        call_apart("shape_inference.infer_shapes", b"", False, False, True, seconds=0.001)
    wrong = model([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 3]}, {"y": None}, {"w": normal(4, 5)})
    with pytest.raises(Failed, match="Incompatible dimensions"):
        call_apart("shape_inference.infer_shapes", wrong.SerializeToString(), False, True, True, seconds=60)


def test_an_assertion_of_the_library_leaves_the_shapes_that_the_file_says():
    """A Slice of a shape whose bounds are vectors of none aborts."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Shape", ["h"], ["s"]),
        node("Slice", ["s", "none", "none"], ["t"]),
        node("MatMul", ["r", "v"], ["y"]),
    ]
    weights = {"w": normal(16, 32), "v": normal(32, 8), "none": np.zeros(0, np.int64)}
    groups_of(nodes, weights, x=["n", 16])


def test_shapes_of_a_model_on_which_the_library_takes_all_memory_are_those_of_the_file():
    """Its propagation of data doubles a vector in each Concat."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Shape", ["h"], ["s"]),
        *doubled("Concat", "s", 60, axis=0),
        node("MatMul", ["h", "v"], ["y"]),
        node("ConstantOfShape", ["chain59"], ["z"]),
    ]
    start = time.monotonic()
    groups, _ = groups_of(nodes, {"w": normal(16, 32), "v": normal(32, 8)}, x=["n", 16])
    assert time.monotonic() - start < 60
    assert groups == []


SCRIPT = """
import resource, sys
import modelopt_rs as mo

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
mo.quantize_file(sys.argv[1], sys.argv[3], run=mo.RunOptions(rounds=0))
before = peak()
report = mo.quantize_file(sys.argv[2], sys.argv[3], run=mo.RunOptions(rounds=0), max_memory="64MiB", overwrite=True)
print(peak() - before, report.run.not_run)
"""


def test_h38_constants_that_double_are_not_computed_as_a_session_is_opened(tmp_path):
    """onnxruntime folds constants with an allocator of its own: 8 kB of a graph took 3.7 GiB there."""
    w = normal(64, 64)
    last = [node("MatMul", ["x", "w"], ["y"])]
    chain = doubled("Concat", "w", 40, axis=0)
    onnx.save(model(last, {"x": [2, 64]}, {"y": None}, {"w": w}), tmp_path / "plain.onnx")
    onnx.save(model([*chain, *last], {"x": [2, 64]}, {"y": None, "chain39": None}, {"w": w}), tmp_path / "chain.onnx")
    paths = [str(tmp_path / name) for name in ("plain.onnx", "chain.onnx", "out.onnx")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    grown, _, why = done.stdout.partition(" ")
    assert int(grown) < 256 << 20
    assert "takes more than" in why
