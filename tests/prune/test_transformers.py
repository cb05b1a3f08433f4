"""The groups of transformers by their names, and the configurations: all that needs no torch."""

import re
from pathlib import Path

import numpy as np
import pytest

import modelopt_rs as mo

BERT = {"model_type": "bert", "hidden_size": 12, "num_attention_heads": 4, "intermediate_size": 10}
LLAMA = BERT | {"model_type": "llama", "num_key_value_heads": 2}


def bert(prefix="", layers=2, head=3):
    shapes = {f"embeddings.{name}_embeddings.weight": (5, 12) for name in ("word", "position", "token_type")}
    shapes |= {"embeddings.LayerNorm.weight": (12,), "pooler.dense.weight": (12, 12), "pooler.dense.bias": (12,)}
    for i in range(layers):
        layer = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= {
                f"{layer}attention.self.{part}.weight": (4 * head, 12),
                f"{layer}attention.self.{part}.bias": (12,),
            }
        shapes |= {
            f"{layer}attention.output.dense.weight": (12, 4 * head),
            f"{layer}attention.output.dense.bias": (12,),
        }
        shapes |= {f"{layer}intermediate.dense.weight": (10, 12), f"{layer}intermediate.dense.bias": (10,)}
        shapes |= {f"{layer}output.dense.weight": (12, 10), f"{layer}output.LayerNorm.bias": (12,)}
    return fill({prefix + name: shape for name, shape in shapes.items()})


def llama(prefix="model.", layers=2):
    shapes = {f"{prefix}embed_tokens.weight": (5, 12), f"{prefix}norm.weight": (12,), "lm_head.weight": (5, 12)}
    for i in range(layers):
        layer = f"{prefix}layers.{i}."
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (12 if part == "q" else 6, 12) for part in "qkv"}
        shapes |= {f"{layer}self_attn.o_proj.weight": (12, 12), f"{layer}mlp.down_proj.weight": (12, 10)}
        shapes |= {f"{layer}mlp.{part}_proj.weight": (10, 12) for part in ("gate", "up")}
        shapes |= {f"{layer}{norm}.weight": (12,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return fill(shapes)


def fill(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "bert.", "roberta.", "a.b."])
def test_bert_under_any_prefix(prefix):
    tensors = bert(prefix)
    groups = mo.prune.transformer_groups(tensors, BERT)
    layers = [f"{prefix}encoder.layer.{i}.{what}" for i in range(2) for what in ("heads", "ffn")]
    assert [group.name for group in groups] == [*layers, "hidden"]
    small, report = mo.prune.crop(tensors, groups, round_to=1)
    shape = {name.removeprefix(prefix): tensor.shape for name, tensor in small.items()}
    assert shape["encoder.layer.1.attention.self.key.weight"] == (6, 6)
    assert shape["encoder.layer.1.attention.output.dense.weight"] == (6, 6)
    assert shape["encoder.layer.0.output.dense.weight"] == (6, 5)
    assert shape["embeddings.word_embeddings.weight"] == (5, 6)
    assert shape["pooler.dense.weight"] == (6, 6)
    assert mo.prune.cropped_config(BERT, report) == BERT | {
        "hidden_size": 6,
        "num_attention_heads": 2,
        "intermediate_size": 5,
    }


def test_llama_with_shared_keys():
    tensors = llama()
    groups = mo.prune.transformer_groups(tensors, LLAMA, ("heads", "ffn"))
    assert [(group.name, group.units) for group in groups[:2]] == [
        ("model.layers.0.heads", 2),
        ("model.layers.0.ffn", 10),
    ]
    small, report = mo.prune.crop(tensors, groups, keep={"*.heads": 1, "*.ffn": 5})
    assert small["model.layers.0.self_attn.q_proj.weight"].shape == (6, 12)
    assert small["model.layers.0.self_attn.k_proj.weight"].shape == (3, 12)
    assert small["model.layers.0.self_attn.o_proj.weight"].shape == (12, 6)
    new = mo.prune.cropped_config(LLAMA, report)
    assert new == LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 5, "head_dim": 3}


def test_layers_are_numbered_not_sorted_as_words():
    groups = mo.prune.transformer_groups(bert(layers=11), BERT, "ffn")
    assert [group.name.split(".")[2] for group in groups] == [str(i) for i in range(11)]


