"""Two ONNX models run against each other: inputs, figures, times, refusals."""

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
import onnx

from modelopt_rs import FormatError, UnsupportedError, files
from modelopt_rs.containers.numpy_files import read_npz
from modelopt_rs.errors import OptionError
from modelopt_rs.onnx.run.generate import axis_length, generate
from modelopt_rs.onnx.run.inputs import input_infos
from modelopt_rs.onnx.run.latency import in_turn, peak_of_run, speedup
from modelopt_rs.onnx.run.pair import compare_models, run_pair
from modelopt_rs.onnx.run.samples import feeds
from modelopt_rs.onnx.run.sessions import open_session, refusal
from modelopt_rs.onnx.run.vocabulary import vocabulary
from modelopt_rs.planning.run import RunOptions
from modelopt_rs.report.run import MaxErrorExceeded, check_max_error

TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

ONCE = RunOptions(rounds=0)
Value = tuple[str, int, Sequence[int | str | None]]
rng = np.random.default_rng(11)


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a model of these nodes."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def linear(path: Path, w: np.ndarray, b: np.ndarray | None = None, batch: int | str | None = "batch") -> Path:
    """x @ w + b."""
    b = np.zeros(w.shape[1], w.dtype) if b is None else b
    kind = helper.np_dtype_to_tensor_dtype(w.dtype)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Add", ["h", "b"], ["y"], name="sum"),
    ]
    n, m = w.shape
    return save(path, nodes, [("x", kind, [batch, n])], [("y", kind, [batch, m])], {"w": w, "b": b})


def unary(path: Path, op: str, kind: int = TensorProto.FLOAT, shape: Sequence[int | str | None] = ("n",)) -> Path:
    node = helper.make_node(op, ["x"], ["y"], name="only")
    return save(path, [node], [("x", kind, shape)], [("y", kind, shape)])


W = rng.standard_normal((8, 4)).astype(np.float32)


# ---- figures


