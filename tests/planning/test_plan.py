"""Which tensors are quantized, and why."""

import re

import pytest

from modelopt_rs import UnsupportedError
from modelopt_rs.errors import OptionError
from modelopt_rs.files import TensorInfo
from modelopt_rs.layouts.packed_spec import PackedSpec
from modelopt_rs.planning.loaders import groups_alike
from modelopt_rs.planning.prune import PruneOptions, plan_prune
from modelopt_rs.planning.quantize import QuantizeOptions, only_dequantized, plan_quantize, read_format
from modelopt_rs.planning.warnings import unread_in_words

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}


def info(name: str, shape: tuple[int, ...] = (64, 64), dtype: str = "F32") -> TensorInfo:
    n = SIZES[dtype]
    for axis in shape:
        n *= axis
    return TensorInfo(name, dtype, shape, n)


def decide(one: TensorInfo, config: dict | None = None, **options):
    return plan_quantize({one.name: one}, config or {}, QuantizeOptions(**options))[one.name]


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.0.attention.output.dense.weight",
        "pooler.dense.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.shared_expert.up_proj.weight",
        "transformer.h.0.attn.out_proj.weight",
        "h.0.self_attention.query_key_value.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.embedding_hidden_mapping_in.weight",
        "fc.weight",
    ],
)
def test_linear_layers_are_quantized(name: str) -> None:
    assert decide(info(name)).action == "quantize"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("embeddings.word_embeddings.weight", "an embedding"),
        ("embeddings.position_embeddings.weight", "an embedding"),
        ("bert.embeddings.token_type_embeddings.weight", "an embedding"),
        ("model.embed_tokens.weight", "an embedding"),
        ("transformer.wte.weight", "an embedding"),
        ("wpe.weight", "an embedding"),
        ("shared.weight", "an embedding"),
        ("tok_embeddings.weight", "an embedding"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "an embedding"),
        ("lm_head.weight", "the last head"),
        ("lm_head.dense.weight", "the last head"),
        ("classifier.weight", "the last head"),
        ("classifier.out_proj.weight", "the last head"),
        ("score.weight", "the last head"),
        ("qa_outputs.weight", "the last head"),
        ("cls.predictions.decoder.weight", "the last head"),
        ("output.weight", "the last head"),
        ("embed_out.weight", "the last head"),
        ("model.layers.0.block_sparse_moe.gate.weight", "a router of experts"),
        ("encoder.layer.0.attention.self.query.kernel", "its name does not end in .weight"),
    ],
)
def test_what_is_left(name: str, reason: str) -> None:
    assert decide(info(name)) == decide(info(name), {"model_type": "bert"})
    assert (decide(info(name)).action, decide(info(name)).reason) == ("copy", reason)


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (info("a.weight", (64,)), "not 2-dimensional, but 1-dimensional"),
        (info("a.weight", (2, 3, 64)), "not 2-dimensional, but 3-dimensional"),
        (info("a.weight", (0, 64)), "empty"),
        (info("a.weight", dtype="I64"), "dtype I64 is not one of F32, F16, BF16"),
        (info("a.weight", dtype="F64"), "dtype F64 is not one of F32, F16, BF16"),
    ],
)
def test_what_cannot_be_quantized(one: TensorInfo, reason: str) -> None:
    assert decide(one).reason == reason
    with pytest.raises(OptionError, match=f"include 'a[*]': tensor 'a.weight' can't be quantized: {reason}"):
        decide(one, include=["a*"])


@pytest.mark.parametrize(("format", "way"), [(None, ""), ("nf4", " without format")])
def test_a_glob_of_what_no_loader_reads_names_the_largest_and_the_way(format: str | None, way: str) -> None:
    tensors = {
        name: info(name, shape) for name, shape in {"a.norm.weight": (64,), "a.conv.weight": (64, 64, 3, 3)}.items()
    }
    takes = f"only_dequantize (--only-dequantize){way} takes it"
    why = f"tensor 'a.conv.weight' can't be quantized: not 2-dimensional, but 4-dimensional; {takes}"
    with pytest.raises(OptionError, match=re.escape(why)):
        plan_quantize(tensors, {}, QuantizeOptions(include=["a.*"], format=format))


