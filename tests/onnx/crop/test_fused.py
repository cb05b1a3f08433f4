"""Operators that onnxruntime's optimizers put in the place of several: cropped as what they stand for."""

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto

from graph_bert import bert
from graph_nets import Net, crop_graph, crops, feeds_of, groups_of, halves, run

MICROSOFT = "com.microsoft"
HIDDEN, HEADS, WIDTH, INNER = 12, 4, 16, 10  # GroupQueryAttention wants multiples of 16


def members(group):
    return {(member.name, member.axis, member.offset, member.size) for member in group.members}


def linear(net, x, name, inputs, outputs):
    return net.add("MatMul", x, net.w(name, inputs, outputs))


def out(net, h, inputs, name="out"):
    """The projection of all heads, and what ends the graph."""
    net.add("MatMul", h, net.w(name, inputs, HIDDEN), out="y")
    return net.proto()


@pytest.mark.parametrize("sizes", [(WIDTH,) * 3, (WIDTH, WIDTH, 6)])
def test_attention_with_its_weights_loses_heads_of_queries_keys_and_values(sizes):
    net = Net({"x": ["batch", "words", HIDDEN]})
    starts = np.cumsum([0, *sizes]) * HEADS
    w, b = net.w("qkv", HIDDEN, starts[-1]), net.w("bias", starts[-1])
    own = {} if sizes[2] == WIDTH else {"qkv_hidden_sizes": [HEADS * each for each in sizes]}
    h = net.add("Attention", "x", w, b, num_heads=HEADS, domain=MICROSOFT, **own)
    [group] = crops(out(net, h, HEADS * sizes[2]), {"batch": 2, "words": 5}).values()
    assert (group.name, group.kind, group.units) == ("qkv.heads", "heads", HEADS)
    wanted = {(name, axis, start, size) for name, axis in (("qkv", 1), ("bias", 0))
              for start, size in zip(starts, sizes, strict=False)}  # fmt: skip
    assert members(group) == {*wanted, ("out", 0, 0, sizes[2])}


def test_what_is_added_to_scores_goes_with_its_head():
    net = Net({"x": [2, 5, HIDDEN]})
    w, b = net.w("qkv", HIDDEN, 3 * HEADS * WIDTH), net.w("bias", 3 * HEADS * WIDTH)
    net.w("scores", 1, HEADS, 5, 5)
    h = net.add("Attention", "x", w, b, "", "", "scores", num_heads=HEADS, domain=MICROSOFT)
    [group] = crops(out(net, h, HEADS * WIDTH)).values()
    assert ("scores", 1, 0, 1) in members(group)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scores", [1, HEADS])
def test_multi_head_attention_loses_heads_of_its_projections(bias, scores):
    net = Net({"x": [2, 5, HIDDEN]})
    q, k, v = (linear(net, "x", n, HIDDEN, HEADS * WIDTH) for n in "qkv")
    net.w("scores", 1, scores, 5, 5)
    b = net.w("bias", 3 * HEADS * WIDTH) if bias else ""
    h = net.add("MultiHeadAttention", q, k, v, b, "", "scores", num_heads=HEADS, domain=MICROSOFT)
    [group] = crops(out(net, h, HEADS * WIDTH)).values()
    places = {(n, 1, 0, WIDTH) for n in "qkv"} | {("out", 0, 0, WIDTH)}
    places |= {("bias", 0, i * HEADS * WIDTH, WIDTH) for i in range(3 if bias else 0)}
    assert members(group) == places | ({("scores", 1, 0, 1)} if scores > 1 else set())


def test_keys_and_values_of_another_sequence_may_have_heads_in_front():
    net = Net({"x": [2, 5, HIDDEN], "z": [2, 7, HIDDEN]})
    q = linear(net, "x", "q", HIDDEN, HEADS * WIDTH)
    k, v = (
        net.add("Transpose", net.add("Reshape", linear(net, "z", n, HIDDEN, HEADS * WIDTH),
                net.ints("four", 0, 0, HEADS, WIDTH)), perm=[0, 2, 1, 3])
        for n in "kv"
    )  # fmt: skip
    h = net.add("MultiHeadAttention", q, k, v, num_heads=HEADS, domain=MICROSOFT)
    [group] = crops(out(net, h, HEADS * WIDTH)).values()
    assert members(group) == {(n, 1, 0, WIDTH) for n in "qkv"} | {("out", 0, 0, WIDTH)}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sink", [False, True])
