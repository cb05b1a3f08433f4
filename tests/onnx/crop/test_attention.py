"""Heads, feed-forward units and the hidden width of transformers as exporters write them."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
from onnx import TensorProto

from graph_bert import HEADS, HIDDEN, INNER, POOLED, WIDTH, Encoder, bert
from graph_nets import crop_graph, crops, feeds_of, groups_of, halves, run


@pytest.mark.parametrize("how", ["constant", "lengths", "vectors"])
@pytest.mark.parametrize("norm", ["node", "decomposed"])
@pytest.mark.parametrize("opset", [17, 21])
def test_heads_and_inner_units_of_an_encoder_are_cropped_and_the_hidden_width_is_its_own_kind(how, norm, opset):
    groups = crops(bert(how, norm, opset=opset), {"batch": 2, "words": 5})
    kinds = {name: (group.kind, group.units) for name, group in groups.items()}
    assert kinds == {
        "words.hidden": ("hidden", HIDDEN),
        "0.q.weight.heads": ("heads", HEADS),
        "0.up.weight.ffn": ("ffn", INNER),
        "1.q.weight.heads": ("heads", HEADS),
        "1.up.weight.ffn": ("ffn", INNER),
        "pool.weight.ffn": ("ffn", POOLED),
    }
    heads = groups["0.q.weight.heads"]
    assert {(m.name, m.axis, m.size) for m in heads.members} == {
        *((f"0.{n}.weight", 1, WIDTH) for n in "qkv"),
        *((f"0.{n}.bias", 0, WIDTH) for n in "qkv"),
        ("0.out.weight", 0, WIDTH),
    }


def test_the_hidden_width_is_refused_where_it_is_the_output():
    _, groups, refused = groups_of(bert("constant", head=False))
    assert {group.kind for group in groups.values()} == {"heads", "ffn"}
    assert "is an output of the graph" in refused["words"].reason


@pytest.mark.parametrize("how", ["constant", "lengths"])
@pytest.mark.parametrize("norm", ["node", "decomposed"])
def test_a_cropped_hidden_width_is_that_of_a_model_built_so(how, norm, monkeypatch):
    proto = bert(how, norm)
    model, groups, _ = groups_of(proto)
    kept = halves([groups["words.hidden"]])
    crop_graph(model, list(groups.values()), kept)
    small = ir.serde.serialize_model(model)
    onnx.checker.check_model(small, full_check=True)
    # The same network built with the narrow width, and with the weights of the cropped one.
    monkeypatch.setattr("graph_bert.HIDDEN", HIDDEN // 2)
    built = bert(how, norm)
    weights = {weight.name: weight for weight in small.graph.initializer}
    for weight in built.graph.initializer:
        if weight.name in weights and weight.data_type == TensorProto.FLOAT:
            assert list(weight.dims) == list(weights[weight.name].dims)
            weight.CopyFrom(weights[weight.name])
    built.graph.ClearField("value_info")
    feeds = feeds_of(built, {"batch": 2, "words": 5})
    np.testing.assert_allclose(run(small, feeds)[0], run(built, feeds)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unpack", ["Split", "Slice", "Gather"])
def test_fused_queries_keys_and_values_are_cropped_by_heads(unpack):
    net = Encoder({"x": [2, 5, HIDDEN]})
    h = net.linear("x", "qkv", HIDDEN, 3 * HEADS * WIDTH)
    n = HEADS * WIDTH
    if unpack == "Gather":  # as in vision transformers
        h = net.add("Reshape", h, net.ints("five", 2, 5, 3, HEADS, WIDTH))
        h = net.add("Transpose", h, perm=[2, 0, 3, 1, 4])
        q, k, v = (net.add("Gather", h, net.int0(f"i{i}", i), axis=0) for i in range(3))
    else:
        if unpack == "Split":
            parts = ["q", "k", "v"]
            net.add("Split", h, net.ints("sizes", n, n, n), out=parts, axis=2)
        else:
            parts = [
                net.add("Slice", h, net.ints(f"s{i}", i * n), net.ints(f"e{i}", i * n + n), net.ints("last", 2))
                for i in range(3)
            ]
        shape = net.ints("four", 0, 0, HEADS, WIDTH)
        q, k, v = (net.add("Transpose", net.add("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in parts)
    scores = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    h = net.add("Transpose", net.add("MatMul", scores, v), perm=[0, 2, 1, 3])
    h = net.add("Reshape", h, net.ints("three", 2, 5, n))
    net.add("MatMul", h, net.w("out", n, HIDDEN), out="y")
    [group] = crops(net.proto()).values()
    assert (group.name, group.kind, group.units) == ("qkv.weight.heads", "heads", HEADS)
    places = {(m.name, m.axis, m.offset, m.size) for m in group.members}
    assert {("qkv.weight", 1, i * n, WIDTH) for i in range(3)} < places


@pytest.mark.parametrize("how", ["constant", "lengths"])
def test_query_heads_that_share_keys_and_values_live_together(how):
    net = Encoder({"x": ["batch", "words", HIDDEN]})
    shared = 2
    q = net.linear("x", "q", HIDDEN, HEADS * WIDTH)
    q = net.add("Transpose", net.add("Reshape", q, net.shape(q, how, HEADS, WIDTH)), perm=[0, 2, 1, 3])
    both = []
    for name in "kv":
        h = net.linear("x", name, HIDDEN, shared * WIDTH)
        h = net.add("Transpose", net.add("Reshape", h, net.shape(h, how, shared, WIDTH)), perm=[0, 2, 1, 3])
        h = net.add("Unsqueeze", h, net.ints("two", 2))
        h = net.add("Expand", h, net.ints("times", 1, shared, HEADS // shared, 1, WIDTH))
        both.append(net.add("Reshape", h, net.ints("back", 0, HEADS, -1, WIDTH)))
    k, v = both
    scores = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    h = net.add("Transpose", net.add("MatMul", scores, v), perm=[0, 2, 1, 3])
    h = net.add("Reshape", h, net.shape(h, how, HEADS * WIDTH))
    net.add("MatMul", h, net.w("out", HEADS * WIDTH, HIDDEN), out="y")
    [group] = crops(net.proto(), {"batch": 2, "words": 5}).values()
    assert group.units == shared
    assert {(m.name, m.size) for m in group.members if m.scored} == {
        ("q.weight", 6),
        ("k.weight", 3),
        ("v.weight", 3),
        ("out", 6),
    }


@pytest.mark.parametrize("how", ["constant", "lengths"])
def test_all_groups_can_be_cropped_at_once(how):
    proto = bert(how)
    model, groups, _ = groups_of(proto)
    crop_graph(model, list(groups.values()), halves(list(groups.values())))
    small = ir.serde.serialize_model(model)
    onnx.checker.check_model(small, full_check=True)
    shapes = {weight.name: list(weight.dims) for weight in small.graph.initializer}
    assert shapes["0.q.weight"] == [HIDDEN // 2, HEADS // 2 * WIDTH]
    assert shapes["0.up.weight"] == [HIDDEN // 2, INNER // 2]
    assert run(small, feeds_of(small, {"batch": 2, "words": 5}))[0].shape == (2, 2)


def merged(mask=None, shape="batch"):
    """Heads of an unknown batch lie in one axis, as torch's bmm wants them, with products of lengths."""
    net = Encoder({"x": ["batch", 5, HIDDEN]} | ({} if mask is None else {"mask": mask}))
    n = net.add("Gather", net.add("Shape", "x"), net.ints("first", 0))
    many = net.add("Mul", n, net.ints("heads", HEADS))
    parts = {}
    for name in "qkv":
        h = net.add("Transpose", net.linear("x", name, HIDDEN, HEADS * WIDTH), perm=[1, 0, 2])
        to = net.add("Concat", net.ints(f"{name}5", 5), many, net.ints(f"{name}w", WIDTH), axis=0)
        parts[name] = net.add("Transpose", net.add("Reshape", h, to), perm=[1, 0, 2])
    scores = net.add("MatMul", parts["q"], net.add("Transpose", parts["k"], perm=[0, 2, 1]))
    if mask is not None:
        scores = net.add("Add", scores, "mask")
    h = net.add("MatMul", net.add("Softmax", scores, axis=-1), parts["v"])
    if shape == "own":
        h = net.add("Reshape", h, net.add("Shape", h))
    h = net.add("Transpose", h, perm=[1, 0, 2])
    rows = net.add("Mul", n, net.ints("five", 5))
    h = net.add("Reshape", h, net.add("Concat", rows, net.ints("all", HEADS * WIDTH), axis=0))
    net.add("MatMul", h, net.w("out.weight", HEADS * WIDTH, 3), out="y")
    return net.proto()


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("mask", [None, [5, 5], [1, 5, 5]])
def test_heads_that_are_merged_with_an_unknown_batch_are_cropped(mask, batch):
    [heads] = crops(merged(mask), {"batch": batch}).values()
    assert (heads.kind, heads.units) == ("heads", HEADS)


@pytest.mark.parametrize("mask", [["rows", 5, 5], [12, 5, 5]])
def test_what_may_be_as_long_as_heads_and_batch_together_refuses(mask):
    """A mask of its own for each head, or of one length: nobody can say which of its rows go."""
    _, groups, refused = groups_of(merged(mask))
    assert not groups
    assert "Add 'Add_" in refused["q.weight"].reason


def test_the_length_of_heads_and_batch_together_is_not_asked_for():
    _, groups, refused = groups_of(merged(shape="own"))
    assert not groups
    assert refused["q.weight"].reason.endswith("has the units merged with an axis of unknown length")
