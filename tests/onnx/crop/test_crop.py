"""Cropping a graph: what the operators around the weights must be told, and what crop_graph refuses."""

import numpy as np
import onnx
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx_ir as ir
from onnx import TensorProto, helper

from graph_nets import Net, crops, feeds_of, groups_of, run
from modelopt_rs.onnx.crop.apply import crop_graph


def conv_net(**kwargs):
    return Net({"x": ["n", 3, 8, 8]}, **kwargs)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL1"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [11, 21])
def test_reductions_along_other_axes_keep_the_units(op, keepdims, opset):
    net = conv_net(opset=opset)
    h = net.add("Conv", "x", net.w("a", 6, 3, 1, 1))
    axes, attributes = ([], {"axes": [2, 3]}) if opset < 18 else ([net.ints("axes", -1, -2)], {})
    h = net.add(op, h, *axes, keepdims=keepdims, **attributes)
    if keepdims:
        h = net.add("Flatten", h)
    net.add("Gemm", h, net.w("b", 6, 4), out="y")
    assert [group.kind for group in crops(net.proto()).values()] == ["channels"]


@pytest.mark.parametrize("how", ["GlobalAveragePool", "GlobalMaxPool", "AveragePool", "Resize", "Pad", "Tile"])
def test_operators_of_images_keep_the_channels(how):
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 6, 3, 1, 1))
    if how == "AveragePool":
        h = net.add(how, h, kernel_shape=[2, 2])
    elif how == "Resize":
        net.weights["scales"] = np.array([1, 1, 2, 2], np.float32)
        h = net.add(how, h, "", "scales")
    elif how == "Pad":
        h = net.add(how, h, net.ints("pads", 0, 0, 1, 1, 0, 0, 1, 1))
    elif how == "Tile":
        h = net.add(how, h, net.ints("times", 1, 1, 2, 1))
    else:
        h = net.add(how, h)
    net.add("Conv", h, net.w("b", 4, 6, 1, 1), out="y")
    [group] = crops(net.proto()).values()
    assert group.units == 6


@pytest.mark.parametrize("opset", [11, 21])
def test_squeezed_images_keep_the_channels(opset):
    net = conv_net(opset=opset)
    h = net.add("GlobalAveragePool", net.add("Conv", "x", net.w("a", 6, 3, 1, 1)))
    if opset < 13:
        h = net.add("Unsqueeze", net.add("Squeeze", h, axes=[2, 3]), axes=[0])
    else:
        h = net.add("Unsqueeze", net.add("Squeeze", h, net.ints("axes", -1, 2)), net.ints("front", 0))
    net.add("MatMul", h, net.w("b", 6, 4), out="y")
    [group] = crops(net.proto()).values()
    assert group.units == 6


def test_squeeze_and_excitation_couples_with_the_channels():
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 6, 3, 1, 1))
    s = net.add("Relu", net.add("Conv", net.add("GlobalAveragePool", h), net.w("down", 4, 6, 1, 1)))
    s = net.add("Sigmoid", net.add("Conv", s, net.w("up", 6, 4, 1, 1)))
    net.add("Conv", net.add("Mul", h, s), net.w("b", 4, 6, 1, 1), out="y")
    groups = crops(net.proto())
    assert {name: group.units for name, group in groups.items()} == {"a.channels": 6, "down.channels": 4}


def test_instance_norms_lose_scale_and_shift():
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 6, 3, 1, 1))
    h = net.add("InstanceNormalization", h, net.w("scale", 6), net.w("shift", 6))
    net.add("Conv", h, net.w("b", 4, 6, 1, 1), out="y")
    [group] = crops(net.proto()).values()
    assert {"scale", "shift"} < {member.name for member in group.members}


@pytest.mark.parametrize("per_axis", [False, True])
def test_quantized_weights_lose_their_scales(per_axis):
    net = Net({"x": ["n", 5]})
    net.weights["q"] = net.rng.integers(-9, 9, (5, 8)).astype(np.int8)
    net.positive("scale", *([8] if per_axis else []))
    h = net.add("MatMul", "x", net.w("first", 5, 5))
    h = net.add("MatMul", h, net.add("DequantizeLinear", "q", "scale", axis=1))
    h = net.add("MatMul", net.add("Relu", h), net.w("b", 8, 8))
    net.add("MatMul", net.add("Relu", h), net.w("c", 8, 2), out="y")
    groups = crops(net.proto())
    assert sorted(groups) == ["b.ffn", "first.ffn"]