def test_query_heads_that_share_keys_live_together(packed, sink):
    shared, each = 2, HEADS // 2
    net = Net({"x": [2, 5, HIDDEN]})
    sizes = {"q": HEADS, "k": shared, "v": shared}
    if packed:
        qkv = (linear(net, "x", "qkv", HIDDEN, sum(sizes.values()) * WIDTH), "", "")
    else:
        qkv = tuple(linear(net, "x", n, HIDDEN, size * WIDTH) for n, size in sizes.items())
    net.weights["lengths"], net.weights["total"] = np.array([4, 4], np.int32), np.array(5, np.int32)
    angles = net.w("cos", 8, WIDTH // 2), net.w("sin", 8, WIDTH // 2)
    more = ("", "", net.w("sink", HEADS)) if sink else ()
    h = net.add(
        "GroupQueryAttention", *qkv, "", "", "lengths", "total", *angles, *more, num_heads=HEADS, kv_num_heads=shared,
        do_rotary=1, domain=MICROSOFT, out=["h", "keys", "values"],
    )  # fmt: skip
    [group] = crops(out(net, h, HEADS * WIDTH)).values()
    assert group.units == shared
    if packed:
        places = {("qkv", 1, 0, each * WIDTH)} | {("qkv", 1, i * WIDTH, WIDTH) for i in (HEADS, HEADS + shared)}
    else:
        places = {("q", 1, 0, each * WIDTH), ("k", 1, 0, WIDTH), ("v", 1, 0, WIDTH)}
    assert members(group) == places | {("out", 0, 0, each * WIDTH)} | ({("sink", 0, 0, each)} if sink else set())


def test_heads_of_words_before_that_the_graph_is_given_stay_and_are_said():
    net = Net({"x": [2, 1, HIDDEN], "past_k": [2, HEADS, 4, WIDTH], "past_v": [2, HEADS, 4, WIDTH]})
    q, k, v = (linear(net, "x", n, HIDDEN, HEADS * WIDTH) for n in "qkv")
    h = net.add("MultiHeadAttention", q, k, v, "", "", "", "past_k", "past_v", num_heads=HEADS, domain=MICROSOFT)
    h = linear(net, net.add("Relu", linear(net, h, "out", HEADS * WIDTH, INNER)), "down", INNER, 3)
    net.add("Identity", h, out="y")
    [group] = crops(net.proto()).values()
    assert members(group) == {("out", 1, 0, 1), ("down", 0, 0, 1)}
    refused = groups_of(net.proto())[2]
    assert refused["q"].reason == "'past_k' is an input of the graph"


def test_masked_decoder_attention_loses_heads():
    net = Net({"x": [2, 1, HIDDEN]})
    q, k, v = (linear(net, "x", n, HIDDEN, HEADS * WIDTH) for n in "qkv")
    b = net.w("bias", 3 * HEADS * WIDTH)
    empty = [""] * 7
    h = net.add("DecoderMaskedMultiHeadAttention", q, k, v, *empty, b, num_heads=HEADS, domain=MICROSOFT)
    [group] = crops(out(net, h, HEADS * WIDTH)).values()
    assert ("bias", 0, HEADS * WIDTH, WIDTH) in members(group)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("shared", [2, HEADS])
@pytest.mark.parametrize("mask", ["", "one", "each"])
def test_attention_of_the_standard_loses_heads(rank, shared, mask):
    net, each = Net({"x": [2, 5, HIDDEN]}, opset=23), HEADS // shared
    made = []
    for name, count in (("q", HEADS), ("k", shared), ("v", shared)):
        h = linear(net, "x", name, HIDDEN, count * WIDTH)
        if rank == 4:
            h = net.add("Reshape", h, net.ints(f"{name}.shape", 0, 0, count, WIDTH))
            h = net.add("Transpose", h, perm=[0, 2, 1, 3])
        made.append(h)
    if mask:
        made.append(net.w("mask", 1, HEADS if mask == "each" else 1, 5, 5))
    own = {"q_num_heads": HEADS, "kv_num_heads": shared} if rank == 3 else {}
    h = net.add("Attention", *made, **own)
    if rank == 4:
        h = net.add("Reshape", net.add("Transpose", h, perm=[0, 2, 1, 3]), net.ints("back", 0, 0, HEADS * WIDTH))
    [group] = crops(out(net, h, HEADS * WIDTH)).values()
    places = {("q", 1, 0, each * WIDTH), ("k", 1, 0, WIDTH), ("v", 1, 0, WIDTH), ("out", 0, 0, each * WIDTH)}
    assert members(group) == places | ({("mask", 1, 0, each)} if mask == "each" else set())


@pytest.mark.parametrize("domain", [MICROSOFT, ""])
def test_turned_queries_lose_heads(domain):
    net = Net({"x": [2, 5, HIDDEN]}, opset=23)
    q, k, v = (linear(net, "x", n, HIDDEN, HEADS * WIDTH) for n in "qkv")
    cos, sin = net.w("cos", 8, WIDTH // 2), net.w("sin", 8, WIDTH // 2)
    net.weights["places"] = np.tile(np.arange(5), (2, 1))
    inputs = ("places", cos, sin) if domain else (cos, sin, "places")
    q, k = (net.add("RotaryEmbedding", each, *inputs, domain=domain, num_heads=HEADS) for each in (q, k))
    h = net.add("MultiHeadAttention", q, k, v, num_heads=HEADS, domain=MICROSOFT)
    [group] = crops(out(net, h, HEADS * WIDTH)).values()
    assert group.units == HEADS


def test_fused_products_and_convolutions_lose_units():
    net = Net({"x": [2, 3, 8, 8]})
    own = {"domain": MICROSOFT, "activation": "Relu"}
    h = net.add("FusedConv", "x", net.w("a", 6, 3, 3, 3), net.w("abias", 6), pads=[1, 1, 1, 1], **own)
    more = net.add("FusedConv", h, net.w("b", 6, 6, 3, 3), net.w("bbias", 6), h, pads=[1, 1, 1, 1], **own)
    h = net.add("Flatten", net.add("GlobalAveragePool", more))
    h = net.add("FusedGemm", h, net.w("c", 10, 6), net.w("cbias", 10), transB=1, **own)
    net.add("FusedMatMul", h, net.w("d", 3, 10), transB=1, alpha=0.5, domain=MICROSOFT, out="y")
    found = crops(net.proto())
    assert {name: group.units for name, group in found.items()} == {"a.channels": 6, "c.ffn": 10}
    assert ("b", 0, 0, 1) in members(found["a.channels"])
    assert ("d", 1, 0, 1) in members(found["c.ffn"])


def fused_bert(hidden=HIDDEN):
    """BERT as onnxruntime's optimizer leaves it."""
    net = Net({"ids": ["batch", "words"]})
    net.input_types["ids"] = TensorProto.INT32
    tables = net.w("words", 7, hidden), net.w("places", 9, hidden)
    norm = net.positive("gamma", hidden), net.w("beta", hidden)
    x = net.add("EmbedLayerNormalization", "ids", "", *tables, "", *norm, domain=MICROSOFT, out=["x", ""])
    for i in "01":
        w, b = net.w(f"{i}.qkv", hidden, 3 * HEADS * WIDTH), net.w(f"{i}.qkv_bias", 3 * HEADS * WIDTH)
        h = net.add("Attention", x, w, b, num_heads=HEADS, domain=MICROSOFT)
        h = net.add("MatMul", h, net.w(f"{i}.out", HEADS * WIDTH, hidden))
        x = skip(net, h, x, f"{i}.first", hidden)
        h = net.add("MatMul", x, net.w(f"{i}.up", hidden, INNER))
        h = net.add("BiasGelu", h, net.w(f"{i}.up_bias", INNER), domain=MICROSOFT)
        h = net.add("MatMul", h, net.w(f"{i}.down", INNER, hidden))
        x = skip(net, h, x, f"{i}.second", hidden)
    net.add("MatMul", x, net.w("head", hidden, 3), out="y")
    return net.proto()


def skip(net, h, x, name, hidden):
    parts = net.positive(f"{name}.gamma", hidden), net.w(f"{name}.beta", hidden), net.w(f"{name}.bias", hidden)
    return net.add("SkipLayerNormalization", h, x, *parts, domain=MICROSOFT)


def test_an_optimized_encoder_loses_heads_units_and_width_as_the_plain_one():
    groups = crops(fused_bert(), {"batch": 2, "words": 5})
    assert {name: (group.kind, group.units) for name, group in groups.items()} == {
        "words.hidden": ("hidden", HIDDEN),
        "0.qkv.heads": ("heads", HEADS),
        "0.up.ffn": ("ffn", INNER),
        "1.qkv.heads": ("heads", HEADS),
        "1.up.ffn": ("ffn", INNER),
    }


def test_a_cropped_width_is_that_of_an_optimized_encoder_built_so():
    model, groups, _ = groups_of(fused_bert())
    crop_graph(model, list(groups.values()), halves([groups["words.hidden"]]))
    small, built = ir.serde.serialize_model(model), fused_bert(HIDDEN // 2)
    weights = {weight.name: weight for weight in small.graph.initializer}
    for weight in built.graph.initializer:
        assert list(weight.dims) == list(weights[weight.name].dims)
        weight.CopyFrom(weights[weight.name])
    feeds = feeds_of(built, {"batch": 2, "words": 5})
    np.testing.assert_allclose(run(small, feeds)[0], run(built, feeds)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_norms_without_means_go_along_the_width(op):
    net = Net({"x": [2, 5, 7]})
    h = net.add("MatMul", "x", net.w("a", 7, HIDDEN))
    if op.startswith("Skip"):
        h = net.add(
            op, h, net.add("MatMul", "x", net.w("c", 7, HIDDEN)), net.positive("gamma", HIDDEN), domain=MICROSOFT
        )
    else:
        h = net.add(op, h, net.positive("gamma", HIDDEN), axis=-1, epsilon=1e-5)
    net.add("MatMul", h, net.w("b", HIDDEN, 3), out="y")
    proto = net.proto()
    model, groups, _ = groups_of(proto)
    [group] = groups.values()
    assert group.kind == "hidden"
    assert {("a", 1, 0, 1), ("gamma", 0, 0, 1), ("b", 0, 0, 1)} <= members(group)
    crop_graph(model, [group], halves([group]))
    assert run(ir.serde.serialize_model(model), feeds_of(proto))[0].shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("op", "inputs", "own", "reason"),
    [
        ("LongformerAttention", 3, {"num_heads": HEADS}, "is an operator that cropping doesn't know"),
        ("MultiHeadAttention", 3, {"num_heads": 5}, "has 5 heads for 64 indices of"),
        ("GroupQueryAttention", 3, {"num_heads": HEADS, "kv_num_heads": 3}, "has 4 heads of queries and 3 of keys"),
        ("Attention", 2, {"num_heads": 5}, "has queries, keys and values of (64, 64, 64) for 5 heads and 192 columns"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(op, inputs, own, reason):
    net = Net({"x": [2, 5, HIDDEN]})
    if op == "Attention":
        made = ["x", net.w("q", HIDDEN, 3 * HEADS * WIDTH)]
    else:
        made = [linear(net, "x", n, HIDDEN, HEADS * WIDTH) for n in "qkv"][:inputs]
    h = net.add(op, *made, domain=MICROSOFT, **own)
    net.add("MatMul", h, net.w("out", HEADS * WIDTH, HIDDEN), out="y")
    _, groups, refused = groups_of(net.proto())
    assert not groups
    assert reason in refused["q"].reason
    assert op in refused["q"].reason


def test_what_onnxruntime_has_optimized_loses_the_same_units(tmp_path):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    plain = bert("constant")
    onnxruntime.InferenceSession(plain.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert {"FusedMatMul", "BiasGelu", "SkipLayerNormalization", "FusedGemm"} <= {
        n.op_type for n in optimized.graph.node
    }
    groups = crops(optimized, {"batch": 2, "words": 5})
    wanted = groups_of(plain)[1]
    assert sorted((g.kind, g.units) for g in groups.values()) == sorted((g.kind, g.units) for g in wanted.values())