def test_a_model_is_equal_to_itself(tmp_path: Path) -> None:
    report = run_pair(linear(tmp_path / "a.onnx", W), tmp_path / "a.onnx", RunOptions(rounds=0, max_error=0.0))
    assert (report.sqnr_db, report.cosine, report.max_error) == (math.inf, 1.0, 0.0)
    assert report.outputs[0].nonfinite == 0
    assert report.inputs_from == "generated"
    assert report.inputs[0].shape == (1, 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_figures_are_those_of_numpy(tmp_path: Path, dtype: type) -> None:
    w = W.astype(dtype)
    v = (W + rng.standard_normal(W.shape) * 0.01).astype(dtype)
    x = rng.standard_normal((5, 8)).astype(dtype)
    one, other = linear(tmp_path / "a.onnx", w), linear(tmp_path / "b.onnx", v)
    report = run_pair(one, other, RunOptions(inputs={"x": x}, rounds=0), threads=1)
    p, q = (open_session(m, threads=1).run(None, {"x": x})[0].astype(np.float64) for m in (one, other))
    np.testing.assert_allclose(report.sqnr_db, 10 * np.log10((p * p).sum() / ((p - q) ** 2).sum()), rtol=1e-12)
    np.testing.assert_allclose(report.cosine, (p * q).sum() / np.linalg.norm(p) / np.linalg.norm(q), rtol=1e-12)
    assert report.max_error == np.abs(p - q).max()
    assert report.outputs[0].shape == (5, 4)
    assert report.outputs[0].dtype == np.dtype(dtype).name


def test_runs_add_up_to_the_whole(tmp_path: Path) -> None:
    one, other = linear(tmp_path / "a.onnx", W), linear(tmp_path / "b.onnx", W * np.float32(1.01))
    x = rng.standard_normal((7, 8)).astype(np.float32)
    whole = run_pair(one, other, RunOptions(inputs={"x": x}, rounds=0), threads=1)
    cut = run_pair(one, other, RunOptions(inputs={"x": x}, dims={"batch": 2}, rounds=0), threads=1)
    assert (whole.runs, cut.runs) == (1, 4)
    assert whole.outputs[0].elements == cut.outputs[0].elements == 28
    np.testing.assert_allclose(cut.sqnr_db, whole.sqnr_db, rtol=1e-6)


def test_a_fixed_batch_takes_inputs_by_its_length(tmp_path: Path) -> None:
    model = linear(tmp_path / "a.onnx", W, batch=2)
    report = run_pair(model, model, RunOptions(inputs={"x": np.zeros((6, 8), np.float32)}, rounds=0))
    assert report.runs == 3
    with pytest.raises(ValueError, match=r"axis 0 of 'x' must be 2 long or a multiple, got shape \[3, 8\]"):
        run_pair(model, model, RunOptions(inputs={"x": np.zeros((3, 8), np.float32)}, rounds=0))


def add_constant(path: Path, value: float) -> Path:
    node = helper.make_node("Add", ["x", "c"], ["y"])
    shape = ["n"]
    return save(
        path,
        [node],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
        {"c": np.array([value], np.float32)},
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_both_alike_is_equal(tmp_path: Path, bad: float) -> None:
    model = add_constant(tmp_path / "a.onnx", 1.0)
    x = np.array([1.0, bad, 3.0], np.float32)
    report = run_pair(model, model, RunOptions(inputs={"x": x}, rounds=0, max_error=0.0))
    assert (report.outputs[0].nonfinite, report.max_error, report.cosine) == (0, 0.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_in_one_only_is_an_infinite_error(tmp_path: Path, bad: float) -> None:
    one, other = add_constant(tmp_path / "a.onnx", 1.0), add_constant(tmp_path / "b.onnx", bad)
    report = compare_models(one, other, RunOptions(inputs={"x": np.ones(3, np.float32)}, rounds=0))
    assert report.outputs[0].nonfinite == 3
    assert (report.max_error, report.sqnr_db) == (math.inf, -math.inf)
    assert json.loads(report.to_json())["max_error"] is None
    with pytest.raises(MaxErrorExceeded, match="output 'y' is off by inf"):
        check_max_error(report, 1e30)


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.INT64, np.int64), (TensorProto.BOOL, np.bool_)])
def test_integers_and_truth_values_have_a_share_that_agrees(tmp_path: Path, kind: int, dtype: type) -> None:
    x = np.array([1, 1, 0, 1], dtype)
    one = unary(tmp_path / "a.onnx", "Identity", kind)
    op, c = ("Mul", np.array([1, 0, 1, 1])) if dtype is np.int64 else ("And", np.array([True, False, True, True]))
    node = helper.make_node(op, ["x", "c"], ["y"])
    other = save(tmp_path / "b.onnx", [node], [("x", kind, ["n"])], [("y", kind, ["n"])], {"c": c})
    found = run_pair(one, other, RunOptions(inputs={"x": x}, rounds=0)).outputs[0]
    assert (found.agree, found.max_error, found.sqnr_db, found.cosine) == (0.75, 1.0, None, None)


def test_strings_agree_or_not(tmp_path: Path) -> None:
    kind = TensorProto.STRING
    one = unary(tmp_path / "a.onnx", "Identity", kind, (2,))
    node = helper.make_node("Identity", ["c"], ["y"])
    c = np.array(["a", "z"], object)
    other = save(tmp_path / "b.onnx", [node], [("x", kind, [2])], [("y", kind, [2])], {"c": c})
    options = RunOptions(inputs={"x": np.array(["a", "b"])}, rounds=0)
    assert run_pair(one, one, options).max_error == 0.0
    found = run_pair(one, other, options).outputs[0]
    assert (found.dtype, found.agree, found.max_error) == ("str", 0.5, math.inf)


def test_sequences_are_named_as_not_compared(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SequenceConstruct", ["x"], ["s"]),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]),
        ],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    report = run_pair(path, path, ONCE)
    assert report.not_compared == ("s",)
    assert [output.name for output in report.outputs] == ["y"]
    with pytest.raises(MaxErrorExceeded, match="output 's' can't be compared"):
        run_pair(path, path, RunOptions(rounds=0, max_error=1.0))


