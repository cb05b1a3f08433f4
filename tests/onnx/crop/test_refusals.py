"""What can't be proved safe is left alone, and named: one test for each reason."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper

from graph_nets import Net, crops, groups_of, run


def reason(net, name="a"):
    """Return why the outputs of a weight are refused; nothing else may have been found with it."""
    _, groups, refused = groups_of(net.proto())
    assert not any(member.name == name for group in groups.values() for member in group.members if member.axis == 1)
    return refused[name].reason


def hidden(**kwargs):
    """Return a net and the name of eight hidden units."""
    net = Net({"x": ["n", 5]}, **kwargs)
    return net, net.add("MatMul", "x", net.w("a", 5, 8), out="h")


def read(net, h):
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    return net


def test_outputs_of_the_graph_are_kept():
    net, h = hidden(outputs=["y", "h"])
    assert reason(read(net, h)) == "'h' is an output of the graph"


def test_inputs_of_the_graph_are_kept():
    net, h = hidden()
    net.inputs["z"] = ["n", 8]
    assert reason(read(net, net.add("Add", h, "z"))) == "'z' is an input of the graph"


def test_a_weight_that_can_be_given_at_each_run_is_kept():
    net, h = hidden()
    net.inputs["c"] = [8]
    net.w("c", 8)
    assert reason(read(net, net.add("Add", h, "c"))) == "'c' is an input of the graph"


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Softmax", {"axis": -1}),
        ("LogSoftmax", {"axis": 1}),
        ("Hardmax", {}),
        ("LpNormalization", {"axis": 1}),
    ],
)
def test_operators_that_go_along_the_units_refuse(op, attributes):
    net, h = hidden()
    assert reason(read(net, net.add(op, h, **attributes))) == f"{op} '{op}_1' goes along the units"


def test_an_old_softmax_takes_all_axes_behind_its_own():
    net = Net({"x": [2, 3, 5]}, opset=11)
    h = net.add("Softmax", net.add("MatMul", "x", net.w("a", 5, 8)), axis=1)
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    assert reason(net) == "Softmax 'Softmax_1' goes along the units"


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceL2", "ReduceLogSumExp"])
def test_reductions_along_the_units_refuse(op):
    net, h = hidden()
    net.add("Add", read(net, h).add("Identity", "y", out="z"), net.add(op, h, net.ints("axes", -1)), out="w")
    net.outputs = ["w"]
    assert reason(net) == f"{op} '{op}_3' goes along the units"


def test_a_cumulative_sum_along_the_units_refuses():
    net, h = hidden()
    assert reason(read(net, net.add("CumSum", h, net.int0("axis", 1)))) == "CumSum 'CumSum_1' goes along the units"


def test_operators_that_are_not_known_refuse():
    net, h = hidden()
    net.add("TopK", h, net.ints("k", 8), out=["t", "places"])
    assert reason(read(net, "t")) == "TopK 'TopK_1' is an operator that cropping doesn't know"


def test_operators_of_other_domains_refuse():
    net, h = hidden()
    read(net, net.add("Relu", h, domain="com.example"))
    proto = net.proto()
    _, groups, refused = groups_of(proto)
    assert not groups
    assert refused["a"].reason == "Relu 'Relu_1' is an operator that cropping doesn't know"


def test_a_product_of_two_activations_along_the_units_refuses():
    net = Net({"x": [4, 5]})
    q, k = net.add("MatMul", "x", net.w("a", 5, 8)), net.add("MatMul", "x", net.w("k", 5, 8))
    net.add("MatMul", q, net.add("Transpose", k, perm=[1, 0]), out="y")
    assert reason(net) == "MatMul 'MatMul_3' multiplies two activations along the units"


def test_units_that_are_picked_by_number_refuse():
    net, h = hidden()
    h = net.add("Gather", h, net.ints("picked", 7, 6, 5, 4, 3, 2, 1, 0), axis=1)
    assert reason(read(net, h)) == "Gather 'Gather_1' picks from the units by number"


def test_slices_with_steps_or_computed_bounds_refuse():
    net, h = hidden()
    h = net.add("Slice", h, net.ints("s", 0), net.ints("e", 8), net.ints("axes", 1), net.ints("steps", 2))
    net.add("MatMul", h, net.w("b", 4, 3), out="y")
    assert reason(net) == "Slice 'Slice_1' takes steps along the units"
    net, h = hidden()
    net.inputs["s"], net.input_types["s"] = [1], TensorProto.INT64
    h = net.add("Slice", h, "s", net.ints("e", 8), net.ints("axes", 1))
    assert reason(read(net, h)) == "Slice 'Slice_1' has bounds that vary or are attributes"


def test_another_slice_whose_bounds_depend_on_the_number_of_units_refuses():
    net, h = hidden()
    net.inputs["z"] = ["n", 16]
    width = net.add("Gather", net.add("Shape", h), net.ints("one", 1))
    part = net.add("Slice", "z", net.ints("start", 0), width, "one")
    net.outputs = ["y", "w"]
    net.add("Identity", part, out="w")
    assert reason(read(net, h)) == "Slice 'Slice_3' depends on the number of units"


def test_a_split_with_computed_sizes_refuses():
    net, h = hidden()
    net.inputs["sizes"], net.input_types["sizes"] = [2], TensorProto.INT64
    net.add("Split", h, "sizes", out=["l", "r"], axis=1)
    assert reason(read(net, net.add("Concat", "l", "r", axis=1))) == "Split 'Split_1' has sizes that are computed"


def test_padding_along_the_units_refuses():
    net, h = hidden()
    h = net.add("Pad", h, net.ints("pads", 0, 0, 0, 2))
    net.add("MatMul", h, net.w("b", 10, 3), out="y")
    assert reason(net) == "Pad 'Pad_1' pads along the units"
    net, h = hidden()
    net.inputs["pads"], net.input_types["pads"] = [4], TensorProto.INT64
    assert reason(read(net, net.add("Pad", h, "pads"))) == "Pad 'Pad_1' may pad along the units"


def test_tiles_and_resizes_along_the_units_refuse():
    net, h = hidden()
    net.add("MatMul", net.add("Tile", h, net.ints("times", 1, 2)), net.w("b", 16, 3), out="y")
    assert reason(net) == "Tile 'Tile_1' may repeat the units"
    net = Net({"x": [1, 3, 4, 4]})
    h = net.add("Resize", net.add("Conv", "x", net.w("a", 8, 3, 1, 1)), "", "", net.ints("sizes", 1, 8, 8, 8))
    net.add("Conv", h, net.w("b", 4, 8, 1, 1), out="y")
    assert reason(net) == "Resize 'Resize_1' may resize along the units"


def test_a_broadcast_against_an_unknown_length_refuses():
    net, h = hidden()
    net.inputs["z"] = ["n", "m"]
    h = net.add("Add", h, net.add("Relu", "z"))
    assert reason(read(net, h)) == "Add 'Add_2' takes 8 indices and 'relu_1', which has m"


def test_shapes_that_are_not_understood_refuse():
    net, h = hidden()
    net.inputs["shape"], net.input_types["shape"] = [2], TensorProto.INT64
    assert reason(read(net, net.add("Reshape", h, "shape"))) == "Reshape 'Reshape_1' has a shape that isn't understood"
    net, h = hidden()
    nothing = net.add("Mul", net.add("Gather", net.add("Shape", "x"), net.ints("first", 0)), net.ints("zero", 0))
    shape = net.add("Concat", net.ints("rows", -1), net.add("Add", nothing, net.ints("eight", 8)), axis=0)
    h = net.add("Reshape", h, shape)
    assert reason(read(net, h)) == "Reshape 'Reshape_6' computes the length of the axis"


def test_merging_units_with_an_unknown_length_refuses():
    net = Net({"x": ["n", "m", 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    h = net.add("Reshape", h, net.ints("flat", 0, -1))
    net.add("MatMul", h, net.w("b", 24, 3), out="y")
    assert reason(net) == "'reshape_1' has the units merged with an axis of unknown length"
    net = Net({"x": ["n", 5, "m"]})
    h = net.add(
        "Transpose", net.add("MatMul", net.add("Transpose", "x", perm=[0, 2, 1]), net.w("a", 5, 8)), perm=[0, 2, 1]
    )
    net.add("MatMul", net.add("Reshape", h, net.ints("flat", 0, -1)), net.w("b", 24, 3), out="y")
    assert reason(net) == "Reshape 'Reshape_3' merges the units with an axis of unknown length"


@pytest.mark.parametrize("user", ["output", "ConstantOfShape", "Mul", "Loop"])
def test_a_number_of_units_that_is_used_elsewhere_refuses(user):
    net, h = hidden()
    width = net.add("Gather", net.add("Shape", h), net.ints("one", 1))
    if user == "output":
        net.outputs = ["y", "width"]
        net.add("Identity", width, out="width")
    else:
        net.outputs = ["y", "z"]
        if user == "ConstantOfShape":
            net.add("ConstantOfShape", width, out="z")
        else:
            net.add("Sqrt", net.add("Cast", width, to=1), out="z")
    assert "Shape" in reason(read(net, h))


def test_a_scale_by_the_number_of_units_refuses():
    net, h = hidden()
    root = net.add("Sqrt", net.add("Cast", net.add("Gather", net.add("Shape", h), net.ints("one", 1)), to=1))
    assert reason(read(net, net.add("Div", h, root))) == (
        "Shape 'Shape_1' gives the length of the axis to something that isn't understood"
    )


def test_the_length_of_another_axis_may_be_used():
    net = Net({"x": [4, 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    root = net.add("Sqrt", net.add("Cast", net.add("Gather", net.add("Shape", h), net.ints("zero", 0)), to=1))
    net.add("MatMul", net.add("Div", h, root), net.w("b", 8, 3), out="y")
    assert len(crops(net.proto())) == 1


def test_quantized_weights_of_few_bits_are_kept():
    net = Net({"x": ["n", 5]})
    net.weights["scale"] = np.float32(0.1)
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    net.add("MatMul", h, net.add("DequantizeLinear", "q", "scale"), out="y")
    proto = net.proto()
    proto.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [8, 3], [1] * 24))
    _, groups, refused = groups_of(proto)
    assert not groups
    assert refused["a"].reason == "'q' holds 4 bits a number"


def test_channels_whose_order_is_mixed_up_are_refused():
    net = Net({"x": [1, 3, 4, 4]})
    h = net.add("Conv", "x", net.w("a", 6, 3, 1, 1))
    h = net.add("Reshape", h, net.ints("five", 0, 2, 3, 4, 4))
    h = net.add("Reshape", net.add("Transpose", h, perm=[0, 2, 1, 3, 4]), net.ints("four", 0, 6, 4, 4))
    h = net.add("Add", h, net.add("Conv", "x", net.w("c", 6, 3, 1, 1)))
    net.add("Conv", h, net.w("b", 4, 6, 1, 1), out="y")
    # Two blocks of three channels here are channels 0, 2, 4 and 1, 3, 5 there.
    groups = crops(net.proto())
    assert {group.units for group in groups.values()} == {2}
    net = Net({"x": ["n", 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    h = net.add("Add", h, net.add("Concat", *(net.add("Slice", h, *_bounds(net, i)) for i in (1, 0)), axis=1))
    net.add("MatMul", h, net.w("b", 8, 3), out="y")
    assert [group.units for group in crops(net.proto()).values()] == [4]


def _bounds(net, half):
    return net.ints(f"s{half}", half * 4), net.ints(f"e{half}", half * 4 + 4), net.ints(f"axes{half}", 1)


def test_units_in_another_order_elsewhere_are_refused():
    net = Net({"x": [1, 3, 4, 4]})
    h = net.add("Conv", "x", net.w("a", 6, 3, 1, 1))
    h = net.add("Reshape", net.add("Transpose", h, perm=[1, 0, 2, 3]), net.ints("split", 2, 3, 16))
    h = net.add("Reshape", net.add("Transpose", h, perm=[1, 0, 2]), net.ints("six", 6, 16))
    net.add("MatMul", net.add("Transpose", h, perm=[1, 0]), net.w("b", 6, 3), out="y")
    # Of pairs each would go, but their halves lie apart.
    assert {group.units for group in crops(net.proto()).values()} == {2}


def test_two_parts_of_a_weight_that_change_places_are_refused():
    net, h = hidden()
    h = net.add("Concat", *(net.add("Slice", h, *_bounds(net, i)) for i in (1, 0)), axis=1)
    assert reason(read(net, h)) == "'slice_1' holds only some of the units, and could become empty"


def test_units_that_all_hang_together_are_refused():
    net = Net({"x": [2, 2]})
    h = net.add("MatMul", "x", net.w("a", 2, 2))
    parts = [net.add("Slice", h, net.ints(f"s{i}", i), net.ints(f"e{i}", i + 1), net.ints(f"x{i}", 1)) for i in (0, 1)]
    h = net.add("Add", h, net.add("Concat", *parts[::-1], axis=1))
    net.add("MatMul", h, net.w("b", 2, 3), out="y")
    assert "has units that all hang together" in reason(net)


def test_a_convolution_whose_groups_would_lose_the_same_channels_is_left():
    net = Net({"x": [1, 4, 4, 4]})
    h = net.add("Conv", "x", net.w("a", 8, 2, 1, 1), group=2)
    net.add("Conv", h, net.w("b", 4, 8, 1, 1), out="y")
    assert reason(net, "a") == "'x' is an input of the graph"


def test_a_norm_of_images_along_the_units_refuses():
    net = Net({"x": [1, 3, 4, 5]})
    h = net.add("MatMul", "x", net.w("a", 5, 8))
    h = net.add("InstanceNormalization", h, net.w("scale", 3), net.w("shift", 3))
    net.add("MatMul", h, net.w("b", 8, 2), out="y")
    assert reason(net) == "InstanceNormalization 'InstanceNormalization_1' normalizes along the units"


def test_pooling_along_the_units_refuses():
    net = Net({"x": [1, 3, 4, 5]})
    h = net.add("MaxPool", net.add("MatMul", "x", net.w("a", 5, 8)), kernel_shape=[1, 2], strides=[1, 2])
    net.add("MatMul", h, net.w("b", 4, 2), out="y")
    assert reason(net) == "MaxPool 'MaxPool_1' goes along the units"


def test_a_refused_model_stays_as_it_was():
    net, h = hidden(outputs=["y", "h"])
    proto = read(net, h).proto()
    model, groups, _ = groups_of(proto)
    assert not groups
    import onnx_ir as ir

    x = {"x": np.ones((2, 5), np.float32)}
    for a, b in zip(run(ir.serde.serialize_model(model), x), run(proto, x), strict=True):
        np.testing.assert_array_equal(a, b)
