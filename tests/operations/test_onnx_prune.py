"""Pruning ONNX models: zeros where the array functions put them, along the axes that the graph says."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
from onnx import helper, numpy_helper

import modelopt_rs as mo
from graph_nets import Net, feeds_of, run
from modelopt_rs.errors import OptionError


def net():
    """Return a model with a weight of each kind; the axis of inputs, of outputs."""
    net = Net({"x": ["n", 16, 6, 6], "ids": ["n", 4]})
    net.input_types["ids"] = onnx.TensorProto.INT64
    h = net.add("Relu", net.add("Conv", "x", net.w("conv", 24, 16, 3, 3)))
    h = net.add("ConvTranspose", h, net.w("transposed", 24, 20, 2, 2))
    h = net.add("GlobalAveragePool", h)
    h = net.add("Flatten", h)
    h = net.add("Relu", net.add("MatMul", h, net.w("matmul", 20, 36)))
    h = net.add("Relu", net.add("Gemm", h, net.w("gemm", 32, 36), net.w("bias", 32), transB=1))
    h = net.add("Relu", net.add("MatMul", h, net.add("Transpose", net.w("behind", 32, 32), perm=[1, 0])))
    table = net.add("ReduceSum", net.add("Gather", net.w("table", 9, 32), "ids"), net.ints("one", 1), keepdims=0)
    h = net.add("Add", h, table)
    net.add("Add", net.add("MatMul", h, net.w("head", 32, 16)), net.w("last", 16), out="y")
    return net


AXES = {"conv": (0, 1), "transposed": (1, 0), "matmul": (1, 0), "gemm": (0, 1), "behind": (0, 1)}


def written(tmp_path, model, **options):
    proto = model.proto()
    onnx.save(proto, tmp_path / "a.onnx")
    report = mo.prune_file(tmp_path / "a.onnx", tmp_path / "b.onnx", **options)
    small = onnx.load(tmp_path / "b.onnx")
    onnx.checker.check_model(small, full_check=True)
    run(small, feeds_of(small, {"n": 2}))
    return report, {weight.name: numpy_helper.to_array(weight) for weight in small.graph.initializer}


def test_weights_are_pruned_by_what_the_graph_does_with_them(tmp_path):
    model = net()
    report, after = written(tmp_path, model, sparsity=0.5)
    for name, array in model.weights.items():
        wanted = mo.prune.magnitude(array, 0.5) if name in AXES else array
        np.testing.assert_array_equal(after[name], wanted, err_msg=name)
    said = {tensor.name: (tensor.decision, tensor.reason) for tensor in report.tensors}
    assert said["conv"] == ("prune", "weight of Conv")
    assert said["behind"] == ("prune", "weight of MatMul")
    assert said["table"] == ("copy", "an embedding")
    assert said["head"] == ("copy", "its result is an output of the model")


@pytest.mark.parametrize("max_memory", [2**28, 4096 * 5])
def test_n_of_m_lies_along_the_axis_of_inputs(tmp_path, max_memory):
    model = net()
    _, after = written(tmp_path, model, n=2, m=4, max_memory=max_memory)
    for name, (_, inputs) in AXES.items():
        wanted = mo.prune.n_of_m(model.weights[name], 2, 4, axis=inputs)
        np.testing.assert_array_equal(after[name], wanted, err_msg=name)


def test_each_output_loses_the_same_share(tmp_path):
    model = net()
    _, after = written(tmp_path, model, sparsity=0.25, scope="row")
    for name, (outputs, _) in AXES.items():
        w = model.weights[name]
        moved = np.moveaxis(w, outputs, 0)
        rows = mo.prune.magnitude(np.ascontiguousarray(moved).reshape(len(moved), -1), 0.25, axis=1)
        np.testing.assert_array_equal(np.moveaxis(after[name], outputs, 0).reshape(rows.shape), rows, err_msg=name)


def test_a_row_scope_needs_all_columns_in_memory(tmp_path):
    with pytest.raises(OptionError, match=r"'matmul': 20 rows need .* bytes, max_memory is 2,000"):
        written(tmp_path, net(), sparsity=0.25, scope="row", max_memory=2000, exclude=["conv", "transposed"])


def test_all_weights_can_be_ranked_together(tmp_path):
    model = net()
    _, after = written(tmp_path, model, sparsity=0.6, scope="global")
    names = [name for name in model.weights if name in AXES]
    wanted = mo.prune.global_magnitude([model.weights[name] for name in names], 0.6)
    for name, array in zip(names, wanted, strict=True):
        np.testing.assert_array_equal(after[name], array, err_msg=name)


def test_globs_take_embeddings_and_heads_and_leave_others(tmp_path):
    model = net()
    report, after = written(tmp_path, model, sparsity=0.5, include=["table", "head"], exclude=["conv"])
    np.testing.assert_array_equal(after["conv"], model.weights["conv"])
    np.testing.assert_array_equal(after["table"], mo.prune.magnitude(model.weights["table"], 0.5))
    assert {t.name for t in report.tensors if t.decision == "prune"} == {*AXES, "table", "head"} - {"conv"}


def test_what_is_no_weight_is_left_and_said(tmp_path):
    model = Net({"x": [32, 32]})
    h = model.add("Add", model.add("MatMul", "x", model.w("a", 32, 32)), model.w("grid", 32, 32))
    model.add("MatMul", model.w("left", 32, 32), model.add("Relu", h), out="y")
    report, _ = written(tmp_path, model, sparsity=0.5)
    said = {tensor.name: (tensor.decision, tensor.reason) for tensor in report.tensors}
    assert said["grid"] == ("copy", "no weight: used by Add")
    assert said["a"][0] == "prune"
    with pytest.raises(OptionError, match="include 'grid': tensor 'grid' can't be pruned: no weight: used by Add"):
        mo.prune_file(tmp_path / "a.onnx", tmp_path / "c.onnx", sparsity=0.5, include=["grid"])
    assert not (tmp_path / "c.onnx").exists()


def test_a_weight_on_the_left_of_a_product_sums_over_its_last_axis(tmp_path):
    model = Net({"x": [32, 8]})
    model.add("MatMul", model.w("left", 16, 32), "x", out="y")
    _, after = written(tmp_path, model, n=2, m=4, include=["left"])
    np.testing.assert_array_equal(after["left"], mo.prune.n_of_m(model.weights["left"], 2, 4, axis=1))


def test_a_weight_that_is_used_along_both_axes_is_pruned_without_axes_only(tmp_path):
    model = Net({"x": [2, 32]})
    h = model.add("Relu", model.add("MatMul", "x", model.w("a", 32, 32)))
    h = model.add("Relu", model.add("Gemm", h, "a", transB=1))
    model.add("MatMul", h, model.w("b", 32, 8), out="y")
    _, after = written(tmp_path, model, sparsity=0.5)
    np.testing.assert_array_equal(after["a"], mo.prune.magnitude(model.weights["a"], 0.5))
    report = mo.prune_file(tmp_path / "a.onnx", tmp_path / "c.onnx", n=2, m=4, dry_run=True)
    [reason] = [tensor.reason for tensor in report.tensors if tensor.name == "a"]
    assert reason == "which axis holds inputs isn't clear: used along both axes"


def test_inputs_that_are_no_multiple_of_the_group_are_said(tmp_path):
    report, _ = written(tmp_path, net(), n=2, m=8)
    said = {tensor.name: tensor.reason for tensor in report.tensors}
    assert said["matmul"] == "20 inputs are no multiple of 8"


def test_weights_in_the_body_of_an_if_are_pruned(tmp_path):
    model = Net({"x": [2, 32], "c": []})
    model.input_types["c"] = onnx.TensorProto.BOOL
    model.w("shared", 32, 16)
    bodies = {}
    for name in ("then_branch", "else_branch"):
        nodes = [helper.make_node("MatMul", ["x", "shared"], [f"{name}.y"], name=f"{name}.m")]
        nodes += [helper.make_node("Relu", [f"{name}.y"], [f"{name}.z"], name=f"{name}.r")]
        out = helper.make_tensor_value_info(f"{name}.z", onnx.TensorProto.FLOAT, None)
        bodies[name] = helper.make_graph(nodes, name, [], [out])
    model.add("MatMul", model.add("If", "c", **bodies), model.w("b", 16, 16), out="y")
    _, after = written(tmp_path, model, n=2, m=4)
    np.testing.assert_array_equal(after["shared"], mo.prune.n_of_m(model.weights["shared"], 2, 4, axis=0))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"format": "bitmask"}, "format must be 'dense' for an ONNX model, got 'bitmask'"),
        ({"then": mo.QuantizeOptions(bits=8)}, "then must be left out for an ONNX model"),
    ],
)
def test_what_an_onnx_model_can_not_hold_is_refused(tmp_path, options, text):
    with pytest.raises(OptionError, match=text):
        written(tmp_path, net(), sparsity=0.5, **options)
    assert not (tmp_path / "b.onnx").exists()


def test_a_nan_is_an_error_with_its_tensor_and_nothing_is_written(tmp_path):
    model = net()
    model.proto()
    model.weights["matmul"][3, 5] = np.nan
    for options in ({"sparsity": 0.5}, {"sparsity": 0.5, "scope": "row"}, {"n": 2, "m": 4}):
        with pytest.raises(ValueError, match="tensor 'matmul'"):
            written(tmp_path, model, **options)
        assert not (tmp_path / "b.onnx").exists()