def test_outputs_of_other_shapes_and_names_are_listed(tmp_path: Path) -> None:
    def model(path: Path, y: str, width: int) -> Path:
        nodes = [helper.make_node("Identity", ["x"], [y]), helper.make_node("Slice", ["x", "a", "b", "c"], ["z"])]
        ends = {"a": np.array([0]), "b": np.array([width]), "c": np.array([0])}
        kind = TensorProto.FLOAT
        return save(path, nodes, [("x", kind, [4])], [(y, kind, [4]), ("z", kind, [None])], ends)

    one, other = model(tmp_path / "a.onnx", "p", 3), model(tmp_path / "b.onnx", "q", 2)
    report = compare_models(one, other, ONCE)
    assert (report.only_in_before, report.only_in_after) == (("p",), ("q",))
    assert report.shape_mismatches == (("z", (3,), (2,)),)
    assert (report.outputs, report.sqnr_db) == ((), None)
    with pytest.raises(MaxErrorExceeded, match=r"output 'z' has shape \[3\] before and \[2\] after"):
        check_max_error(report, 1.0)


def test_models_without_a_common_output_are_refused(tmp_path: Path) -> None:
    kind = TensorProto.FLOAT
    other = save(
        tmp_path / "b.onnx", [helper.make_node("Relu", ["x"], ["z"])], [("x", kind, ["n"])], [("z", kind, ["n"])]
    )
    with pytest.raises(ValueError, match=r"b\.onnx: has no output in common with .*a\.onnx, which has 'y'"):
        compare_models(unary(tmp_path / "a.onnx", "Relu"), other, ONCE)


def test_models_of_other_inputs_are_refused(tmp_path: Path) -> None:
    kind = TensorProto.FLOAT
    one = unary(tmp_path / "a.onnx", "Relu")
    other = save(
        tmp_path / "b.onnx", [helper.make_node("Relu", ["v"], ["y"])], [("v", kind, ["n"])], [("y", kind, ["n"])]
    )
    with pytest.raises(ValueError, match=r"b\.onnx: has no input 'x', which .*a\.onnx has"):
        compare_models(one, other, ONCE)
    double = unary(tmp_path / "c.onnx", "Relu", TensorProto.DOUBLE)
    with pytest.raises(ValueError, match=r"c\.onnx: input 'x' is of dtype float64, in .*a\.onnx float32"):
        compare_models(one, double, ONCE)


# ---- the largest error allowed


def test_max_error_refuses_what_is_further_off_and_has_the_report(tmp_path: Path) -> None:
    one, other = add_constant(tmp_path / "a.onnx", 1.0), add_constant(tmp_path / "b.onnx", 1.25)
    assert run_pair(one, other, RunOptions(rounds=0, max_error=0.25 + 1e-6)).max_error == pytest.approx(0.25)
    with pytest.raises(MaxErrorExceeded, match=r"output 'y' is off by 0\.25, more than 0\.1") as caught:
        run_pair(one, other, RunOptions(inputs={"x": np.zeros(2, np.float32)}, rounds=0, max_error=0.1))
    assert caught.value.report.max_error == 0.25