def test_vectors_are_multiplied_without_other_axes():
    net = Net({"x": [5]})
    h = net.add("Relu", net.add("MatMul", "x", net.w("a", 5, 8)))
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    [group] = crops(net.proto()).values()
    assert group.units == 8
    net = Net({"x": [4, 5]})
    net.add("MatMul", net.add("MatMul", "x", net.w("a", 5, 8)), net.w("b", 8), out="y")
    [group] = crops(net.proto()).values()
    assert ("b", 0) in {(member.name, member.axis) for member in group.members}


def test_weights_with_batches_are_stacks_of_matrices():
    net = Net({"x": [3, 4, 5]})
    h = net.add("Relu", net.add("MatMul", "x", net.w("a", 3, 5, 8)))
    net.add("MatMul", h, net.w("b", 1, 8, 2), out="y")
    [group] = crops(net.proto()).values()
    assert {(member.name, member.axis) for member in group.members} == {("a", 2), ("b", 1)}


def test_embeddings_couple_with_what_reads_them():
    net = Net({"ids": ["n", 4]})
    net.input_types["ids"] = TensorProto.INT64
    h = net.add("Relu", net.add("Gather", net.w("table", 9, 6), "ids"))
    net.add("MatMul", h, net.w("b", 6, 2), out="y")
    [group] = crops(net.proto()).values()
    assert {(member.name, member.axis) for member in group.members} == {("table", 1), ("b", 0)}


def test_a_weight_in_the_branches_of_an_if_is_cropped():
    net = Net({"x": ["n", 5], "c": []})
    net.input_types["c"] = TensorProto.BOOL
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    net.w("b", 8, 3)
    bodies = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Tanh")):
        nodes = [
            helper.make_node(op, [h], [f"{name}.h"], name=f"{name}.{op}"),
            helper.make_node("MatMul", [f"{name}.h", "b"], [f"{name}.y"], name=f"{name}.m"),
        ]
        out = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)
        bodies[name] = helper.make_graph(nodes, name, [], [out])
    net.add("If", "c", out="y", **bodies)
    [group] = crops(net.proto()).values()
    assert {(member.name, member.axis) for member in group.members} == {("a", 1), ("b", 0)}


def test_what_leaves_the_body_of_an_if_is_refused():
    net = Net({"x": ["n", 5], "c": []})
    net.input_types["c"] = TensorProto.BOOL
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    bodies = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Tanh")):
        out = helper.make_tensor_value_info(f"{name}.h", TensorProto.FLOAT, None)
        bodies[name] = helper.make_graph([helper.make_node(op, [h], [f"{name}.h"])], name, [], [out])
    net.add("MatMul", net.add("If", "c", **bodies), net.w("b", 8, 3), out="y")
    _, groups, refused = groups_of(net.proto())
    assert not groups
    assert refused["a"].reason == "'else_branch.h' is an output of the graph"


def test_layers_that_share_a_shape_get_shapes_of_their_own():
    net = Net({"x": [2, 6]})
    h, shape, flat = "x", net.ints("shape", 0, 4, 3), net.ints("flat", 0, 12)
    for i in range(2):
        h = net.add("Reshape", net.add("MatMul", h, net.w(f"a{i}", 6, 12)), shape)
        h = net.add("Reshape", net.add("Tanh", h), flat)
        h = net.add("MatMul", h, net.w(f"b{i}", 12, 6))
    net.add("Identity", h, out="y")
    model, groups, _ = groups_of(net.proto())
    assert sorted(groups) == ["a0.ffn", "a1.ffn", "b0.ffn"]
    crops(net.proto())
    crop_graph(model, list(groups.values()), {"a0.ffn": np.array([1, 2])})
    small = ir.serde.serialize_model(model)
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in small.graph.initializer}
    shapes = [list(weights[node.input[1]]) for node in small.graph.node if node.op_type == "Reshape"]
    assert shapes == [[0, 2, 3], [0, 6], [0, 4, 3], [0, 12]]
    run(small, feeds_of(small))


