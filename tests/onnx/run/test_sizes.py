"""H10, H19, H22: inputs that are made up never veto a good model; several sizes are run, and they are a smoke test."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: onnxruntime")
pytest.importorskip("onnx_ir", reason="the extra `onnx` is not installed: onnx-ir")

import onnx
from onnx import TensorProto, helper

import modelopt_rs as mo
from graph_nets import Net
from modelopt_rs.onnx.run import sizes
from modelopt_rs.onnx.run.inputs import InputInfo
from modelopt_rs.onnx.run.pair import run_pair
from modelopt_rs.onnx.run.sessions import Ended, bounded, limited, open_session, run_session
from modelopt_rs.onnx.run.trials import lengths, open_axes
from modelopt_rs.planning.run import RunOptions


def unet(axes: tuple[str, ...] = ("N", "h", "w")) -> Net:
    """A skip connection by Concat: sizes must be multiples of 8."""
    it = Net({"x": [axes[0], 3, *axes[1:]]})
    a = it.add("Conv", "x", it.w("down1", 16, 3, 3, 3), pads=[1, 1, 1, 1])
    h = it.add("MaxPool", a, kernel_shape=[8, 8], strides=[8, 8])
    h = it.add("ConvTranspose", h, it.w("up", 16, 16, 8, 8), strides=[8, 8])
    it.add("Conv", it.add("Concat", a, h, axis=1), it.w("last", 8, 32, 3, 3), pads=[1, 1, 1, 1], out="y")
    return it


def reflect() -> Net:
    """Sound that is padded by its mirror image, in windows of 64."""
    it = Net({"sound": [None, None]})
    h = it.add("Pad", "sound", it.ints("pads", 0, 48, 0, 48), mode="reflect")
    h = it.add("Unsqueeze", h, it.ints("one", 1))
    it.add("Conv", h, it.w("window", 32, 1, 64), strides=[32], out="y")
    return it


def lstm() -> Net:
    """States whose batch is that of the input, by no name."""
    it = Net({"x": [None, None, 24], "h": [1, None, 16], "c": [1, None, 16]})
    h = it.add("Transpose", "x", perm=[1, 0, 2])
    it.add(
        "LSTM", h, it.w("w", 1, 64, 24), it.w("r", 1, 64, 16), "", "", "h", "c", hidden_size=16, out=["y", "hn", "cn"]
    )
    it.outputs = ["y", "hn", "cn"]
    return it


def rate() -> Net:
    """A branch for each rate of sampling: one takes 64 numbers at least, the other any."""
    it = Net({"x": ["n"], "rate": []})
    it.input_types["rate"] = TensorProto.INT64
    is16 = it.add("Equal", "rate", it.int0("sixteen", 16000))
    for name, size in (("wide", 64), ("narrow", 32)):
        it.ints(f"{name}_shape", -1, size)
        it.w(name, size, 32)

    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Reshape", ["x", f"{name}_shape"], [f"{name}_rows"]),
            helper.make_node("MatMul", [f"{name}_rows", name], [f"{name}_y"]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)])

    it.add("If", is16, then_branch=branch("wide"), else_branch=branch("narrow"), out="y")
    return it


def detector() -> Net:
    """Boxes of a Conv that are suppressed; how many are left depends on the input."""
    it = Net({"image": ["b", 3, "height", "width"]})
    h = it.add("Conv", "image", it.w("stem", 8, 3, 16, 16), strides=[16, 16])
    h = it.add("Conv", h, it.w("head", 5, 8, 1, 1))
    h = it.add("Reshape", h, it.ints("flat", 1, 5, -1))
    boxes, scores = it.add("Split", h, it.ints("parts", 4, 1), axis=1, out=["boxes", "scores"]), "scores"
    boxes = it.add("Transpose", boxes, perm=[0, 2, 1])
    it.weights |= {"iou": np.array(0.5, np.float32), "least": np.array(0.1, np.float32)}
    it.add("NonMaxSuppression", boxes, scores, it.int0("most", 20), "iou", "least", out="y")
    return it


def transformer() -> Net:
    """Patches of 16 and a table of positions for 14 x 14 of them."""
    it = Net({"pixels": ["batch", "c", "h", "w"]})
    h = it.add("Conv", "pixels", it.w("patch", 32, 3, 16, 16), strides=[16, 16])
    h = it.add("Transpose", it.add("Reshape", h, it.ints("flat", 0, 32, -1)), perm=[0, 2, 1])
    it.add("MatMul", it.add("Add", h, it.w("positions", 1, 196, 32)), it.w("head", 32, 64), out="y")
    return it


def text() -> Net:
    """Ids, a mask and types of one length, and at most 12 positions."""
    axes: list[int | str] = ["batch", "sequence"]
    it = Net({"input_ids": axes, "attention_mask": axes})
    it.input_types = dict.fromkeys(it.inputs, TensorProto.INT64)
    rows = it.add("Gather", it.w("words", 50, 32), "input_ids")
    length = it.add("Slice", it.add("Shape", "input_ids"), it.ints("from", 1), it.ints("to", 2))
    places = it.add(
        "Add", rows, it.add("Slice", it.w("places", 12, 32), it.ints("zero", 0), length, it.ints("axis", 0))
    )
    mask = it.add("Unsqueeze", it.add("Cast", "attention_mask", to=TensorProto.FLOAT), it.ints("last", 2))
    it.add("MatMul", it.add("Mul", places, mask), it.w("head", 32, 64), out="y")
    return it


def tall() -> Net:
    """A line of text: 48 high, any width from 8 on."""
    it = Net({"x": ["N", 1, "a", "b"]})
    h = it.add("Conv", "x", it.w("first", 16, 1, 48, 8), strides=[48, 8])
    it.add("Conv", it.add("Reshape", h, it.ints("flat", 0, 16, -1)), it.w("second", 16, 16, 1), out="y")
    return it


MODELS = [unet, reflect, lstm, rate, detector, text, tall]


@pytest.mark.parametrize("build", MODELS)
def test_h10_models_with_open_axes_are_run_and_written(tmp_path: Path, build: Callable[[], Net]) -> None:
    onnx.save(build().proto(), tmp_path / "a.onnx")
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", run=RunOptions(rounds=0))
    assert report.run is not None
    assert (report.run.not_run, report.run.inputs_from) == (None, "generated")
    assert report.run.runs >= 1
    assert (tmp_path / "b.onnx").exists()


def test_h10_a_table_of_positions_fixes_the_size(tmp_path: Path) -> None:
    """Three channels and 224 by 224: three axes, two lengths, no name that says so."""
    it = transformer()
    it.inputs["pixels"] = ["batch", 3, "h", "w"]
    onnx.save(it.proto(), tmp_path / "a.onnx")
    report = run_pair(tmp_path / "a.onnx", tmp_path / "a.onnx", RunOptions(rounds=0))
    assert report.inputs[0].shape == (1, 3, 224, 224)


def test_h22_several_sizes_are_run_the_largest_first(tmp_path: Path) -> None:
    onnx.save(unet().proto(), tmp_path / "a.onnx")
    report = run_pair(tmp_path / "a.onnx", tmp_path / "a.onnx", RunOptions(rounds=0, samples=2))
    assert (report.sizes, report.runs) == (3, 6)
    assert report.inputs[0].shape[2] > 16
    again = run_pair(tmp_path / "a.onnx", tmp_path / "a.onnx", RunOptions(rounds=0, dims={"h": 8, "w": 24}))
    assert (again.sizes, again.inputs[0].shape) == (1, (1, 3, 8, 24))


def test_h10_both_branches_of_a_rate_are_run(tmp_path: Path) -> None:
    onnx.save(rate().proto(), tmp_path / "a.onnx")
    report = run_pair(tmp_path / "a.onnx", tmp_path / "a.onnx", RunOptions(rounds=0))
    assert report.sizes == 6  # three of each


def impossible(path: Path) -> Path:
    it = Net({"x": ["rows", 8, "odd"]})
    h = it.add("Reshape", "x", it.ints("shape", 8, 1234567))
    it.add("MatMul", h, it.w("w", 1234567, 1), out="y")
    it.add("MatMul", it.w("v", 64, 64), it.w("u", 64, 64), out="z")
    it.outputs = ["y", "z"]
    onnx.save(it.proto(), path)
    return path


def test_h10_what_runs_on_nothing_is_written_and_the_report_says_what_helps(tmp_path: Path) -> None:
    source = impossible(tmp_path / "a.onnx")
    run = RunOptions(rounds=0)
    report = mo.quantize_file(source, tmp_path / "b.onnx", run=run)
    assert report.run is not None
    why = str(report.run.not_run)
    assert "node 'Reshape_0' (Reshape)" in why
    assert "'rows', 'odd'" in why
    for option in ("--dim rows=N", "--inputs DATA", "--no-run"):
        assert option in why
    assert (report.run.runs, report.run.outputs, report.run.sqnr_db) == (0, (), None)
    assert (tmp_path / "b.onnx").exists()
    with pytest.raises(mo.FormatError, match=r"^max_error: .*--dim rows=N.*--inputs DATA"):
        mo.quantize_file(source, tmp_path / "c.onnx", run=RunOptions(max_error=1.0))
    assert not (tmp_path / "c.onnx").exists()


def test_h10_sizes_grow_and_axes_of_one_name_have_one_length() -> None:
    infos = {
        "x": InputInfo("x", "float32", ("N", 3, "h", "w")),
        "m": InputInfo("m", "float32", ("N", "h")),
        "past": InputInfo("past", "float32", ("N", "past_length", 4)),
    }
    axes = open_axes(infos, {})
    assert axes == {"N": "batch", "h": "free", "w": "free", "past_length": "past"}
    tried = [each.get("h", 0) for each in lengths(axes) if set(each) == {"h", "w"} and each["h"] == each["w"]]
    assert tried == sorted(tried)
    assert {1, 2, 4, 8, 16, 32, 64, 224} < set(tried)
    assert open_axes(infos, {"h": 3, "x:3": 4, "N": 1, "past_length": 0}) == {}


def test_h15_an_axis_of_minus_one_is_open(tmp_path: Path) -> None:
    it = Net({"x": [-1, 64]})
    it.add("MatMul", "x", it.w("w", 64, 32), out="y")
    onnx.save(it.proto(), tmp_path / "a.onnx")
    assert run_pair(tmp_path / "a.onnx", tmp_path / "a.onnx", RunOptions(rounds=0)).inputs[0].shape == (1, 64)


@pytest.mark.parametrize("kind", ["file", "array file", "folder", "mapping", "array", "list", "callable"])
def test_h30_inputs_and_calibration_data_are_of_the_same_kinds(tmp_path: Path, kind: str) -> None:
    it = Net({"x": ["batch", 64]})
    it.add("MatMul", "x", it.w("w", 64, 32), out="y")
    onnx.save(it.proto(), tmp_path / "a.onnx")
    x = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "0.npy", x)
    given = {
        "file": tmp_path / "x.npz",
        "array file": tmp_path / "x.npy",
        "folder": tmp_path / "d",
        "mapping": {"x": x},
        "array": x,
        "list": [x],
        "callable": lambda: [{"x": x}],
    }[kind]
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "b.onnx", run=RunOptions(inputs=given, rounds=0))
    assert (report.run.inputs_from, report.run.inputs[0].shape) == ("given", (4, 64))
    options = mo.OnnxOptions(calibrate=given)
    report = mo.quantize_file(tmp_path / "a.onnx", tmp_path / "c.onnx", onnx=options, run=RunOptions(rounds=0))
    assert report.run.inputs_from == "calibration"  # H55: what was given is what is measured


def test_h30_the_batch_may_be_any_axis(tmp_path: Path) -> None:
    onnx.save(lstm().proto(), tmp_path / "a.onnx")
    r = np.random.default_rng(2)
    sizes = {"x": (3, 5, 24), "h": (1, 3, 16), "c": (1, 3, 16)}
    given = {name: r.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    report = mo.quantize_file(
        tmp_path / "a.onnx", tmp_path / "b.onnx", onnx=mo.OnnxOptions(activations="none"),
        run=RunOptions(inputs=given, dims={"x:0": 1, "h:1": 1, "c:1": 1}, rounds=0),
    )  # fmt: skip
    assert report.run.runs == 3
    assert [each.shape for each in report.run.inputs] == [(1, 5, 24), (1, 1, 16), (1, 1, 16)]


def endless(doubles: bool) -> onnx.ModelProto:
    """A product, and a loop that doubles its data, or only goes on, for as long as an input says: made up, for long."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]),
         helper.make_node("Concat", ["s", "s"], ["t"], axis=0) if doubles else helper.make_node("Sin", ["s"], ["t"])],
        "b", [helper.make_tensor_value_info("i", TensorProto.INT64, []), *(helper.make_tensor_value_info(n, t, s)
              for n, t, s in (("go", TensorProto.BOOL, []), ("s", TensorProto.FLOAT, None)))],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("t", 1, None)],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["l"], body=body),
             helper.make_node("MatMul", ["x", "w"], ["y"])]  # fmt: skip
    weights = [onnx.numpy_helper.from_array(np.full(s, v), k) for k, s, v in
               (("w", (64, 64), np.float32(0.1)), ("n", (), np.int64(2**40)))]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", 64])],
        [helper.make_tensor_value_info("y", 1, ["n", 64]), helper.make_tensor_value_info("l", 1, None)], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("doubles", "words"), [(True, "takes more than"), (False, "computes for more than 1 seconds")])