# ---- inputs that are given


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ({}, ValueError, r"must have the model's inputs 'x': 'x' is missing"),
        ({"x": np.zeros((1, 8), np.float32), "z\n": 0}, ValueError, r"'z\\n' is none"),
        ({"x": np.zeros((1, 8))}, TypeError, r"'x' must be of dtype float32, got float64; convert it with \.astype"),
        ({"x": np.zeros(8, np.float32)}, ValueError, r"'x' must have 2 axes \['batch', 8\], got shape \[8\]"),
        ({"x": np.zeros((1, 9), np.float32)}, ValueError, r"axis 1 of 'x' must be 8 long, got shape \[1, 9\]"),
        ({"x": np.array([["a"] * 8])}, TypeError, r"'x' must be of dtype float32, got <U1"),
    ],
)
def test_wrong_inputs_are_refused(tmp_path: Path, inputs: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = linear(tmp_path / "a.onnx", W)
    with pytest.raises(kind, match=message):
        run_pair(model, model, RunOptions(inputs=inputs, rounds=0))


def test_inputs_that_last_for_other_numbers_of_runs_are_refused(tmp_path: Path) -> None:
    kind = TensorProto.FLOAT
    node = helper.make_node("Add", ["x", "z"], ["y"])
    model = save(tmp_path / "a.onnx", [node], [("x", kind, [2]), ("z", kind, [2])], [("y", kind, [2])])
    x = np.arange(4, dtype=np.float32)
    once = run_pair(model, model, RunOptions(inputs={"x": x, "z": x[:2]}, rounds=0))  # z is the same in both runs
    assert once.runs == 2
    with pytest.raises(
        ValueError, match="'z' is enough for 3 runs, others for 4; give each sample in a file of its own"
    ):
        run_pair(model, model, RunOptions(inputs={"x": np.tile(x, 2), "z": np.zeros(6, np.float32)}, rounds=0))


def test_inputs_come_from_a_file(tmp_path: Path) -> None:
    model = linear(tmp_path / "a.onnx", W)
    np.savez(tmp_path / "data.npz", x=np.ones((3, 8), np.float32))
    report = run_pair(model, model, RunOptions(inputs=tmp_path / "data.npz", rounds=0))
    assert (report.inputs_from, report.inputs[0].shape) == ("given", (3, 8))


def test_a_pipe_as_inputs_or_model_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for use in (read_npz, open_session):
        with pytest.raises(ValueError, match="pipe: not a regular file"):
            use(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError):
            use(tmp_path / "none")


# ---- inputs that are generated


def inputs_of(path: Path, **options: Any) -> dict[str, np.ndarray]:
    options = RunOptions(rounds=0, **options)
    return dict(feeds(input_infos(open_session(path), path), path, options)[0])


def embedding(path: Path, rows: int = 5, cast: bool = False) -> Path:
    """Words and their masks, types and positions; the words are looked up in a table."""
    ids, axes = TensorProto.INT64, ["batch", "sequence_length"]
    nodes = [helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32)] if cast else []
    nodes += [
        helper.make_node("Gather", ["table", "ids" if cast else "input_ids"], ["e"]),
        helper.make_node("Sum", ["attention_f", "token_f", "position_f"], ["rest"]),
        helper.make_node("ReduceSum", ["e", "two"], ["r"], keepdims=0),
        helper.make_node("Add", ["r", "rest"], ["y"]),
    ]
    names = {"attention_mask": "attention_f", "token_type_ids": "token_f", "position_ids": "position_f"}
    nodes = [helper.make_node("Cast", [a], [b], to=TensorProto.FLOAT) for a, b in names.items()] + nodes
    inputs: list[Value] = [(name, ids, axes) for name in ("input_ids", *names)]
    weights = {"table": rng.standard_normal((rows, 3)).astype(np.float32), "two": np.array([2])}
    return save(path, nodes, inputs, [("y", TensorProto.FLOAT, axes)], weights)


@pytest.mark.parametrize("cast", [False, True])
def test_generated_ids_are_in_the_table_that_they_are_looked_up_in(tmp_path: Path, cast: bool) -> None:
    path = embedding(tmp_path / "a.onnx", rows=2, cast=cast)
    found = inputs_of(path, dims={"sequence_length": 64})
    with files.open(path) as source:
        assert vocabulary(source.model) == {"input_ids": 2}
    assert set(found["input_ids"].ravel()) == {0, 1}
    np.testing.assert_array_equal(found["attention_mask"], np.ones((1, 64), np.int64))
    np.testing.assert_array_equal(found["token_type_ids"], np.zeros((1, 64), np.int64))
    np.testing.assert_array_equal(found["position_ids"], np.arange(64)[None] % 10)
    assert run_pair(path, path, RunOptions(rounds=0, samples=3, dims={"sequence_length": 16})).runs == 3