@pytest.mark.parametrize("shared", [False, True])
def test_shapes_behind_a_cast_are_found_and_keep_their_type(shared):
    net = Net({"x": ["n", 6]})
    rows = net.add("Slice", net.add("Cast", net.add("Shape", "x"), to=6), net.ints("s", 0), net.ints("e", 1))
    net.weights["four"], net.weights["three"] = np.array([4], np.int32), np.array([3], np.int32)
    shape = net.add("Cast", net.add("Concat", rows, "four", "three", axis=0), to=7)
    h = "x"
    for i in range(2 if shared else 1):
        h = net.add("Reshape", net.add("Tanh", net.add("MatMul", h, net.w(f"a{i}", 6, 12))), shape)
        h = net.add("Reshape", net.add("Relu", h), net.ints(f"flat{i}", -1, 12))
        h = net.add("MatMul", h, net.w(f"b{i}", 12, 6))
    net.add("Identity", h, out="y")
    assert {group.units for name, group in crops(net.proto()).items() if name[0] == "a"} == {4}


def test_groups_are_disjoint_and_come_in_any_order():
    net = conv_net()
    a, b = net.add("Conv", "x", net.w("a", 6, 3, 1, 1)), net.add("Conv", "x", net.w("b", 4, 3, 1, 1))
    h = net.add("Concat", a, b, axis=1)
    net.add("Split", h, net.ints("sizes", 6, 4), out=["l", "r"], axis=1)
    h = net.add("Concat", "r", "l", axis=1)
    net.add("Conv", h, net.w("c", 2, 10, 1, 1), out="y")
    groups = crops(net.proto())
    assert {name: group.units for name, group in groups.items()} == {"a.channels": 6, "b.channels": 4}
    kept = {"a.channels": np.array([0, 5]), "b.channels": np.array([1, 2, 3])}
    both = []
    for order in (1, -1):
        model, groups, _ = groups_of(net.proto())
        crop_graph(model, list(groups.values())[::order], kept)
        both.append(ir.serde.serialize_model(model))
    feeds = feeds_of(both[0])
    np.testing.assert_array_equal(run(both[0], feeds)[0], run(both[1], feeds)[0])


def mlp():
    net = Net({"x": ["n", 5]})
    h = net.add("Relu", net.add("MatMul", "x", net.w("a", 5, 8)))
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    return groups_of(net.proto())


def test_a_crop_returns_the_indices_that_stay():
    model, groups, _ = mlp()
    stay = crop_graph(model, list(groups.values()), {"a.ffn": np.array([1, 4])})
    assert {name: {axis: list(i) for axis, i in axes.items()} for name, axes in stay.items()} == {
        "a": {1: [1, 4]},
        "b": {0: [1, 4]},
    }


