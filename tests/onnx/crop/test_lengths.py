"""What lengths are the same, though the library of onnx calls them by different names."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from graph_bert import HEADS, HIDDEN, WIDTH, Encoder
from graph_nets import crops, groups_of
from modelopt_rs.onnx.crop.lengths import stretched, stretched_shape

SIZES = {"batch": 2, "words": 5, "seen": 5}


def length(net: Encoder, value: str, axis: int) -> str:
    return net.add("Gather", net.add("Shape", value), net.int0(f"axis{axis}", axis), axis=0)


def counted(net: Encoder, value: str, axis: int, first: int = 0) -> str:
    return net.add("Range", net.int0(f"from{first}", first), length(net, value, axis), net.int0("one", 1))


def mask_of(net: Encoder, seen: str, axis: int = 1, first: int = 0) -> str:
    """A mask as torch's exporter makes it: counted words and what may be seen, stretched to the scores' shape."""
    rows = net.add("Unsqueeze", counted(net, "x", axis, first), net.ints("to_rows", 0, 1, 3))
    may = net.add("GreaterOrEqual", rows, net.int0("none", 0))
    columns = net.add("Unsqueeze", net.add("Greater", seen, net.int0("none", 0)), net.ints("to_columns", 1, 2))
    may = net.add("And", may, columns)
    parts = [net.add("Unsqueeze", length(net, *place), net.ints("first", 0)) for place in (("x", 0), ("x", 1))]
    parts.append(net.add("Unsqueeze", length(net, seen, 1), net.ints("first", 0)))
    shape = net.add("Concat", parts[0], net.ints("once", 1), *parts[1:], axis=0)
    net.weights["allowed"], net.weights["hidden"] = np.zeros(1, np.float32), np.full(1, -1e4, np.float32)
    return net.add("Where", net.add("Expand", may, shape), "allowed", "hidden")


def attention(**how: int) -> Encoder:
    """What torch exports of scaled_dot_product_attention: heads whose number the last Reshape but one finds out."""
    net = Encoder({"x": ["batch", "words", HIDDEN], "seen": ["batch", "seen"]})
    net.input_types["seen"] = 7  # int64
    q, k, v = (
        net.add("Transpose", net.add("Reshape", h, net.shape(h, "lengths", HEADS, WIDTH)), perm=[0, 2, 1, 3])
        for h in (net.linear("x", name, HIDDEN, HEADS * WIDTH) for name in "qkv")
    )
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = net.add("Softmax", net.add("Add", scores, mask_of(net, "seen", **how)), axis=-1)
    h = net.add("MatMul", scores, v)
    parts = [net.add("Unsqueeze", length(net, *place), net.ints("first", 0)) for place in ((h, 0), (q, 2), (v, 3))]
    h = net.add("Reshape", h, net.add("Concat", parts[0], net.ints("rest", -1), *parts[1:], axis=0))
    h = net.add("Transpose", h, perm=[0, 2, 1, 3])
    h = net.add("Reshape", h, net.shape("x", "lengths", HEADS * WIDTH))
    net.add("MatMul", h, net.w("out", HEADS * WIDTH, HIDDEN), out="y")
    return net


def test_heads_behind_a_mask_of_counted_words_are_cropped():
    [group] = crops(attention().proto(), SIZES).values()
    assert (group.name, group.kind, group.units) == ("q.weight.heads", "heads", HEADS)


@pytest.mark.parametrize("how", [{"first": 1}, {"axis": 0}])
def test_words_counted_from_another_number_or_of_another_length_prove_nothing(how):
    _, groups, refusals = groups_of(attention(**how).proto())
    assert not groups
    assert "an axis of unknown length" in refusals["q.weight"].reason


def test_inputs_and_outputs_keep_the_names_of_their_lengths():
    proto = attention().proto()
    model, groups, _ = groups_of(proto)
    assert groups
    names = [str(dim) for value in (*model.graph.inputs, *model.graph.outputs) for dim in value.shape or ()]
    assert names[:5] == ["batch", "words", str(HIDDEN), "batch", "seen"]


@pytest.mark.parametrize(
    ("a", "b", "both"), [(1, "n", "n"), ("n", 1, "n"), ("n", "n", "n"), ("n", "m", None), ("n", 3, 3), (2, None, 2)]
)
def test_of_two_lengths_that_meet_one_is_1_or_both_are_the_same(a, b, both):
    assert stretched(a, b) == stretched(b, a) == both


def test_a_length_that_is_known_of_one_value_is_that_of_all() -> None:
    assert stretched_shape([[None, "n", "m"], [5, "n", 1]]) == [5, "n", "m"]
    assert stretched_shape([["a", "n"], ["b"], ["b"]]) == ["a", None]
    assert stretched_shape([["a"], ["b"], [7]]) == [7]
