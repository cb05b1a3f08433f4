"""What strangers' graphs have: recurrent layers, Einsum, and shapes that are as long as something else by chance."""

import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from graph_nets import Net, crops, groups_of


def places(group):
    return {(member.name, member.axis, member.offset, member.size) for member in group.members}


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_lose_inputs_and_hidden_units(op, gates, directions):
    net, hidden = Net({"x": [5, 2, 7]}), 6
    h = net.add("Relu", net.add("MatMul", "x", net.w("a", 7, 8)))
    weights = net.w("w", directions, gates * hidden, 8), net.w("r", directions, gates * hidden, hidden)
    bias = net.w("b", directions, 2 * gates * hidden)
    own = {"direction": "bidirectional"} if directions == 2 else {}
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    h = net.add(op, h, *weights, bias, hidden_size=hidden, out=["h", "last"], **own, **more)
    h = net.add("Transpose", h, perm=[0, 2, 1, 3])
    h = net.add("Reshape", h, net.ints("shape", 0, 0, -1))
    net.add("MatMul", h, net.w("c", directions * hidden, 3), out="y")
    found = crops(net.proto())
    assert {name: group.units for name, group in found.items()} == {"a.ffn": 8, "r.ffn": hidden}
    assert places(found["a.ffn"]) == {("a", 1, 0, 1), ("w", 2, 0, 1)}
    wanted = {(name, 1, i * hidden, 1) for name in "wr" for i in range(gates)} | {("r", 2, 0, 1)}
    wanted |= {("b", 1, i * hidden, 1) for i in range(2 * gates)} | {("c", 0, i * hidden, 1) for i in range(directions)}
    assert places(found["r.ffn"]) == wanted


def test_batches_of_a_recurrent_layer_stay():
    net = Net({"x": [5, 2, 7]})
    h = net.add("Transpose", net.add("MatMul", "x", net.w("a", 7, 8)), perm=[2, 1, 0])
    h = net.add("LSTM", h, net.w("w", 1, 24, 5), net.w("r", 1, 24, 6), hidden_size=6, out=["h"])
    net.add("ReduceSum", h, net.ints("all", 0), out="y", keepdims=0)
    assert "LSTM" in groups_of(net.proto())[2]["a"].reason
    assert "goes along the units" in groups_of(net.proto())[2]["a"].reason


@pytest.mark.parametrize("equations", [("bhqd,bhkd->bhqk", "bhqk,bhkd->bhqd"), ("bhid,bhjd->bhij", "bhij,bhjd->bhid")])
def test_einsum_of_attention_loses_heads(equations):
    net, heads, width = Net({"x": [2, 5, 12]}), 4, 3
    made = []
    for name in "qkv":
        h = net.add("Reshape", net.add("MatMul", "x", net.w(name, 12, 12)), net.ints("four", 0, 0, heads, width))
        made.append(net.add("Transpose", h, perm=[0, 2, 1, 3]))
    scores = net.add("Softmax", net.add("Einsum", *made[:2], equation=equations[0]), axis=-1)
    h = net.add("Transpose", net.add("Einsum", scores, made[2], equation=equations[1]), perm=[0, 2, 1, 3])
    net.add("MatMul", net.add("Reshape", h, net.ints("three", 0, 0, 12)), net.w("out", 12, 3), out="y")
    [group] = crops(net.proto()).values()
    assert (group.kind, group.units) == ("heads", heads)


def test_einsum_with_a_weight_makes_and_reads_units():
    net = Net({"x": [2, 5, 7]})
    h = net.add("Relu", net.add("Einsum", "x", net.w("a", 7, 8), equation="bsi,io->bso"))
    net.add("Einsum", h, net.w("b", 3, 8), equation="b s i, o i -> b s o", out="y")
    [group] = crops(net.proto()).values()
    assert places(group) == {("a", 1, 0, 1), ("b", 1, 0, 1)}


@pytest.mark.parametrize("equation", ["...i,io->...o", "bii,io->bo", "bsi,io"])
def test_einsum_with_dots_diagonals_or_no_output_is_refused(equation):
    net = Net({"x": [2, 7, 7]})
    h = net.add("MatMul", "x", net.w("a", 7, 7))
    h = net.add("Einsum", h, net.w("b", 7, 3), equation=equation)
    net.add("Identity", h, out="y")
    assert "has an equation that cropping doesn't know" in groups_of(net.proto())[2]["a"].reason


@pytest.mark.parametrize("known", [True, False])
def test_a_length_taken_from_elsewhere_that_never_changes_is_said_as_a_number(known):
    """As `x.reshape(n, t, c)` is written, where c is the width of what went in."""
    net = Net({"x": ["batch", 5, 12 if known else "width"]})
    h = net.add("Reshape", net.add("MatMul", "x", net.w("a", 12, 12)), net.ints("four", 0, 0, 4, 3))
    h = net.add("Relu", net.add("Transpose", h, perm=[0, 2, 1, 3]))
    h = net.add("Transpose", h, perm=[0, 2, 1, 3])
    lengths = []
    for axis in range(3):
        one = net.add("Gather", net.add("Shape", "x"), net.int0(f"i{axis}", axis), axis=0)
        lengths.append(net.add("Unsqueeze", one, net.ints(f"zero{axis}", 0)))
    h = net.add("Reshape", h, net.add("Concat", *lengths, axis=0))
    net.add("MatMul", h, net.w("b", 12, 3), out="y")
    found = crops(net.proto(), {"batch": 2, "width": 12})
    assert [group.units for group in found.values()] == [4]


def test_a_shape_behind_a_where_is_changed_in_its_parts():
    """As exporters write an Expand by lengths: -1 would stay what it is."""
    net = Net({"x": ["batch", 5, 12]})
    h = net.add("Reshape", net.add("MatMul", "x", net.w("a", 12, 6)), net.ints("five", 0, 0, 2, 1, 3))
    batch = net.add("Unsqueeze", net.add("Gather", net.add("Shape", "x"), net.int0("i", 0)), net.ints("zero", 0))
    shape = net.add("Concat", batch, net.ints("rest", 5, 2, 2, 3), axis=0)
    ones = net.ints("ones", 1, 1, 1, 1, 1)
    shape = net.add("Where", net.add("Equal", shape, net.ints("minus", -1, -1, -1, -1, -1)), ones, shape)
    h = net.add("Reshape", net.add("Expand", h, shape), net.ints("back", 0, 0, -1))
    net.add("MatMul", h, net.w("b", 12, 3), out="y")
    [group] = crops(net.proto(), {"batch": 2}).values()
    assert group.units == 2


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_become_places_are_one_unit(mode):
    net = Net({"x": [2, 3, 4, 4]})
    h = net.add("Relu", net.add("Conv", "x", net.w("a", 24, 3, 1, 1)))
    h = net.add("DepthToSpace", h, blocksize=2, mode=mode)
    h = net.add("SpaceToDepth", net.add("Relu", h), blocksize=2)
    net.add("Conv", h, net.w("b", 5, 24, 1, 1), out="y")
    [group] = crops(net.proto()).values()
    assert group.units == 6
    wanted = {("a", 0, 0, 4)} if mode == "CRD" else {("a", 0, 6 * i, 1) for i in range(4)}
    assert places(group) == wanted | {("b", 1, 6 * i, 1) for i in range(4)}