@pytest.mark.parametrize(("format", "way"), [(None, ""), ("fp8_e4m3", " without format")])
def test_what_is_coded_for_no_loader_is_told_whatever_the_format(format: str | None, way: str) -> None:
    conv, options = info("a.conv.weight", (64, 64, 3, 3)), QuantizeOptions(format=format)
    tensors = {each.name: each for each in (conv, info("a.norm.weight", (64,)))}
    assert only_dequantized(tensors, tensors, {}, options) == [conv]
    assert f"; only_dequantize (--only-dequantize){way}" in unread_in_words([conv.nbytes], conv.nbytes, format)[0]
    asked = QuantizeOptions(only_dequantize=True)
    assert plan_quantize({conv.name: conv}, {}, asked)[conv.name].action == "quantize"


def test_conv1d_of_gpt2_is_quantized_where_its_loader_reads_it_back() -> None:
    """H2. Not by bitsandbytes."""
    one = info("h.0.attn.c_attn.weight")
    assert decide(one).action == decide(one, {"model_type": "gpt2"}).action == "quantize"
    left = decide(one, {"model_type": "gpt2"}, format="nf4")
    assert (left.action, left.reason) == ("copy", "a Conv1D layer: stored as [in, out]")


def test_conv1d_of_gpt2_is_pruned_along_its_inputs() -> None:
    """They are its rows: 2:4 counts down them, and bitmasks have no layer for it."""
    one, gpt2 = info("h.0.attn.c_attn.weight", (6, 8)), {"model_type": "gpt2"}
    assert plan_prune({one.name: one}, gpt2, PruneOptions(sparsity=0.5))[one.name].action == "prune"
    pairs = PruneOptions(n=2, m=4)
    assert plan_prune({one.name: one}, gpt2, pairs)[one.name].reason == "6 inputs are no multiple of 4"
    assert plan_prune({one.name: one}, {}, pairs)[one.name].action == "prune"
    masked = plan_prune({one.name: one}, gpt2, PruneOptions(sparsity=0.5, format="bitmask"))[one.name]
    assert masked.reason == "a Conv1D layer: stored as [in, out], and no loader has bitmasks for it"


def test_frozen_norms_leave_a_model_to_bitsandbytes() -> None:
    """transformers looks for a parameter by the name of every tensor called weight; DETR's norms are buffers."""
    linear, norm = info("model.fc.weight", (64, 64)), info("model.norm.weight", (64,))
    mean, count = info("model.norm.running_mean", (64,)), info("model.norm.num_batches_tracked", ())
    frozen, config = {each.name: each for each in (linear, norm, mean)}, {"model_type": "detr"}
    options = QuantizeOptions()
    left = plan_quantize(frozen, config, options)[linear.name]
    assert (left.action, left.reason) == ("copy", "transformers loads no model with frozen norms and quantized weights")
    assert only_dequantized(frozen, frozen, config, options) == [linear]
    assert read_format([linear], frozen, config, options) == "nf4"
    for tensors, said, more in (
        ({**frozen, count.name: count}, config, {}),
        (frozen, {}, {}),
        (frozen, config, {"format": "nf4"}),
        (frozen, config, {"only_dequantize": True}),
    ):
        assert plan_quantize(tensors, said, QuantizeOptions(**more))[linear.name].action == "quantize"


def test_a_layer_that_a_head_is_tied_to_is_read_where_all_are_coded_alike() -> None:
    """transformers ties the head to a parameter: modules that keep codes have none."""
    two = {
        "encoder.out.weight": PackedSpec(bits=4, group_size=32, symmetric=False),
        "encoder.out_mid.weight": PackedSpec(bits=8),
    }
    tied = groups_alike(two, "pack-quantized", {"model_type": "granite_speech5_ctc"})
    assert tied == [("encoder.out.weight", list(two))]
    symmetric = {name: PackedSpec(bits=bits) for name, bits in zip(two, (8, 4), strict=True)}
    assert groups_alike(symmetric, "pack-quantized", {"model_type": "granite_speech5_ctc"}) == tied
    assert groups_alike(symmetric, "pack-quantized", {"model_type": "bert"}) == []


