"""Which units of a graph can be cropped: each operator lets them through as it should, or refuses by name."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from graph_nets import Net, crops, groups_of


def members(group):
    return {(member.name, member.axis, member.offset, member.size) for member in group.members}


def test_hidden_units_of_matmuls_go_with_their_bias_and_what_reads_them():
    net = Net({"x": ["n", 5]})
    h = net.add("Relu", net.add("Add", net.add("MatMul", "x", net.w("a", 5, 8)), net.w("bias", 8)))
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    [group] = crops(net.proto()).values()
    assert group.name == "a.ffn"
    assert group.kind == "ffn"
    assert group.units == 8
    assert members(group) == {("a", 1, 0, 1), ("bias", 0, 0, 1), ("b", 0, 0, 1)}
    assert {member.name for member in group.members if member.scored} == {"a", "b"}


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_reads_and_makes_units_whichever_factor_is_transposed(trans_a, trans_b):
    net = Net({"x": [4, 4]})
    first = (8, 4) if trans_b else (4, 8)
    h = net.add("Gemm", "x", net.w("a", *first), net.w("c", 8), transA=trans_a, transB=trans_b)
    if trans_a:
        h = net.add("Transpose", h, perm=[1, 0])
    net.add(
        "Gemm",
        h,
        net.w("b", *((3, 8) if trans_b else (8, 3))),
        net.w("d", 1, 3),
        transA=trans_a,
        transB=trans_b,
        out="y",
    )
    [group] = crops(net.proto()).values()
    assert members(group) == {("a", 0 if trans_b else 1, 0, 1), ("c", 0, 0, 1), ("b", 1 if trans_b else 0, 0, 1)}


def conv_net(**kwargs):
    return Net({"x": ["n", 3, 8, 8]}, **kwargs)


def test_channels_of_convolutions_go_with_their_batch_norm():
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 8, 3, 3, 3), net.w("bias", 8), pads=[1, 1, 1, 1])
    h = net.add("BatchNormalization", h, *(net.positive(f"bn{i}", 8) for i in range(4)))
    h = net.add("MaxPool", net.add("Relu", h), kernel_shape=[2, 2], strides=[2, 2])
    net.add("Conv", h, net.w("b", 4, 8, 1, 1), out="y")
    [group] = crops(net.proto()).values()
    assert group.name == "a.channels"
    assert ("b", 1, 0, 1) in members(group)
    assert {(f"bn{i}", 0, 0, 1) for i in range(4)} < members(group)


@pytest.mark.parametrize("times", [1, 2])
def test_depthwise_convolutions_lose_groups(times):
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 6, 3, 1, 1))
    h = net.add("Conv", h, net.w("d", 6 * times, 1, 3, 3), net.w("dbias", 6 * times), group=6)
    net.add("Conv", h, net.w("b", 4, 6 * times, 1, 1), out="y")
    [group] = crops(net.proto()).values()
    assert group.units == 6
    assert ("d", 0, 0, times) in members(group)
    assert ("b", 1, 0, times) in members(group)


def test_each_group_of_a_grouped_convolution_is_a_unit():
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 8, 3, 1, 1))
    h = net.add("Conv", h, net.w("g", 12, 2, 3, 3), group=4)
    net.add("Conv", h, net.w("b", 4, 12, 1, 1), out="y")
    [group] = crops(net.proto()).values()
    assert group.units == 4
    assert members(group) == {("a", 0, 0, 2), ("g", 0, 0, 3), ("b", 1, 0, 3)}


@pytest.mark.parametrize("groups", [1, 6])
def test_transposed_convolutions_have_inputs_in_front(groups):
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 6, 3, 1, 1))
    h = net.add("ConvTranspose", h, net.w("t", 6, 6 // groups, 2, 2), net.w("tbias", 6), strides=[2, 2], group=groups)
    net.add("Conv", h, net.w("b", 4, 6, 1, 1), out="y")
    found = crops(net.proto())
    assert sorted(group.units for group in found.values()) == ([6, 6] if groups == 1 else [6])
    assert ("t", 0, 0, 1) in members(found["a.channels"])


def test_a_residual_stream_is_one_group():
    net = conv_net()
    h = net.add("Conv", "x", net.w("stem", 6, 3, 1, 1))
    inner = net.add("Relu", net.add("Conv", h, net.w("a", 5, 6, 3, 3), pads=[1, 1, 1, 1]))
    h = net.add("Add", h, net.add("Conv", inner, net.w("b", 6, 5, 1, 1)))
    net.add("Conv", h, net.w("last", 2, 6, 1, 1), out="y")
    found = crops(net.proto())
    assert {name: group.units for name, group in found.items()} == {"stem.channels": 6, "a.channels": 5}
    assert members(found["stem.channels"]) == {("stem", 0, 0, 1), ("a", 1, 0, 1), ("b", 0, 0, 1), ("last", 1, 0, 1)}


@pytest.mark.parametrize("how", ["Flatten", "Reshape -1", "Reshape 0 -1", "Reshape all", "Shape"])
def test_flattened_images_give_each_channel_several_columns(how):
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 6, 3, 3, 3), strides=[3, 3])
    if how == "Flatten":
        h = net.add("Flatten", h)
    elif how == "Shape":
        batch = net.add("Gather", net.add("Shape", h), net.int0("zero", 0))
        shape = net.add("Concat", net.add("Unsqueeze", batch, net.ints("axes", 0)), net.ints("rest", -1), axis=0)
        h = net.add("Reshape", h, shape)
    else:
        shapes = {"Reshape -1": (-1, 24), "Reshape 0 -1": (0, -1), "Reshape all": (2, 24)}
        h = net.add("Reshape", h, net.ints("shape", *shapes[how]))
    net.add("Gemm", h, net.w("b", 24, 5), out="y")
    [group] = crops(net.proto()).values()
    assert members(group) == {("a", 0, 0, 1), ("b", 0, 0, 4)}


def test_images_with_channels_last_give_each_channel_columns_apart():
    net = conv_net()
    h = net.add("Conv", "x", net.w("a", 6, 3, 3, 3), strides=[3, 3])
    h = net.add("Flatten", net.add("Transpose", h, perm=[0, 2, 3, 1]))
    net.add("Gemm", h, net.w("b", 24, 5), out="y")
    [group] = crops(net.proto()).values()
    assert members(group) == {("a", 0, 0, 1), *(("b", 0, 6 * i, 1) for i in range(4))}


def test_concatenated_channels_lie_behind_each_other():
    net = conv_net()
    a, b = net.add("Conv", "x", net.w("a", 6, 3, 1, 1)), net.add("Conv", "x", net.w("b", 4, 3, 1, 1))
    h = net.add("BatchNormalization", net.add("Concat", a, b, axis=1), *(net.positive(f"bn{i}", 10) for i in range(4)))
    net.add("Conv", h, net.w("c", 2, 10, 1, 1), out="y")
    found = crops(net.proto())
    assert ("c", 1, 0, 1) in members(found["a.channels"])
    assert ("c", 1, 6, 1) in members(found["b.channels"])
    assert ("bn0", 0, 6, 1) in members(found["b.channels"])


@pytest.mark.parametrize(
    ("opset", "how"), [(11, "attribute"), (11, "even"), (17, "input"), (17, "even"), (21, "number")]
)
def test_halves_of_a_gate_live_together(opset, how):
    net = Net({"x": ["n", 5]}, opset=opset)
    h = net.add("MatMul", "x", net.w("a", 5, 16))
    attributes = {"split": [8, 8]} if how == "attribute" else {"num_outputs": 2} if how == "number" else {}
    inputs = [net.ints("sizes", 8, 8)] if how == "input" else []
    net.add("Split", h, *inputs, out=["left", "right"], axis=1, **attributes)
    net.add("MatMul", net.add("Mul", "left", net.add("Sigmoid", "right")), net.w("b", 8, 3), out="y")
    [group] = crops(net.proto()).values()
    assert group.units == 8
    assert members(group) == {("a", 1, 0, 1), ("a", 1, 8, 1), ("b", 0, 0, 1)}


@pytest.mark.parametrize("bounds", [((0, 8), (8, 16)), ((-16, -8), (8, 2**63 - 1))])
def test_slices_follow_their_units(bounds):
    net = Net({"x": ["n", 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 16))
    parts = [
        net.add("Slice", h, net.ints(f"start{i}", a), net.ints(f"end{i}", b), net.ints(f"axes{i}", 1))
        for i, (a, b) in enumerate(bounds)
    ]
    net.add("MatMul", net.add("Mul", *parts), net.w("b", 8, 3), out="y")
    [group] = crops(net.proto()).values()
    assert members(group) == {("a", 1, 0, 1), ("a", 1, 8, 1), ("b", 0, 0, 1)}


def test_halves_whose_bounds_are_computed_of_their_length_are_cut_by_numbers():
    """As torch's older exporter writes chunk."""
    net = Net({"x": ["n", 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 16))
    length = net.add("Gather", net.add("Shape", h), net.ints("axis", 1), axis=0)
    half = net.add("Div", net.add("Add", length, net.ints("one", 1)), net.ints("two", 2))
    middle, end = net.add("Mul", half, "one"), net.add("Mul", half, "two")
    left = net.add("Slice", h, net.ints("zero", 0), middle, "axis")
    right = net.add("Slice", h, middle, end, "axis")
    net.add("MatMul", net.add("Mul", left, net.add("Sigmoid", right)), net.w("b", 8, 3), out="y")
    [group] = crops(net.proto()).values()
    assert members(group) == {("a", 1, 0, 1), ("a", 1, 8, 1), ("b", 0, 0, 1)}


def test_a_part_that_could_become_empty_is_refused():
    net = Net({"x": ["n", 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 12))
    net.add("Split", h, net.ints("sizes", 8, 4), out=["left", "right"], axis=1)
    left = net.add("MatMul", "left", net.w("b", 8, 3))
    net.add("Add", left, net.add("MatMul", "right", net.w("c", 4, 3)), out="y")
    _, found, refused = groups_of(net.proto())
    assert not found
    assert refused["a"].reason == "'left' holds only some of the units, and could become empty"


POINTWISE = ["Abs", "Erf", "Elu", "Gelu", "HardSwish", "Identity", "LeakyRelu", "Neg", "Selu", "Sigmoid", "Tanh", "Exp"]


@pytest.mark.parametrize("op", POINTWISE)
def test_elementwise_operators_pass_units_on(op):
    net = Net({"x": ["n", 5]})
    net.add("MatMul", net.add(op, net.add("MatMul", "x", net.w("a", 5, 8))), net.w("b", 8, 3), out="y")
    assert [group.units for group in crops(net.proto()).values()] == [8]


@pytest.mark.parametrize("shape", [(), (1,), (8,), (1, 8), (4, 1), (1, 1, 8)])
@pytest.mark.parametrize("op", ["Add", "Mul", "Sub", "Div", "Pow", "Max", "PRelu"])
def test_broadcast_constants_lose_the_same_indices(op, shape):
    shape = (8,) if op == "PRelu" and len(shape) > 2 else shape  # a slope may not have more axes than what it is for
    net = Net({"x": [4, 5]})
    h = net.add("Softplus", net.add("MatMul", "x", net.w("a", 5, 8)))
    h = net.add(op, h, net.positive("c", *shape))
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    [group] = crops(net.proto()).values()
    assert any(name == "c" for name, *_ in members(group)) == (8 in shape)


def test_where_clip_cast_and_dropout_pass_units_on():
    net = Net({"x": ["n", 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    net.weights["mask"] = np.array([True, False] * 4)
    net.weights["low"], net.weights["ratio"] = np.float32(-1), np.float32(0.5)
    h = net.add("Where", "mask", h, net.w("other", 8))
    h = net.add("Dropout", net.add("Clip", net.add("Cast", h, to=1), "low"), "ratio")
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    [group] = crops(net.proto()).values()
    assert {("mask", 0, 0, 1), ("other", 0, 0, 1)} < members(group)


@pytest.mark.parametrize("op", ["Transpose", "Cast", "Identity"])
def test_weights_behind_other_nodes_are_found(op):
    net = Net({"x": ["n", 5]})
    attributes = {"Transpose": {"perm": [1, 0]}, "Cast": {"to": 1}, "Identity": {}}[op]
    a = net.add(op, net.w("a", *((8, 5) if op == "Transpose" else (5, 8))), **attributes)
    b = net.add(op, net.w("b", *((3, 8) if op == "Transpose" else (8, 3))), **attributes)
    net.add("MatMul", net.add("Relu", net.add("MatMul", "x", a)), b, out="y")
    [group] = crops(net.proto()).values()
    assert group.name == "a.ffn"
    assert members(group) == (
        {("a", 0, 0, 1), ("b", 1, 0, 1)} if op == "Transpose" else {("a", 1, 0, 1), ("b", 0, 0, 1)}
    )


def test_weights_in_constant_nodes_are_cropped():
    from onnx import numpy_helper

    net = Net({"x": ["n", 5]})
    a = net.add("Constant", value=numpy_helper.from_array(net.rng.standard_normal((5, 8)).astype(np.float32)), out="a")
    net.add("MatMul", net.add("MatMul", "x", a), net.w("b", 8, 3), out="y")
    [group] = crops(net.proto()).values()
    assert ("a", 1, 0, 1) in members(group)


def test_a_shared_weight_couples_all_its_uses():
    net = Net({"x": ["n", 8]})
    h = net.add("Relu", net.add("MatMul", "x", net.w("a", 8, 6)))
    h = net.add("Relu", net.add("MatMul", h, net.w("s", 6, 6)))
    h = net.add("Relu", net.add("MatMul", h, "s"))
    net.add("MatMul", h, net.w("b", 6, 3), out="y")
    [group] = crops(net.proto()).values()
    assert members(group) == {("a", 1, 0, 1), ("s", 0, 0, 1), ("s", 1, 0, 1), ("b", 0, 0, 1)}


def test_a_weight_that_is_read_along_both_axes_makes_two_groups_with_names_of_their_own():
    net = Net({"x": [2, 8], "z": [2, 6]})
    h = net.add("Relu", net.add("MatMul", "x", net.w("s", 8, 6)))
    left = net.add("MatMul", h, net.w("a", 6, 3))
    h = net.add("Relu", net.add("Gemm", "z", "s", transB=1))
    net.add("Add", left, net.add("MatMul", h, net.w("b", 8, 3)), out="y")
    # Its rows are read as inputs of the graph as well.
    _, groups, refused = groups_of(net.proto())
    assert not groups
    assert refused["s"].reason == "'x' is an input of the graph"
    net = Net({"x": [2, 8]})
    w = net.w("s", 8, 8)
    h = net.add("Relu", net.add("MatMul", net.add("Relu", net.add("MatMul", "x", net.w("i", 8, 8))), w))
    h = net.add("MatMul", net.add("Relu", net.add("MatMul", h, net.w("m", 8, 8))), net.add("Transpose", w, perm=[1, 0]))
    net.add("MatMul", net.add("Relu", h), net.w("o", 8, 3), out="y")
    assert {name: group.units for name, group in crops(net.proto()).items()} == {"i.ffn": 8, "s.ffn": 8}


def test_weights_that_are_vectors_count_and_other_vectors_do_not():
    net = Net({"x": [2, 1]})
    h = net.add("Relu", net.add("Add", net.add("MatMul", "x", net.w("a", 1, 8)), net.w("bias", 8)))
    net.add("MatMul", h, net.w("b", 8, 1), out="y")
    [group] = crops(net.proto()).values()
    assert {member.name for member in group.members if member.scored} == {"a", "b"}


@pytest.mark.parametrize("n", [3000])
def test_e9_deep_graphs_need_no_recursion(n):
    net = Net({"x": ["n", 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    width = net.add("Shape", "x")
    for _ in range(n):
        h, width = net.add("Relu", h), net.add("Identity", width)
    rows = net.add("Slice", width, net.ints("zero", 0), net.ints("one", 1))
    h = net.add("Reshape", h, net.add("Concat", rows, net.ints("rest", -1), axis=0))
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    _, groups, _ = groups_of(net.proto())
    assert [group.units for group in groups.values()] == [8]