def test_keeping_all_units_changes_nothing():
    model, groups, _ = mlp()
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    assert crop_graph(model, list(groups.values()), {"a.ffn": np.arange(8)}) == {}
    assert crop_graph(model, list(groups.values()), {}) == {}
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("kept", "error", "text"),
    [
        ({"z": np.array([0])}, ValueError, "crop_graph: kept must name groups, got 'z'"),
        (
            {"a.ffn": np.array([8])},
            ValueError,
            r"kept\['a.ffn'\] must be one or more ascending units from 0 to below 8",
        ),
        ({"a.ffn": np.array([2, 1])}, ValueError, "ascending units"),
        ({"a.ffn": np.array([0.5])}, TypeError, "must be a 1-d array of integers"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_changed(kept, error, text):
    model, groups, _ = mlp()
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    with pytest.raises(error, match=text):
        crop_graph(model, list(groups.values()), kept)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


def test_groups_that_were_found_before_another_crop_are_refused():
    model, groups, _ = mlp()
    crop_graph(model, list(groups.values()), {"a.ffn": np.array([1, 4])})
    with pytest.raises(
        ValueError, match=r"groups must be those of the model as it is, got 8 units of 'a' along axis 1 of"
    ):
        crop_graph(model, list(groups.values()), {"a.ffn": np.array([1])})


def test_shapes_that_the_model_says_are_those_of_the_cropped_one():
    model, groups, _ = mlp()
    crop_graph(model, list(groups.values()), {"a.ffn": np.array([1, 4, 6])})
    shapes = {value.name: str(value.shape) for node in model.graph for value in node.outputs}
    assert shapes == {"matmul_0": "[n,3]", "relu_1": "[n,3]", "y": "[n,3]"}


@pytest.mark.parametrize("opset", [18, 21])
def test_groups_of_channels_that_are_normalized_together_are_units(opset):
    """H14: scales are those of groups, from opset 21 on those of channels (the checker knows only these)."""
    net = conv_net(opset=opset)
    h = net.add("Conv", "x", net.w("a", 12, 3, 1, 1), net.w("a_bias", 12))
    length = 4 if opset < 21 else 12
    h = net.add("GroupNormalization", h, net.w("scale", length), net.w("shift", length), num_groups=4)
    net.add("Conv", net.add("Relu", h), net.w("b", 5, 12, 1, 1), out="y")
    [group] = (crops(net.proto()) if opset == 21 else groups_of(net.proto())[1]).values()
    assert (group.units, group.kind) == (4, "channels")
    assert {(member.name, member.axis, member.size) for member in group.members} == {
        ("a", 0, 3), ("a_bias", 0, 3), ("scale", 0, length // 4), ("shift", 0, length // 4), ("b", 1, 3),
    }  # fmt: skip


@pytest.mark.parametrize(("groups", "why"), [(1, "hang together"), (5, "5 groups that don't divide"), (0, "0 groups")])
def test_channels_that_a_group_norm_does_not_divide_stay(groups, why):
    net = conv_net(opset=21)
    h = net.add("Conv", "x", net.w("a", 12, 3, 1, 1))
    h = net.add("GroupNormalization", h, net.w("scale", 12), net.w("shift", 12), num_groups=groups)
    net.add("Conv", h, net.w("b", 5, 12, 1, 1), out="y")
    _, found, refusals = groups_of(net.proto())
    assert not found
    assert why in refusals["a"].reason


@pytest.mark.parametrize(("rows", "columns"), [(1, 12), (0, 12), (12, 0)])
def test_channels_that_the_groups_of_a_transposed_convolution_do_not_divide_stay(rows, columns):
    net = conv_net(opset=21)
    h = net.add("Conv", "x", net.w("a", 12, 3, 1, 1))
    net.add("ConvTranspose", h, net.w("b", rows, columns, 1, 1), group=2, out="y")
    _, found, refusals = groups_of(net.proto())
    assert not found
    assert "2 groups that don't divide" in refusals["a"].reason


@pytest.mark.parametrize("length", ["x", "h"])
def test_a_length_that_is_computed_of_known_ones_is_written_as_a_number(length):
    """Of the units themselves, or of others that are as many by chance: 8 = 2 * 5 - 2, or 8 / 1."""
    net = Net({"x": ["n", 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 8), out="h")
    width = net.add("Gather", net.add("Shape", length), net.ints("one", 1))
    if length == "x":
        width = net.add("Sub", net.add("Mul", width, net.ints("two", 2)), net.ints("also two", 2))
    else:
        width = net.add("Div", width, net.ints("itself", 1))
    shape = net.add("Concat", net.ints("rows", -1), width, axis=0)
    net.add("MatMul", net.add("Reshape", h, shape), net.w("b", 8, 3), out="y")
    groups = crops(net.proto(), {"n": 4})
    assert [group.units for group in groups.values()] == [8]


def test_a_length_of_the_units_that_another_value_takes_stays():
    """A table is cut into rows as long as the hidden layer was: it keeps them when units go."""
    net = Net({"x": ["n", 5], "t": ["n", 16]})
    net.add("MatMul", "x", net.w("a", 5, 8), out="h")
    width = net.add("Gather", net.add("Shape", "h"), net.ints("one", 1))
    rows = net.add("Reshape", "t", net.add("Concat", net.ints("minus", -1), width, axis=0))
    half = net.add("Div", width, net.ints("two", 2))
    more = net.add("Reshape", rows, net.add("Concat", net.ints("rest", -1), half, axis=0))
    net.outputs = ["y", "z"]
    net.add("MatMul", net.add("Relu", "h"), net.w("b", 8, 3), out="y")
    net.add("MatMul", more, net.w("c", 4, 3), out="z")
    groups = crops(net.proto(), {"n": 4})
    assert [group.units for group in groups.values()] == [8]