@pytest.mark.parametrize("form", ["Equal", "Equal turned", "Equal of floats", "OneHot"])
def test_generated_ids_are_any_of_the_classes_of_a_one_hot_code(tmp_path: Path, form: str) -> None:
    """Bytes of which a product takes the rows of its table were made up below 10."""
    floats = form == "Equal of floats"
    dtype = TensorProto.FLOAT if floats else TensorProto.INT32
    weights = {"classes": np.arange(257, dtype=np.float32 if floats else np.int32)[None, None], "last": np.array([2])}
    weights |= {"depth": np.array(257, np.int32), "off_on": np.array([0, 1], np.float32)}
    nodes = [
        helper.make_node("Unsqueeze", ["bytes", "last"], ["column"]),
        helper.make_node("Cast", ["column"], ["ids"], to=dtype),
        helper.make_node("Equal", ["classes", "ids"] if form == "Equal turned" else ["ids", "classes"], ["equal"]),
        helper.make_node("Cast", ["equal"], ["y"], to=TensorProto.FLOAT),
    ]
    if form == "OneHot":
        nodes = [helper.make_node("OneHot", ["bytes", "depth", "off_on"], ["y"])]
    inputs: list[Value] = [("bytes", TensorProto.INT32, ["batch", 4096])]
    path = save(tmp_path / "a.onnx", nodes, inputs, [("y", TensorProto.FLOAT, ["batch", 4096, 257])], weights)
    with files.open(path) as source:
        assert vocabulary(source.model) == {"bytes": 257}
    found = inputs_of(path)["bytes"]
    assert (found.min(), found.max()) == (0, 256)


def test_what_is_compared_with_other_numbers_is_no_one_hot_code(tmp_path: Path) -> None:
    for i, numbers in enumerate(([[1, 2, 3]], [[0, 2, 1]], [[0, 1], [2, 3]], [[0]])):
        weights = {"numbers": np.array(numbers, np.int32)}
        nodes = [
            helper.make_node("Equal", ["x", "numbers"], ["equal"]),
            helper.make_node("Cast", ["equal"], ["y"], to=TensorProto.FLOAT),
        ]
        path = save(
            tmp_path / f"{i}.onnx",
            nodes,
            [("x", TensorProto.INT32, [1, 1])],
            [("y", TensorProto.FLOAT, [None, None])],
            weights,
        )
        with files.open(path) as source:
            assert vocabulary(source.model) == {}


def test_generated_inputs_come_from_the_seed_alone(tmp_path: Path) -> None:
    path = linear(tmp_path / "a.onnx", W)
    np.testing.assert_array_equal(inputs_of(path, seed=3)["x"], inputs_of(path, seed=3)["x"])
    assert (inputs_of(path, seed=3)["x"] != inputs_of(path, seed=4)["x"]).any()


@pytest.mark.parametrize(
    ("axis", "dims", "expected"),
    [
        (7, {"x:0": 3}, 7),
        ("batch", {}, 1),
        ("batch", {"batch": 5}, 5),
        ("n", {"x:0": 6}, 6),
        (None, {}, 1),
        (None, {"x:0": 6}, 6),
        ("seq_len", {}, 16),
        ("past_sequence_length", {}, 0),
        ("past_sequence_length + 1", {}, 1),
        ("height", {}, 224),
        ("whatever", {}, 1),
    ],
)
def test_open_axes_have_the_length_of_dims_or_their_name(
    axis: int | str | None, dims: dict[str, int], expected: int
) -> None:
    assert axis_length(axis, "x:0", dims) == expected


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64", "bool", "float16"])
def test_every_dtype_can_be_generated(dtype: str) -> None:
    found = generate("x", dtype, (200,), {}, {}, np.random.default_rng(0))
    assert (found.dtype, found.shape) == (np.dtype(dtype), (200,))
    low, high = {"int8": (-128, 127), "uint8": (0, 255), "bool": (0, 1), "float16": (-6, 6)}.get(dtype, (0, 9))
    assert low <= found.min() < found.max() <= high
    assert generate("x", dtype, (), {}, {}, np.random.default_rng(0)).shape == ()