def test_what_no_format_has_a_loader_for_names_none() -> None:
    conv = info("a.conv.weight", (64, 64, 3, 3))
    assert read_format([conv], {conv.name: conv}, {"model_type": "resnet"}, QuantizeOptions()) is None
    fc = info("encoder.layer.0.mlp.fc1.weight", (64, 64))
    assert read_format([fc], {fc.name: fc}, {"model_type": "dinov2"}, QuantizeOptions()) == "nf4"
    assert read_format([fc], {fc.name: fc}, {}, QuantizeOptions()) is None


def test_group_size_must_divide_the_row() -> None:
    one = info("a.weight", (8, 40))
    assert decide(one, bits=4, group_size=32).reason == "rows of 40 are no multiple of the group size 32"
    assert decide(one, bits=4).action == "quantize"  # with 8 bits
    assert decide(one, bits=8).action == "quantize"
    assert decide(one, bits=4, group_size=0).action == "quantize"
    assert decide(one, bits=4, group_size=8).action == "quantize"


def test_defaults_of_the_group_size() -> None:
    assert [QuantizeOptions(bits=b).spec.group_size for b in (8, 4, 2)] == [None, 32, 32]


def test_globs() -> None:
    tensors = {
        name: info(name, shape)
        for name, shape in {
            "emb.embeddings.weight": (64, 64),
            "emb.norm.weight": (64,),
            "a.fc.weight": (64, 64),
            "b.fc.weight": (64, 64),
        }.items()
    }

    def plan(**options) -> dict[str, str]:
        decided = plan_quantize(tensors, {}, QuantizeOptions(**options))
        return {name: decision.reason for name, decision in decided.items() if decision.action == "quantize"}

    linear = "weight of a linear layer"
    assert plan() == {"a.fc.weight": linear, "b.fc.weight": linear}
    # A glob that also matches what can't be quantized takes the rest.
    assert plan(include=["emb.*"])["emb.embeddings.weight"] == "included by 'emb.*'"
    assert plan(exclude=["a.*"]) == {"b.fc.weight": linear}
    assert plan(include=["a.*"], exclude=["*.fc.weight"]) == {}
    with pytest.raises(OptionError, match=r"include 'emb.norm[*]': tensor 'emb.norm.weight' can't be quantized"):
        plan(include=["emb.norm*"])
    for option in ("include", "exclude"):
        with pytest.raises(OptionError, match=rf"{option} 'typo[*]' matches no tensor"):
            plan(**{option: ["a.*", "typo*"]})


def test_a_tied_head_stays() -> None:
    one = info("lm_head.weight")
    assert decide(one, include=["lm_head*"]).action == "quantize"
    with pytest.raises(OptionError, match=r"tied to the embedding by config.json's tie_word_embeddings"):
        decide(one, {"tie_word_embeddings": True}, include=["lm_head*"])
    embedding = info("model.embed_tokens.weight")
    assert decide(embedding, {"tie_word_embeddings": True}, include=["*embed_tokens*"]).action == "quantize"


def test_a_quantized_model_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"quantized already .*'fc.weight_packed'.*: dequantize it first"):
        decide(info("fc.weight_packed", dtype="I32"))
    with pytest.raises(UnsupportedError, match=r"quantized already by 'gptq' .* not read here: take the model that"):
        decide(info("fc.weight"), {"quantization_config": {"quant_method": "gptq"}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits must be 8, 4 or 2, got 3"),
        ({"scheme": "minmax"}, "the file layout has no offset; use 'asymmetric'"),
        ({"scheme": "x"}, "scheme must be 'symmetric' or 'asymmetric', got 'x'"),
        ({"group_size": -1}, "group_size must be 0"),
        ({"nonfinite": "x"}, "nonfinite must be"),
    ],
)
def test_options(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QuantizeOptions(**options)


def test_one_string_is_no_list_of_globs() -> None:
    with pytest.raises(TypeError, match="include must be a sequence of str, got 'abc'"):
        QuantizeOptions(include="abc")