def test_pruned_heads_are_those_of_the_whole_model():
    """Cropped twice, heads keep the numbers that they had at first."""
    tensors, config, scores = bert(layers=1), BERT, np.array([1.0, 4.0, 2.0, 3.0])
    for keep in (3, 2):
        groups = mo.prune.transformer_groups(tensors, config, "heads")
        tensors, report = mo.prune.crop(tensors, groups, keep=keep, scores={groups[0].name: scores})
        config, scores = mo.prune.cropped_config(config, report), scores[report.groups[0].kept]
    assert config == BERT | {"pruned_heads": {"0": [0, 2]}}


def test_what_nothing_is_cropped_of_needs_no_new_configuration():
    report = mo.prune.plan_crop(bert(), mo.prune.transformer_groups(bert(), BERT), keep=1.0)
    assert mo.prune.cropped_config(BERT, report) == BERT


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def planned(tensors, config, what, keep, **options):
    groups = mo.prune.transformer_groups(tensors, config, what)
    return mo.prune.cropped_config(config, mo.prune.plan_crop(tensors, groups, keep=keep, **options))


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: mo.prune.transformer_groups(bert(), BERT | {"model_type": "rwkv"}),
            "transformer_groups: config['model_type'] must be one of bert, roberta, xlm-roberta, camembert, electra,",
        ),
        (
            lambda: mo.prune.transformer_groups(bert(), BERT, "mlp"),
            "transformer_groups: what must be of heads, query_heads, ffn, hidden, all, got 'mlp'",
        ),
        (
            lambda: mo.prune.transformer_groups(bert(), BERT | {"hidden_size": None}),
            "transformer_groups: config['hidden_size'] must be an integer of at least 1, got None",
        ),
        (
            lambda: mo.prune.transformer_groups({}, BERT),
            "transformer_groups: tensors must hold the layers of the model, got no name that ends as encoder.layer.0.",
        ),
        (
            lambda: mo.prune.transformer_groups(without(bert(), "encoder.layer.0.attention.self.key.weight"), BERT),
            "transformer_groups: tensors must hold 'encoder.layer.0.attention.self.key.weight' with an axis 0, got no",
        ),
        (
            lambda: mo.prune.transformer_groups(bert() | {QUERY: np.ones((7, 12))}, BERT),
            f"transformer_groups: {QUERY!r} must have a multiple of 12 along axis 0, got (7, 12)",
        ),
        (
            lambda: mo.prune.transformer_groups(bert() | {"adapter.weight": np.ones(3)}, BERT),
            "transformer_groups: tensors must be known for 'hidden', got 'adapter.weight'; leave it out of tensors",
        ),
        (
            lambda: mo.prune.transformer_groups(bert(), BERT, "query_heads"),
            "transformer_groups: what must not be 'query_heads' for the BERT family, got it; use 'heads'",
        ),
        (
            lambda: mo.prune.transformer_groups(bert(), BERT | {"num_attention_heads": 5}),
            "transformer_groups: config['hidden_size'] must be a multiple of its 5 heads, got 12",
        ),
        (
            lambda: planned(bert(), BERT | {"pruned_heads": {"0": 3}}, "heads", 2),
            "cropped_config: config['pruned_heads'] must be an object of lists of heads by layer, got {'0': 3}",
        ),
        (
            lambda: planned(llama(), LLAMA | {"num_key_value_heads": "2"}, "heads", 1),
            "cropped_config: config['num_key_value_heads'] must be an integer of at least 1, got '2'",
        ),
        (
            lambda: planned(bert(), BERT, "hidden", 6),
            "cropped_config: hidden_size must be heads times their width in the BERT family, got hidden_size 6 with h",
        ),
        (
            lambda: planned(bert(), BERT, "ffn", {"*.0.ffn": 5}),
            "cropped_config: report must keep as many 'ffn' in every layer, got [5, 10]",
        ),
        (
            lambda: planned(llama(), LLAMA, "heads", {"*.0.heads": 1}),
            "cropped_config: report must keep as many 'heads' in every layer, got [1, 2]",
        ),
        (
            lambda: planned(llama(), LLAMA, ("hidden", "heads"), {"hidden": 5, "*.heads": 1}),
            "cropped_config: heads must divide hidden_size for transformers to load Llama, got 2 heads and hidden_siz",
        ),
        (
            lambda: planned(llama(), LLAMA, ("heads", "query_heads"), 0.5),
            "plan_crop: groups must not overlap, got those of 'model.layers.0.heads' and 'model.layers.0.query_heads'",
        ),
    ],
)
def test_messages(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


GPT2 = {"model_type": "gpt2", "n_inner": None}


def gpt2():
    shapes = {"h.0.mlp.c_fc.weight": (4, 16), "h.0.mlp.c_fc.bias": (16,), "h.0.mlp.c_proj.weight": (16, 4)}
    return fill(shapes | {"h.0.mlp.c_proj.bias": (4,)})


def test_weights_that_are_transposed_lose_columns_then_rows():
    small, report = mo.prune.crop(gpt2(), mo.prune.transformer_groups(gpt2(), GPT2, "ffn"), keep=8)
    shapes = {name: array.shape for name, array in small.items()}
    assert shapes == {
        "h.0.mlp.c_fc.weight": (4, 8),
        "h.0.mlp.c_fc.bias": (8,),
        "h.0.mlp.c_proj.weight": (8, 4),
        "h.0.mlp.c_proj.bias": (4,),
    }
    assert mo.prune.cropped_config(GPT2, report)["n_inner"] == 8


def bart(units=(6, 8)):
    shapes = {}
    for side, n in zip(("encoder", "decoder"), units, strict=True):
        shapes |= {f"model.{side}.layers.0.fc1.weight": (n, 4), f"model.{side}.layers.0.fc2.weight": (4, n)}
    return fill(shapes)


def test_each_side_keeps_a_number_of_its_own():
    config = {"model_type": "bart", "encoder_ffn_dim": 6, "decoder_ffn_dim": 8}
    assert planned(bart(), config, "ffn", {"*encoder*": 4, "*decoder*": 2}) == config | {
        "encoder_ffn_dim": 4,
        "decoder_ffn_dim": 2,
    }


def clip():
    shapes = {}
    for kind, n in (("text", 6), ("vision", 8)):
        name = f"{kind}_model.encoder.layers.0.mlp.fc"
        shapes |= {f"{name}1.weight": (n, 4), f"{name}2.weight": (4, n)}
    return fill(shapes)


def test_a_number_is_written_where_transformers_reads_it():
    """What an older version has written as well goes before; a section that isn't there is made."""
    config = {"model_type": "clip", "text_config": {"a": 1}, "text_config_dict": {"b": 2}}
    assert planned(clip(), config, "ffn", 2) == {
        "model_type": "clip",
        "text_config": {"a": 1, "intermediate_size": 2},
        "text_config_dict": {"b": 2, "intermediate_size": 2},
        "vision_config": {"intermediate_size": 2},
    }
    assert config["text_config"] == {"a": 1}
    with pytest.raises(ValueError, match=re.escape("cropped_config: config['text_config'] must be an object, got 5")):
        planned(clip(), config | {"text_config": 5}, "ffn", 2)


def swin(*units):
    shapes = {}
    for i, n in enumerate(units):
        layer = f"layers.{i}.blocks.0."
        shapes |= {f"{layer}intermediate.dense.weight": (n, 4), f"{layer}output.dense.weight": (4, n)}
    return fill(shapes)


def dinov2(units):
    layer = "encoder.layer.0."
    shapes = {f"{layer}attention.attention.{part}.weight": (4, 4) for part in ("query", "key", "value")}
    return fill(shapes | {f"{layer}mlp.fc1.weight": (units, 4), f"{layer}mlp.fc2.weight": (4, units)})


def test_a_ratio_says_how_many_units_stay():
    config = {"model_type": "swin", "mlp_ratio": 2.0}
    assert planned(swin(8, 16), config, "ffn", 0.75, round_to=1)["mlp_ratio"] == 1.5
    for keep, text in (
        ({"layers.0*": 6, "*": 8}, "report must keep the same share of 'ffn' in every layer, got 1/2, 3/4"),
        ({"*": 1.0}, "config['mlp_ratio'] must be a number above 0, got None"),
    ):
        wrong = config | ({"mlp_ratio": None} if keep == {"*": 1.0} else {})
        with pytest.raises(ValueError, match=re.escape(f"cropped_config: {text}")):
            planned(swin(8, 16), wrong, "ffn", keep)
    with pytest.raises(ValueError, match=r"config\['mlp_ratio'\] must say the 6 units of 'layers.0.blocks.0.ffn'"):
        planned(swin(12), {"model_type": "swin", "mlp_ratio": 3.5}, "ffn", 6)


def test_a_ratio_that_is_an_integer_stays_one():
    config = {"model_type": "dinov2", "hidden_size": 4, "num_attention_heads": 2, "mlp_ratio": 4}
    assert planned(dinov2(16), config, "ffn", 8)["mlp_ratio"] == 2
    text = "cropped_config: config['mlp_ratio'] must stay an integer, got 2.5; keep a multiple of 4 units"
    with pytest.raises(ValueError, match=re.escape(text)):
        planned(dinov2(16), config, "ffn", 10)


T5 = {"model_type": "t5", "d_model": 8, "num_heads": 2, "d_kv": 3, "d_ff": 6}


def t5(rows=6):
    layer = "encoder.block.0.layer.0.SelfAttention."
    shapes = {f"{layer}{part}.weight": (rows, 8) for part in "qkv"} | {f"{layer}o.weight": (8, rows)}
    shapes |= {f"{layer}relative_attention_bias.weight": (5, 2)}
    name = "encoder.block.0.layer.1.DenseReluDense."
    return fill(shapes | {f"{name}wi.weight": (6, 8), f"{name}wo.weight": (8, 6)})


def test_an_encoder_without_a_decoder_loses_heads_and_units():
    groups = mo.prune.transformer_groups(t5(), T5, ("heads", "ffn"))
    assert [(group.name, group.units) for group in groups] == [("encoder.heads", 2), ("encoder.block.0.layer.1.ffn", 6)]
    new = planned(t5(), T5, ("heads", "ffn"), {"*.heads": 1, "*.ffn": 4})
    assert new == T5 | {"num_heads": 1, "d_ff": 4}


SAYS = "'gpt2', which has a config.json that can't say it"
HOLD = "tensors must hold the layers of the model, got no name that ends as"


@pytest.mark.parametrize(
    ("tensors", "config", "what", "text"),
    [
        (gpt2(), GPT2, "heads", f"what must not name 'heads' for {SAYS}; use 'ffn', or export it to ONNX"),
        (gpt2(), GPT2, "all", f"what must not name 'heads' for {SAYS}"),
        (gpt2(), GPT2, "query_heads", f"what must not name 'query_heads' for {SAYS}"),
        (gpt2(), GPT2, "hidden", "what must not name 'hidden' for 'gpt2', which is known for what lies between; use"),
        (t5(), T5, "hidden", "what must not name 'hidden' for 't5', which is known for what lies between; use 'heads'"),
        (t5(9), T5, "heads", "'encoder.block.0.layer.0.SelfAttention.k.weight' must have 2 heads of 3 rows, got (9, "),
        (gpt2(), {"model_type": "bloom"}, "ffn", "config['model_type'] must be one whose config.json says how wide"),
        ({}, {"model_type": "mobilebert"}, "ffn", f"{HOLD} encoder.layer.0.intermediate.dense.weight"),
        ({}, {"model_type": "swin"}, "ffn", f"{HOLD} layers.0.blocks.0.intermediate.dense.weight"),
    ],
)
def test_what_config_json_can_not_say_is_refused(tensors, config, what, text):
    with pytest.raises(ValueError, match=re.escape(f"transformer_groups: {text}")):
        mo.prune.transformer_groups(tensors, config, what)


def test_the_guide_names_each_type():
    from modelopt_rs.prune.families import FAMILIES, FIXED

    page = (Path(__file__).parents[2] / "docs" / "how-to" / "crop.md").read_text(encoding="utf-8")
    rows = page.partition("| `model_type` |")[2].partition("\n\n")[0].splitlines()[2:]
    named = [name for row in rows for name in row.split("|")[1].strip().split(", ")]
    assert sorted(named) == sorted({name for family in FAMILIES for name in family.types})
    assert all(name in page for name in FIXED)