def test_an_axis_that_no_input_has_is_refused(tmp_path: Path) -> None:
    model = linear(tmp_path / "a.onnx", W)
    with pytest.raises(OptionError, match=r"dims: no input has an axis 'bach'; open axes: 'batch' \(or INPUT:AXIS\)"):
        run_pair(model, model, RunOptions(dims={"bach": 2}))
    assert inputs_of(model, dims={"x:0": 2})["x"].shape == (2, 8)


def test_strings_are_not_generated(tmp_path: Path) -> None:
    model = unary(tmp_path / "a.onnx", "Identity", TensorProto.STRING, (2,))
    message = "input 'x' has strings, which can't be generated; give inputs"
    assert message in str(run_pair(model, model, ONCE).not_run)
    with pytest.raises(FormatError, match=f"^max_error: .*{message}"):
        run_pair(model, model, RunOptions(max_error=1.0))


def test_an_input_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    model = unary(tmp_path / "a.onnx", "Identity", TensorProto.BFLOAT16, (2,))
    assert "input 'x' is of type 'tensor(bfloat16)', which can't be fed" in str(run_pair(model, model, ONCE).not_run)
    given = RunOptions(inputs={"x": np.zeros(2, np.float32)})
    with pytest.raises(UnsupportedError, match=r"input 'x' is of type 'tensor\(bfloat16\)', which can't be fed"):
        run_pair(model, model, given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"rounds": -1}, "rounds must be 0 or more, got -1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"dims": {"n": -2}}, "dims: n must be 0 or more, got -2"),
        ({"max_error": -1.0}, r"max_error must be a finite number of 0 or more, got -1\.0"),
        ({"max_error": math.nan}, "max_error must be a finite number of 0 or more, got nan"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RunOptions(**options)


# ---- what onnxruntime refuses


def bad_model(path: Path, what: str) -> Path:
    kind = TensorProto.FLOAT
    if what == "operator":
        return unary(path, "Foo")
    if what == "shapes":
        return linear(path, np.zeros((8, 4), np.float32), np.zeros(3, np.float32))
    if what == "dtype":
        return unary(path, "Erf", TensorProto.INT64)
    if what == "kernel":
        return unary(path, "Erf", TensorProto.BFLOAT16)
    if what == "running":
        node = helper.make_node("Reshape", ["x", "s"], ["y"], name="re\x1b[31mshape")
        outputs: list[Value] = [("y", kind, [None])]
        return save(path, [node], [("x", kind, ["n"])], outputs, {"s": np.array([5])})
    path.write_bytes(b"no model")
    return path


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("operator", UnsupportedError, r"onnxruntime refuses it: node 'only' \(Foo\): 'No Op registered for Foo"),
        ("shapes", FormatError, r"onnxruntime refuses it: node 'sum' \(Add\): '.*Incompatible dimensions"),
        ("dtype", FormatError, r"onnxruntime refuses it: node 'only' \(Erf\): "),
        ("kernel", UnsupportedError, r"onnxruntime refuses it: node 'only' \(Erf\): 'Could not find an implementation"),
        (
            "running",
            FormatError,
            r"onnxruntime can't run it: node 're\\x1b\[31mshape' \(Reshape\): 'input_shape_size == ",
        ),
        ("bytes", FormatError, r"onnxruntime refuses it: 'Protobuf parsing failed\.'$"),
    ],
)
def test_a_refusal_names_the_node_and_nothing_is_on_stderr(
    tmp_path: Path, what: str, kind: type[Exception], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = bad_model(tmp_path / "bad.onnx", what)
    given = RunOptions(rounds=0, inputs={"x": np.zeros(3, np.float32)}) if what == "running" else ONCE
    with pytest.raises(FormatError, match=r"bad\.onnx: " + message) as caught:
        run_pair(path, path, given)
    assert type(caught.value) is kind
    assert "/onnxruntime_src" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_onnxruntime_is_named_with_the_extra_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = embedding(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'needs the extra onnx: pip install "modelopt_rs\[onnx\]"'):
        run_pair(path, path, ONCE)


def test_a_refusal_is_cut() -> None:
    assert len(str(refusal("m.onnx", RuntimeError("x" * 10_000), "refuses it"))) < 500


def test_data_outside_of_the_file_is_found(tmp_path: Path) -> None:
    model = onnx.load(linear(tmp_path / "a.onnx", rng.standard_normal((64, 64)).astype(np.float32)))
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    assert (tmp_path / "b.data").stat().st_size >= 4 * 64 * 64
    assert run_pair(tmp_path / "a.onnx", tmp_path / "b.onnx", ONCE).max_error == 0.0


# ---- times and memory


def test_calls_are_timed_in_turn_and_the_first_changes() -> None:
    calls: list[str] = []
    before, after = in_turn(lambda: calls.append("a"), lambda: calls.append("b"), 4)
    assert (len(before), len(after)) == (4, 4)
    assert "".join(calls) == "baabbaab"


def test_the_speedup_is_the_median_of_the_neighbours() -> None:
    assert speedup([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_rounds_are_reported_and_none_without(tmp_path: Path) -> None:
    model = linear(tmp_path / "a.onnx", W)
    report = run_pair(model, model, RunOptions(rounds=3))
    assert report.rounds == 3
    assert min(report.latency_before_ms or 0, report.latency_after_ms or 0, report.speedup or 0) > 0
    report = run_pair(model, model, ONCE)
    assert (report.rounds, report.latency_before_ms, report.speedup, report.peak_memory_after) == (0, None, None, None)


def test_peak_memory_is_that_of_a_process_that_has_the_weights(tmp_path: Path) -> None:
    small = linear(tmp_path / "a.onnx", np.ones((8, 4), np.float32))
    large = linear(tmp_path / "b.onnx", np.ones((8, 1_500_000), np.float32))  # 48 MB
    report = compare_models(small, large, RunOptions(rounds=0, memory=True))
    assert 10_000_000 < (report.peak_memory_before or 0) < 500_000_000
    assert (report.peak_memory_after or 0) > (report.peak_memory_before or 0) + 40_000_000


def test_a_process_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none\.onnx: a process that ran it failed: .*FileNotFoundError"):
        peak_of_run(tmp_path / "none.onnx", {}, 1)


def test_json_has_the_fields_and_no_infinities(tmp_path: Path) -> None:
    model = linear(tmp_path / "a.onnx", W)
    found = json.loads(run_pair(model, model, ONCE).to_json())
    assert found["schema"] == 1
    assert (found["sqnr_db"], found["cosine"], found["outputs"][0]["sqnr_db"]) == (None, 1.0, None)
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 8]}]


@pytest.mark.parametrize("x", [np.full((2, 8), np.nan, np.float32), np.zeros((0, 8), np.float32)], ids=["NaN", "empty"])
def test_outputs_without_a_finite_number_are_not_exact(tmp_path: Path, x: np.ndarray) -> None:
    """Nothing is known of models that were compared on nothing."""
    one = linear(tmp_path / "a.onnx", rng.standard_normal((8, 4)).astype(np.float32))
    other = linear(tmp_path / "b.onnx", rng.standard_normal((8, 4)).astype(np.float32))
    report = compare_models(one, other, RunOptions(inputs={"x": x}, rounds=0))
    assert (report.sqnr_db, report.cosine, report.outputs[0].sqnr_db) == (None, None, None)
    with pytest.raises(MaxErrorExceeded, match="the outputs have no elements that could be compared"):
        check_max_error(report, 1.0)