def test_a_run_that_does_not_end_is_ended_and_the_file_written(
    tmp_path: Path, doubles: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H38, H39: what onnxruntime computes has bounds of time and memory."""
    monkeypatch.setattr(sizes, "PATIENCE", (1.0, *sizes.PATIENCE[1:]))
    onnx.save(endless(doubles), tmp_path / "a.onnx")
    report = mo.quantize_file(
        tmp_path / "a.onnx", tmp_path / "b.onnx", durable=False, run=RunOptions(), max_memory=2**26
    )
    assert report.run.runs == 0
    assert words in report.run.not_run
    assert (tmp_path / "b.onnx").exists()


def test_a_session_that_is_limited_never_holds_more_and_later_ones_are_not(tmp_path: Path) -> None:
    """Twenty nodes of which each doubles the data: 64 MiB of 16 numbers, that no look from time to time would see."""
    names = ["x", *(f"c{i}" for i in range(20)), "y"]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, 1, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "chain.onnx"
    onnx.save(proto, path)
    with limited(1 << 24, path):
        session = open_session(path, threads=1)
    few, many = ({"x": np.ones(n, np.float32)} for n in (1, 16))
    with bounded(60.0, 1 << 24):
        assert run_session(session, path, few)[0].nbytes == 1 << 23
        with pytest.raises(Ended, match="takes more than 16,777,216 bytes"):
            run_session(session, path, many)
    assert run_session(open_session(path, threads=1), path, many)[0].nbytes == 1 << 27


@pytest.mark.parametrize("build", [text, pytest.param(tall, marks=pytest.mark.slow)])
def test_no_clock_says_what_is_written_or_reported(
    tmp_path: Path, build: Callable[[], Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour goes by between any two looks at the clock, and a second of the processor does what a hundredth did."""
    onnx.save(build().proto(), tmp_path / "a.onnx")
    made = _written(tmp_path)
    hours, process_time = itertools.count(0, 3600), time.process_time
    for name in ("perf_counter", "monotonic", "time"):
        monkeypatch.setattr(time, name, lambda: float(next(hours)))
    monkeypatch.setattr(time, "process_time", lambda: 100 * process_time())
    assert _written(tmp_path) == made


def _written(folder: Path) -> list[object]:
    """What two commands write and say of a model, without the times that they took."""
    found: list[object] = []
    how = {"overwrite": True, "durable": False, "run": RunOptions(rounds=0)}
    for name, report in (
        ("b.onnx", mo.quantize_file(folder / "a.onnx", folder / "b.onnx", bits=4, **how)),
        ("c.onnx", mo.optimize_file(folder / "a.onnx", folder / "c.onnx", target_bpw=5.5, **how)),
    ):
        run = dataclasses.replace(report.run, seconds=0.0)
        found += [(folder / name).read_bytes(), report.options.get("allocation"), report.tensors, report.warnings, run]
    return found
